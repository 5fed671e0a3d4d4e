"""Models from settings: those of a command line, or those that a checkpoint holds."""

import sys

import torch
from torch import Tensor, nn

from .denoiser import GraphDenoiser, MLPDenoiser, TokenDenoiser
from .dependence import FactorModel
from .diffusion import NOISE_SCHEDULES
from .forecaster import PROCESSES, ResidualForecaster
from .quantiles import ANY_VALUE
from .stid import STID, QuantileSTID

MEAN_MODELS = {"quantile_stid": QuantileSTID, "stid": STID}
DENOISERS = {"mlp": MLPDenoiser, "tokens": TokenDenoiser, "graph": GraphDenoiser}


def build_mean_model(settings: dict, facts: dict) -> nn.Module:
    """The stage-1 model of a configuration (as a dict: also that of a checkpoint) for data of these `facts`."""
    network = MEAN_MODELS[settings["mean_model"]]
    own = {"networks": settings["networks"], "linear_modes": settings["linear_modes"]}
    lags = len(facts.get("lag_steps", ()))
    return network(
        facts["num_nodes"], settings["history_len"], settings["predict_len"], tuple(facts["calendar_sizes"]),
        channels=settings["channels"], layers=settings["layers"], dropout=settings["dropout"],
        climatology=settings["climatology"], tokens=settings["tokens"], lags=lags, **optional_inputs(facts),
        **{name: own[name] for name in getattr(network, "own_settings", ())},
    )


def optional_inputs(facts: dict) -> dict:
    """What both networks take beside history and calendar, by the facts of the data (also of an older checkpoint)."""
    return {"masked": facts.get("masked", False),
            "covariates": len(facts.get("covariates", ())) + len(facts.get("lag_steps", ()))}


def build_forecaster(settings: dict, mean_model: nn.Module, facts: dict, nearest: Tensor | None = None) -> nn.Module:
    """The forecaster of a stage-2 configuration (as a dict: also that of a checkpoint), nothing in it fitted yet.

    facts: those of the data, `WindowedField.facts()`. nearest (node, `--neighbours`): those that nodes listen to, where
    the denoiser mixes them; weights that are loaded bring their own.
    """
    num_nodes, calendar_sizes = facts["num_nodes"], tuple(facts["calendar_sizes"])
    support = tuple(facts["support"] or ANY_VALUE)
    bounds = {name: settings[f"beta_{name}"] for name in ("first", "last") if settings[f"beta_{name}"]}
    beta = NOISE_SCHEDULES[settings["noise_schedule"]](settings["diffusion_steps"], **bounds)
    if (beta.diff() < 0).any():
        raise ValueError(f"the noise variances fall from {beta[0]:g} to {beta[-1]:g}: choose --beta_first at most "
                         "--beta_last")

    if nearest is None:
        nearest = torch.zeros(num_nodes, settings["neighbours"], dtype=torch.long)
    mixing = {"tokens": settings["mixing_tokens"], "nearest": nearest}

    def denoiser(coordinates: int, endpoint: bool) -> nn.Module:
        network = DENOISERS[settings["eps_model"]]
        return network(
            coordinates, settings["history_len"], settings["predict_len"], calendar_sizes,
            channels=settings["channels"], layers=settings["layers"], embedding=settings["embedding"],
            dropout=settings["dropout"], endpoint=endpoint, **optional_inputs(facts),
            **{name: mixing[name] for name in network.mixing},
        )

    if settings["process"] == "cost":
        if hasattr(mean_model, "quantiles"):
            print("note: --process cost on the mean of a quantile model; as published, stage 1 runs with --mean_model "
                  "stid --no-climatology --tokens 0 --lr 0.001", file=sys.stderr)
        return ResidualForecaster(mean_model, denoiser(num_nodes, endpoint=True), beta, num_nodes,
                                  settings["endpoint_signs"], support)
    if not hasattr(mean_model, "quantiles"):
        raise ValueError(f"--process {settings['process']} builds on the conditional quantiles of stage 1, found a "
                         "model of the mean alone; run main_pretrain.py with --mean_model quantile_stid, or choose "
                         "--process cost")
    dependence = FactorModel(num_nodes, settings["predict_len"], settings["modes"])
    return PROCESSES[settings["process"]](mean_model, denoiser(dependence.width, endpoint=False), beta, dependence,
                                          support)
