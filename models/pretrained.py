"""Trained models from Python: from a run folder to forecasts in physical units, see docs/forecasting.md.

This module alone of the package uses `utils`. It needs the checkpoint, which describes the field, and no data.
"""

import copy
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from data.calendar import clock_of, in_words
from data.constants import ANY_VALUE
from data.fields import mark_missing, match
from data.frames import from_data_frame
from data.lags import as_text
from data.stamps import check_zone, stamp
from data.summary import FieldSummary
from data.table import listed
from data.windows import Batch
from utils.config import PretrainConfig, TrainConfig, known_settings
from utils.output.forecasts import Forecast
from utils.scores.evaluation import rows_at_once
from utils.training.checkpoint import CHECKPOINT, METRICS, built_from, load_checkpoint
from utils.training.distributed import choose_device
from utils.training.reproducibility import MemberNoise

from .build import build_forecaster, build_mean_model
from .diffusion import SAMPLERS
from .forecaster import Forecaster
from .margins import MEMBERS
from .online import OnlineCalibration

SAMPLING_FLAGS = ("nsample", "members", "seed", "sampler", "sample_steps", "sample_precision", "sample_batch")
"""Flags of stage 2 that may be changed after training."""


def ensemble_sampler(model: Forecaster, settings: dict, device: torch.device) -> Callable[[Batch], Tensor]:
    """The function batch -> members (batch, member, F, node), standardized, that every score and picture uses."""
    if settings["sample_precision"] != "float32":
        model = copy.deepcopy(model)
        model.denoiser.round_to(getattr(torch, settings["sample_precision"]))

    def sample(batch: Batch) -> Tensor:
        shape = settings["predict_len"], batch.context.history.shape[-1]
        ensemble = settings["nsample"], settings["members"]
        noise = MemberNoise(settings["seed"], batch.start, model.margin.num_samples(*ensemble), shape)
        return model.sample(batch.context, noise, *ensemble, settings["sampler"], settings["sample_steps"],
                            rows_at_once(shape[1], device, settings["sample_batch"]))

    return sample


