"""Networks and the forecaster that joins them. A new one is a class here and a line in its dict."""

from .denoiser import MLPDenoiser
from .dependence import FactorModel
from .forecaster import PROCESSES, CopulaForecaster, OnePassForecaster, ResidualForecaster
from .stid import STID, QuantileSTID

MEAN_MODELS = {"quantile_stid": QuantileSTID, "stid": STID}
DENOISERS = {"mlp": MLPDenoiser}

__all__ = ["DENOISERS", "MEAN_MODELS", "PROCESSES", "CopulaForecaster", "FactorModel", "OnePassForecaster",
           "ResidualForecaster"]
