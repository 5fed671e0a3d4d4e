"""Models from settings, of a command line or of a checkpoint."""

import inspect

import torch

from data.constants import ANY_VALUE

from .backbones import STID, DLinear, ITransformer
from .denoiser import MLPDenoiser, PublishedDenoiser
from .diffusion import NOISE_SCHEDULES
from .forecaster import Forecaster
from .layers import Task
from .margins import EmpiricalMargin, QuantileMargin, ResidualMargin, ShapedMargin
from .mean import CorrectedMean, MeanModel
from .noise import CovarianceNoise, IndependentNoise
from .scale import FluctuationScale

MEAN_MODELS = {"stid": STID, "itransformer": ITransformer, "dlinear": DLinear}
DENOISERS = {"mlp": MLPDenoiser, "stid": PublishedDenoiser}
MARGINS = ("auto", "shaped", "scaled", "residual", "quantile", "empirical")
NOISES = ("covariance", "independent")


def task_of(settings: dict, metadata: dict) -> Task:
    """The sizes of a configuration; metadata: of `WindowedField.metadata()` or of a checkpoint."""
    return Task(metadata["num_nodes"], settings["history_len"], settings["predict_len"],
                tuple(metadata["calendar_sizes"]), metadata["masked"], len(metadata["covariates"]),
                len(metadata["lag_steps"]), sum("+" in lag for lag in metadata["lag_steps"]))


def build_mean_model(settings: dict, metadata: dict) -> CorrectedMean:
    """The untrained stage-1 model of a configuration."""
    task, backbone = task_of(settings, metadata), MEAN_MODELS[settings["mean_model"]]
    wanted = inspect.signature(backbone).parameters.keys() - {"task", "objective"}
    flags = {name.removeprefix("mean_"): value for name, value in settings.items()
             if name.removeprefix("mean_") in wanted}
    networks = [backbone(task, settings["objective"], **flags) for _ in range(settings["networks"])]
    return CorrectedMean(task, networks, settings["linear_modes"], settings["recalibrate"], settings["base"] == "auto")


def build_forecaster(settings: dict, mean_model: MeanModel, metadata: dict) -> Forecaster:
    """The untrained forecaster of a stage-2 configuration. Raises: ValueError for parts that do not fit each other."""
    task, support = task_of(settings, metadata), tuple(
        torch.tensor(part) if isinstance(part, list) else part for part in metadata["support"] or ANY_VALUE)
    bounds = {name: settings[f"beta_{name}"] for name in ("first", "last") if settings[f"beta_{name}"]}
    beta = NOISE_SCHEDULES[settings["noise_schedule"]](settings["diffusion_steps"], **bounds)
    if (beta.diff() < 0).any():
        raise ValueError(f"the noise variances fall from {beta[0]:g} to {beta[-1]:g}: choose --beta_first at most "
                         "--beta_last")

    objective = mean_model.objective
    if settings["endpoint"] != "none" and (settings["margin"] != "residual" or settings["noise"] != "independent"):
        raise ValueError(f"--endpoint {settings['endpoint']} is a fluctuation scale in units of the residual: it needs "
                         "--margin residual --noise independent")
    if settings["margin"] in ("shaped", "quantile") and objective != "quantiles":
        raise ValueError(f"--margin {settings['margin']} builds on conditional quantiles, found a stage-1 model of "
                         f"--objective {objective}: train one with --objective quantiles, or choose --margin scaled")
    if settings["margin"] == "empirical":
        if not torch.as_tensor(support[0]).isfinite().all():
            raise ValueError("--margin empirical is for a field with a smallest value: add --support nonnegative to "
                             "both stages (and --scaling node, not log), or choose --margin scaled")
        margin = EmpiricalMargin(support, task.predict_len)
    elif settings["margin"] == "quantile":
        margin = QuantileMargin(support)
    else:
        if settings["scale"] == "quantiles" and objective != "quantiles":
            raise ValueError("--scale quantiles is the spread of conditional quantiles, found a stage-1 model of "
                             f"--objective {objective}: choose --scale cycle")
        if settings["margin"] == "shaped" and settings["scale"] != "quantiles":
            raise ValueError(f"--margin shaped needs --scale quantiles, found --scale {settings['scale']}: choose "
                             "--margin scaled")
        scale = FluctuationScale(settings["scale"], task.num_nodes, task.predict_len, task.calendar_sizes[0],
                                 support[1])
        inputs = tuple(name for name in ("mean", "scale") if settings[f"condition_{name}"])
        kind = ShapedMargin if settings["margin"] == "shaped" else ResidualMargin
        margin = kind(scale, support, settings["margin"] != "residual", settings["center"], inputs)
    noise = IndependentNoise() if settings["noise"] == "independent" else \
        CovarianceNoise(task.num_nodes, task.predict_len, settings["modes"])

    denoiser = DENOISERS[settings["denoiser"]](
        task, task.history_len + task.predict_len * len(margin.inputs), endpoint=settings["endpoint"] != "none",
        **{name: settings[f"diffusion_{name}"] for name in ("channels", "layers", "embedding", "dropout")})
    return Forecaster(mean_model, margin, noise, denoiser, beta, settings["prediction"], settings["endpoint"])