@dataclass(frozen=True)
class TrainedForecaster:
    """A trained pair of stages: `model` in eval mode on `device`, its `checkpoint` and the `field` of its training."""

    model: Forecaster
    checkpoint: dict
    field: FieldSummary
    device: torch.device

    @property
    def history_steps(self) -> int:
        """Number of steps before the horizon that a forecast needs."""
        return self.field.max_lag + self.checkpoint["config"]["history_len"]

    def __repr__(self) -> str:
        field, config = self.field, self.checkpoint["config"]
        before = f" and {field.max_lag} before it" if field.max_lag else ""
        return (f"Forecaster of {field.name}: {field.num_nodes} nodes, {field.unit}; {config['predict_len']} steps of "
                f"{in_words(field.interval)} from a history of {config['history_len']}{before}\n"
                f"recipe {config['recipe']}, {config['nsample']} members, sampler {config['sampler']} in "
                f"{config['sample_steps']} steps, on {self.device}")

    def forecast(self, history: np.ndarray | pd.DataFrame | Sequence,
                 history_start: str | np.datetime64 | Sequence | None = None, members: int | str = 0,
                 covariates: np.ndarray | pd.DataFrame | None = None, online: OnlineCalibration | None = None,
                 **flags) -> Forecast:
        """An ensemble of the steps after a history.

        history   (history_steps, node), or (window, history_steps, node) for several windows: the H steps before the
                  horizon, and with `--lags` the steps before these up to the longest lag, in which NaN or a mask marks
                  missing values. Or a DataFrame, or one for each window, with the nodes as columns in any order, and
                  the times as index
        history_start  time of the first step of the history, one for each window; not needed with an index
        members   size of the ensemble; 0: that of the run; a text: the kind of its members (`MEMBERS`)
        covariates  (H + F, covariate) or (H + F, node, covariate), where the model was trained with such; or a
                  DataFrame with a column for each covariate, or one for each window
        online    result of `online`: members are corrected by the observations since its earlier forecasts
        flags     seed, sampler, sample_steps, sample_precision, sample_batch, as of main_train.py; default: the run's

        The numbers are those of `main_train.py` for the same window. They depend on seed, history_start and member, not
        on other windows. Units: physical. Members: (member, F, node), or (window, member, F, node).
        Raises: ValueError for another shape than that of training, other nodes, missing values, a time between two
        steps, or another one than the index has.
        """
        settings = self._settings(members, flags)
        if online and getattr(online, "run", None) != self._identity:
            given = "that of another run" if isinstance(online, OnlineCalibration) else repr(online)
            raise ValueError(f"online: {given}; give the result of the method online of this forecaster")
        history, start = labelled(history, history_start, self.field)
        steps, nodes, seen = self.history_steps, self.field.num_nodes, settings["history_len"]
        if 0 in history.shape or history.ndim not in (2, 3) or history.shape[-2:] != (steps, nodes) or (
                history.shape[:-2] != start.shape):
            lags = listed(as_text(self.field.lags))
            lagged = f"; {self.field.max_lag} of these steps lie before the {seen} of the history, for the lags " \
                     f"{lags}: nan stands for missing ones" if self.field.max_lag else ""
            raise ValueError(f"history of shape {history.shape}, start of shape {start.shape}; expected ({steps}, "
                             f"{nodes}), that is (step, node), and one time, or a window axis before both{lagged}")
        position = torch.tensor([self.field.step_at(time, "history_start") + steps - seen for time in start.ravel()])
        windows = history.reshape(-1, steps, nodes)
        kind = np.float64 if self.field.scaler.precise else np.float32
        values, _ = mark_missing(torch.from_numpy(np.ascontiguousarray(windows, dtype=kind)), settings["null_value"])
        may_miss = values.isnan()
        if not self.field.masked:
            may_miss[:, -seen:] = False
        wrong = ~values.isfinite() & ~may_miss
        if wrong.any():
            window, step, node = wrong.nonzero()[0].tolist()
            time, = self.field.as_text(self.field.times(int(position[window]) + seen - steps + step, 1))
            value = windows[window, step, node]
            raise ValueError(f"history: value {value} at {time}, node {self.field.node_names[node]}"
                             f"{f', window {window}' * (len(windows) > 1)}; expected finite numbers"
                             + bool(np.isnan(value)) * (": a model that was trained with --missing mask, in both "
                                                        "stages, forecasts from histories with gaps"))
        if warning := self.field.range_warning(values):
            warnings.warn(warning, stacklevel=2)
        covariates = self._covariates(covariates, start.shape, position, seen + settings["predict_len"])
        if covariates is not None and (warning := self.field.covariate_warning(covariates)):
            warnings.warn(warning, stacklevel=2)
        batch = self.field.batch(values.to(self.device), position, settings["predict_len"], covariates)
        members = self.field.scaler.physical(ensemble_sampler(self.model, settings, self.device)(batch))
        if online:
            first = (position + seen).tolist()
            online.check_order(first)
            members = torch.stack([online.correct(*window)
                                 for window in zip(values[:, -seen:], members, first, strict=True)])
        times = np.stack([self.field.times(one + seen - 1, 1 + settings["predict_len"]) for one in position.tolist()])
        return Forecast(
            members.cpu().numpy().astype(kind, copy=False).reshape(*start.shape, *members.shape[1:]),
            times[:, 1:].reshape(*start.shape, -1), times[:, 0].reshape(start.shape), self.field,
            f"CoST, recipe {settings['recipe']}, {settings['nsample']} members, seed {settings['seed']}",
        )

    def online(self) -> OnlineCalibration:
        """A correction of forecasts while observations arrive, for every call of `forecast` in the order of time.

        It uses the observations in the histories. Each history should overlap the one before.
        """
        scaler, names = self.field.scaler, ("least", "highest", "nonnegative", "whole")
        least, highest, *flags = (scaler.part(name, self.device) for name in names)
        bounded, whole = map(torch.as_tensor, flags)
        support = ANY_VALUE if scaler.least else (torch.where(bounded, 0.0, -torch.inf), (bounded & whole).double())
        return OnlineCalibration(support, least, highest, self._identity)

    @property
    def _identity(self) -> dict:
        """Data and settings of both stages."""
        return {part: self.checkpoint[part] for part in ("fingerprint", "mean_config", "config")}

    def _covariates(self, covariates, lead: tuple[int, ...], position: Tensor, length: int) -> Tensor | None:
        """Covariates as (window, H + F, node or 1, covariate), of a frame in the order of training.

        position (window,), length: first step and number of steps of history and horizon.
        Raises: ValueError where they are not those that the model was trained with, at every step.
        """
        names, nodes = tuple(self.field.covariates), self.field.num_nodes
        if isinstance(covariates, pd.DataFrame):
            covariates = self._of_frame(covariates, int(position[0]), length)
        elif isinstance(covariates, list | tuple) and len(covariates) == len(position):
            covariates = [self._of_frame(one, step, length) if isinstance(one, pd.DataFrame) else one
                          for one, step in zip(covariates, position.tolist(), strict=True)]
        if covariates is None and not names:
            return None
        found = real_array(() if covariates is None else covariates, "covariates")
        if found.ndim == len(lead) + 2:
            found = found[..., None, :]
        if not names or found.shape not in [(*lead, length, each, len(names)) for each in (1, nodes)]:
            given = "no covariates" if covariates is None else f"covariates of shape {np.shape(covariates)}"
            raise ValueError(f"{given}; this model was trained with {', '.join(names) or 'none'}: expected "
                             f"(step, covariate) or (step, node, covariate), {length} steps of history and horizon, "
                             "after the window axis if there is one")
        found = found.reshape(-1, *found.shape[len(lead):])
        if (wrong := ~np.isfinite(found)).any():
            window, step, _, covariate = np.argwhere(wrong)[0].tolist()
            time, = self.field.as_text(self.field.times(int(position[window]) + step, 1))
            raise ValueError(f"covariates: {names[covariate]} is missing or infinite at {time}; a forecast needs all")
        return torch.from_numpy(found)

    def _of_frame(self, covariates: pd.DataFrame, position: int, length: int) -> np.ndarray:
        """Covariates of one window from a frame, its columns and times checked.

        Shape: (step, covariate), or (step, node, 1) of one covariate with a column for each node.
        """
        names, nodes = tuple(self.field.covariates), self.field.node_names
        table = from_data_frame(covariates, "covariates", names)
        if by_node := len(names) == 1 and {*(table.node_names or ())} == {*nodes}:
            names = nodes
        if differing := table.node_differences(names).replace("nodes", "columns"):
            raise ValueError(f"covariates: {differing}; the model was trained with {listed(list(names))}")
        if table.times is not None:
            check_zone(table.zone, zone := self.field.time_zone, "covariates")
            wanted = self.field.times(position, length)
            if not np.array_equal(*(clock_of(times, self.field.interval, zone) for times in (table.times, wanted))):
                first, last, begin, end = self.field.as_text(np.concatenate([table.times[[0, -1]], wanted[[0, -1]]]))
                raise ValueError(f"covariates: the index holds {len(table.times)} times from {first} to {last}; "
                                 f"expected {length}, from {begin} to {end}, those of history and horizon")
        values = table.in_order(names).values.numpy()
        return values[..., None] if by_node else values

    def _settings(self, members: int | str, flags: dict) -> dict:
        """The run's settings, with the given ones replaced. Raises: ValueError for unknown or impossible ones."""
        if unknown := [name for name in flags if name not in SAMPLING_FLAGS]:
            raise ValueError(f"{unknown[0]}: no flag of sampling; the flags are {', '.join(SAMPLING_FLAGS)}")
        number = {"members": members} if isinstance(members, str) else {"nsample": members} if members else {}
        if twice := number.keys() & flags.keys():
            raise ValueError(f"members {members}: {twice.pop()} is given too; leave one of them out")
        settings = {**self.checkpoint["config"], **flags, **number}
        return known_settings(settings, TrainConfig, {"sampler": SAMPLERS, "members": MEMBERS}, "forecast")


