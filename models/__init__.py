"""Networks and the forecaster that joins them. A new one is a class here and a line in its dict."""

from .build import DENOISERS, MARGINS, MEAN_MODELS, NOISES, build_forecaster, build_mean_model
from .forecaster import PREDICTIONS, Forecaster
from .margins import MEMBERS
from .mean import OBJECTIVES, MeanModel
from .online import OnlineCalibration
from .pretrained import SAMPLING_FLAGS, TrainedForecaster, ensemble_sampler, load_forecaster
from .scale import SCALES

__all__ = ["DENOISERS", "MARGINS", "MEAN_MODELS", "MEMBERS", "NOISES", "OBJECTIVES", "PREDICTIONS",
           "SAMPLING_FLAGS", "SCALES", "Forecaster", "MeanModel", "OnlineCalibration", "TrainedForecaster",
           "build_forecaster", "build_mean_model", "ensemble_sampler", "load_forecaster"]
