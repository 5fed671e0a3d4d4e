"""What a forecaster remembers of its field, so that it needs no data file: a part of its checkpoint."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from .calendar import MINUTES, in_words, make_calendar, parse_time
from .covariates import standardize
from .scaling import BLOCK, Scaler
from .windows import Batch, WindowedField


@dataclass(frozen=True)
class FieldSummary:
    """Names, units and time axis of a field, its scaler and its climatology.

    interval       (count, unit) of a step, as on the card of the dataset
    start          time of the first step of the evaluated segment (the only one of most fields), ISO format
    first_step     position of that step in the series of all segments: windows are numbered from it
    trained_steps  leading steps of the series that training windows saw
    test_step      first step of the first test window
    grid           (rows, columns) where the nodes are its places in row-major order, or those of them in `kept`
    axes           latitudes of the rows and longitudes of the columns, where they are that regular
    coordinates    (node, 2) latitude and longitude in degrees
    climatology    (slot, node), standardized: what is usual in each slot of the calendar's first cycle, measured
                   on the reference of the evaluated segment, see `data.climatology`
    masked         whether values may be missing: NaN in a history
    value_range    smallest and largest value of the training part
    covariates     by name, with their scalers
    lags           steps between a value and the earlier one that is seen with it, shortest first
    """

    name: str
    unit: str
    cf_unit: str
    interval: tuple[int, str]
    start: str
    first_step: int
    trained_steps: int
    test_step: int
    node_names: tuple[str, ...]
    grid: tuple[int, int] | None
    axes: tuple[Tensor, Tensor] | None
    kept: Tensor | None
    coordinates: Tensor | None
    scaler: Scaler
    climatology: Tensor
    masked: bool
    covariates: dict[str, Scaler]
    value_range: tuple[float, float]
    lags: tuple[int, ...] = ()

    @classmethod
    def of(cls, data: WindowedField) -> "FieldSummary":
        field, (first, _) = data.field, data.field.segments[-1]
        spec = field.spec
        return cls(
            field.name, spec.unit, spec.cf_unit or spec.unit, spec.interval, str(field.calendar.times[first]), first,
            len(data.training), int(data.starts["test"][0]), field.node_names, field.grid,
            field.axes and tuple(map(torch.as_tensor, field.axes)), *map(_tensor, (field.kept, field.coordinates)),
            data.scaler, data.usual.cpu(), field.masked, data.covariate_scalers, _range(data.training),
            data.lags,
        )

    @classmethod
    def from_state(cls, state: dict) -> "FieldSummary":
        covariates = {name: Scaler(**scaler) for name, scaler in state["covariates"].items()}
        return cls(**{**state, "scaler": Scaler(**state["scaler"]), "covariates": covariates})

    def state(self) -> dict:
        """Numbers and text only: what a checkpoint can hold."""
        return asdict(self)

    @property
    def num_nodes(self) -> int:
        return len(self.node_names)

    @property
    def reach(self) -> int:
        """Steps before the history that a forecast looks back to."""
        return max(self.lags, default=0)

    def doubt(self, history: Tensor) -> str:
        """What makes one doubt that a history (..., node), in physical units, is of this field; "" where nothing does.

        That is values beyond those of the training part by more than these lie apart.
        """
        (lowest, highest), (low, high) = _range(history), self.value_range
        if low - (high - low) <= lowest and highest <= high + (high - low):
            return ""
        return (f"the history holds values from {lowest:.6g} to {highest:.6g}, the training part held {low:.6g} to "
                f"{high:.6g} ({self.unit}): is it in another unit?")

    def step_at(self, time: np.datetime64 | str) -> int:
        """Position in the series of the step at a time; also before its beginning and after its end.

        Raises: ValueError where no step begins then.
        """
        clock, length = self._clock
        if isinstance(time, str):
            time = parse_time(time, "history_start")
        passed = np.datetime64(time, clock) - np.datetime64(self.start, clock)
        steps, rest = divmod(passed.astype(int), length)
        if rest:
            raise ValueError(f"{time}: no step begins then; a step takes {in_words(self.interval)}, one begins at "
                             f"{self.start}")
        return self.first_step + int(steps)

    def times(self, step: int, count: int) -> np.ndarray:
        """Times of `count` steps from the one at position `step`: (count,) of datetime64."""
        return make_calendar(self._time(step), self.interval, count).times

    def batch(self, history: Tensor, step: Tensor, predict_len: int, covariates: Tensor | None = None) -> Batch:
        """Windows whose future is not known: histories (batch, reach + H, node), of which the last H steps, from the
        positions `step` (batch,) on, are the windows'.

        The same as `WindowedField.batch` gives for windows outside the reference of the climatology, but for the
        future, which is empty. covariates (batch, H + F, node or 1, covariate). Units: physical.
        """
        whole = self.scaler.standardize(history)
        history_len = whole.shape[1] - self.reach
        length = history_len + predict_len
        slots = torch.stack([make_calendar(self._time(one), self.interval, length).slots for one in step.tolist()])
        climatology = self.climatology[slots[..., 0]].to(history.device)
        if covariates is not None:
            covariates = standardize(covariates, self.covariates).to(history.device)
        lagged = [whole[:, self.reach - lag:][:, :length] for lag in self.lags]
        return Batch.of(whole[:, self.reach:], history_len, slots[:, history_len - 1].to(history.device), climatology,
                        step.to(history.device), self.masked, covariates,
                        torch.stack(lagged, dim=-1) if lagged else None)

    @property
    def _clock(self) -> tuple[str, int]:
        """NumPy's unit that the interval is counted in, and how many of it make a step."""
        count, unit = self.interval
        return ("M", count) if unit == "month" else ("s", 60 * count * MINUTES[unit])

    def _time(self, step: int) -> str:
        """Time of the step at a position, ISO format."""
        clock, length = self._clock
        return str(np.datetime64(self.start, clock) + (step - self.first_step) * length)


def _range(values: Tensor) -> tuple[float, float]:
    """Smallest and largest of the values that are not missing; 0 and 0 where all are."""
    seen = [block[~block.isnan()] for block in values.float().split(BLOCK)]
    ends = [(float(block.min()), float(block.max())) for block in seen if len(block)]
    return min((low for low, _ in ends), default=0.0), max((high for _, high in ends), default=0.0)


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.as_tensor(array)