def labelled(history, start, field: FieldSummary) -> tuple[np.ndarray, np.ndarray]:
    """Histories (..., step, node) with the nodes in the order of a field and NaN for masked values; start times (...).

    The times are objects for `FieldSummary.step_at`.
    Raises: ValueError where labels and field, or labels and `start`, contradict each other, or no time is given.
    """
    if isinstance(start, pd.Index | pd.Series):
        start = list(start)  # as an array, times without a zone would be UTC
    if isinstance(history, list | tuple) and any(isinstance(one, pd.DataFrame) for one in history):
        starts = [None] * len(history) if start is None else list(np.atleast_1d(np.asarray(start)))
        if len(starts) != len(history):
            raise ValueError(f"history_start: {len(starts)} times for {len(history)} histories")
        parts = [labelled(one, begin, field) for one, begin in zip(history, starts, strict=True)]
        if len(shapes := {one.shape for one, _ in parts}) > 1:
            raise ValueError(f"history: windows of shapes {', '.join(map(str, sorted(shapes)))}; expected equal ones")
        return tuple(map(np.stack, zip(*parts, strict=True)))
    if isinstance(history, pd.DataFrame):
        table = match(from_data_frame(history, "history", field.node_names), field, "history")
        for note in table.notes:
            warnings.warn(f"history: {note}", stacklevel=3)
        history = table.values.numpy()
        if table.times is not None:
            if start is not None and field.step_at(start, "history_start") != field.step_at(table.times[0]):
                raise ValueError(f"history_start {start}: the index of the history begins at "
                                 f"{stamp(table.times[0], field.time_zone)}; leave it out")
            start = table.times[0]
    if start is None:
        raise ValueError("history_start: give the time of the first step of the history, or a DataFrame whose index "
                         "holds the times")
    history = real_array(history, "history")
    times = np.asarray(start)
    objects = np.empty(times.size, dtype=object)
    objects[:] = [*times.ravel()]  # those of a datetime64 array stay such
    return history, objects.reshape(times.shape)


