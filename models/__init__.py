"""Networks and the forecaster that joins them. A new one is a class here and a line in its dict."""

from .build import DENOISERS, MEAN_MODELS, build_forecaster, build_mean_model
from .dependence import FactorModel
from .forecaster import PROCESSES, CopulaForecaster, OnePassForecaster, ResidualForecaster
from .pretrained import SAMPLING_FLAGS, TrainedForecaster, ensemble_drawer, load_forecaster

__all__ = ["DENOISERS", "MEAN_MODELS", "PROCESSES", "SAMPLING_FLAGS", "CopulaForecaster", "FactorModel",
           "OnePassForecaster", "ResidualForecaster", "TrainedForecaster", "build_forecaster", "build_mean_model",
           "ensemble_drawer", "load_forecaster"]
