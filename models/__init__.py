"""Networks and the forecaster that joins them. A new one is a class here and a line in its dict."""

from .denoiser import MLPDenoiser
from .forecaster import ResidualForecaster
from .stid import STID

MEAN_MODELS = {"stid": STID}
DENOISERS = {"mlp": MLPDenoiser}

__all__ = ["DENOISERS", "MEAN_MODELS", "ResidualForecaster"]