def real_array(values, name: str) -> np.ndarray:
    """An array in float64, NaN where it is masked. Raises: ValueError for what is no array of numbers."""
    if hasattr(values, "dims"):
        raise ValueError(f"{name}: {type(values).__name__} with names of its axes; give its .to_pandas(), or its "
                         ".to_numpy() in the order of the run")
    try:
        found = np.ma.asarray(values)
        if found.dtype.kind not in "bMmc":
            return np.ascontiguousarray(np.ma.filled(found.astype(np.float64, copy=False), np.nan))
        problem = f"values of type {found.dtype}"
    except (TypeError, ValueError) as error:
        problem = str(error)
    raise ValueError(f"{name}: {problem}; expected an array of numbers, or a DataFrame")


def load_forecaster(folder: Path | str, device: torch.device | str = "cpu") -> TrainedForecaster:
    """A trained forecaster from the run folder of stage 2, whose checkpoint holds stage 1 and the field too.

    device: cpu, cuda:N, or auto.
    Raises: ValueError for a folder or file that is not such a run, OSError where none is.
    """
    path = Path(folder).expanduser() / CHECKPOINT
    if not path.exists():
        runs = sorted(found.parent.name for found in path.parent.parent.glob(f"*/{CHECKPOINT}"))
        raise FileNotFoundError(f"{folder}: no run is there" + (f"; beside it are {', '.join(runs)}" if runs else ""))
    content = load_checkpoint(path)
    if content.get("stage") != "diffusion":
        raise ValueError(f"{folder}: not a stage-2 run; main_train.py makes one")
    if not path.with_name(METRICS).exists():
        print(f"note: {folder}: the run has not finished, as it has no {METRICS}: these are its weights so far",
              file=sys.stderr)
    device = choose_device(str(device))
    with built_from(path):
        content["config"] = known_settings(content["config"], TrainConfig, {"sampler": SAMPLERS}, path)
        content["mean_config"] = known_settings(content["mean_config"], PretrainConfig, {}, path)
        mean_model = build_mean_model(content["mean_config"], content["data"])
        model = build_forecaster(content["config"], mean_model, content["data"])
        model.load_state_dict(content["weights"])
        field = FieldSummary.from_state(content["field"])
    return TrainedForecaster(model.to(device).eval(), content, field, device)
