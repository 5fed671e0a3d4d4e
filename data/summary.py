"""The part of a checkpoint that describes the field, so that a forecast needs no data file."""

from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from .calendar import Calendar, clock_of, in_words, make_calendar, step_size
from .covariates import standardize
from .lags import Lags, lagged
from .scaling import Scaler, by_node
from .stamps import PLAIN, local_times, parse_time, stamp, stamps_as_text
from .windows import Batch, WindowedField


def far_outside(values: Tensor, lowest: Tensor | float, highest: Tensor | float) -> Tensor:
    """Which values are outside of a range by more than its width."""
    return (values < 2 * lowest - highest) | (values > 2 * highest - lowest)


@dataclass(frozen=True)
class FieldSummary:
    """Names, units and time axis of a field, its scaler and its climatology. See also `table.Table`."""

    name: str
    unit: str
    cf_unit: str
    interval: tuple[int, str]
    start: str  # time of the first step of the evaluated segment, on the clock of `calendar.make_calendar`
    first_step: int  # position of that step in the series of all segments: windows are numbered from it
    trained_steps: int  # leading steps of the series that training windows saw
    test_step: int  # first step of the first test window
    node_names: tuple[str, ...]
    grid: tuple[int, int] | None
    axes: tuple[Tensor, Tensor] | None
    kept: Tensor | None
    coordinates: Tensor | None
    scaler: Scaler
    climatology: Tensor  # (slot of the calendar's first cycle, node), standardized, see `data.climatology`
    masked: bool  # whether values may be missing: NaN in a history
    covariates: dict[str, Scaler]
    value_range: tuple  # smallest and largest value of the training part; two tuples (node,) where `scaler.by_node`
    lags: Lags = ()  # of the earlier values that networks see
    time_zone: str = ""
    rule: tuple = PLAIN
    covariate_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)  # as value_range

    @classmethod
    def of(cls, data: WindowedField) -> "FieldSummary":
        field, spec, (first, _) = data.field, data.field.spec, data.field.segments[-1]
        low, high = (by_node(data.training, end) for end in (torch.amin, torch.amax))
        value_range = float(low.min()), float(high.max())
        if data.scaler.by_node:
            value_range = tuple(low.tolist()), tuple(high.tolist())
        return cls(
            field.name, spec.unit, spec.cf_unit or spec.unit, spec.interval,
            str(clock_of(field.calendar.times[[first]], spec.interval, spec.time_zone)[0].astype("datetime64[m]")),
            first, len(data.training), int(data.starts["test"][0]), field.node_names, field.grid,
            field.axes and tuple(map(torch.as_tensor, field.axes)),
            *(array if array is None else torch.as_tensor(array) for array in (field.kept, field.coordinates)),
            data.scaler, data.climatology.cpu(), field.masked, data.covariate_scalers,
            value_range, data.lags, spec.time_zone, spec.rule, data.covariate_ranges,
        )

    @classmethod
    def from_state(cls, state: dict) -> "FieldSummary":
        """Raises: TypeError where the coordinates are not (node, 2), other errors where a part is missing."""
        if state["coordinates"] is not None and state["coordinates"].shape != (len(state["node_names"]), 2):
            raise TypeError(f"coordinates of shape {tuple(state['coordinates'].shape)}")
        covariates = {name: Scaler(**scaler) for name, scaler in state["covariates"].items()}
        return cls(**{**state, "scaler": Scaler(**state["scaler"]), "covariates": covariates})

    def state(self) -> dict:
        return asdict(self)

    @property
    def num_nodes(self) -> int:
        return len(self.node_names)

    @property
    def max_lag(self) -> int:
        return max(map(max, self.lags), default=0)

    def range_warning(self, history: Tensor) -> str:
        """A warning where values of a history (..., node) are beyond the bounds of the forecasts, or outside of the
        training range by more than its width; of logarithms, where the scaler takes them.
        """
        history = history.flatten(0, -2)
        low, high = (torch.tensor(end, dtype=history.dtype).expand(self.num_nodes) for end in self.value_range)
        values, lowest, highest = (each.clamp_min(0).log() if self.scaler.least else each
                                   for each in (history, low, high))
        beyond = far_outside(values, lowest, highest).any(0)
        bound, nonnegative = (torch.as_tensor(self.scaler.part(name, "cpu")) for name in ("highest", "nonnegative"))
        outside = ((history > bound) | (history < 0) & nonnegative).any(0)
        if not (beyond | outside).any():
            return ""
        node = int((beyond if beyond.any() else outside).byte().argmax())
        lowest, highest = history[~history[:, node].isnan(), node].aminmax()
        return (f"the history holds values of node {self.node_names[node]} from {lowest:.6g} to {highest:.6g}, the "
                f"training part held {low[node]:.6g} to {high[node]:.6g} ({self.unit}): "
                + ("is it in another unit?" if beyond[node] else "forecasts keep the bounds of the run"))

    def covariate_warning(self, covariates: Tensor) -> str:
        """A warning where values of a covariate (..., covariate) are outside of its training range by its width."""
        for values, (name, (low, high)) in zip(covariates.unbind(-1), self.covariate_ranges.items(), strict=False):
            if far_outside(values, low, high).any():
                return (f"covariate {name} has values from {values.min():.6g} to {values.max():.6g}, the training part "
                        f"held {low:.6g} to {high:.6g}: is it in another unit?")
        return ""

    def step_at(self, time: np.datetime64 | str, flag: str = "time") -> int:
        """Position in the series of the step at a time, which may be before its beginning or after its end.

        A text without an offset is local time; a datetime64 is UTC where there is a time zone. Of a month any day may
        be given; with a time zone at midnight, or at the time of day of the stamps.
        Raises: ValueError that begins with the flag where no step begins at that time.
        """
        if not isinstance(time, np.datetime64):
            time = parse_time(str(time), flag, self.time_zone)
        time = time.astype("datetime64[s]")
        clock, = clock_of(np.array([time]), self.interval, self.time_zone)
        steps, after = divmod(clock - np.datetime64(self.start).astype(clock.dtype), step_size(self.interval))
        step = self.first_step + int(steps)
        if self.interval[1] == "month" and self.time_zone:
            both = local_times(np.array([time, self.times(step, 1)[0]], dtype="datetime64[s]"), self.time_zone)
            own, of_stamps = (both - both.astype("datetime64[D]")).astype(int)
            after = own and own != of_stamps
        if after and self.times(step, 1)[0] != time:
            first = stamp(self.times(self.first_step, 1)[0], self.time_zone)
            raise ValueError(f"{flag} {stamp(time, self.time_zone)}: no step begins then; a step takes "
                             f"{in_words(self.interval)}, one begins at {first}")
        return step

    def times(self, step: int, count: int) -> np.ndarray:
        """Stamps of `count` steps from the one at position `step`: (count,), UTC where there is a time zone."""
        return self.calendar(step, count).times

    def batch(self, history: Tensor, step: Tensor, predict_len: int, covariates: Tensor | None = None) -> Batch:
        """Windows with an empty future, else as by `WindowedField.batch`.

        history (batch, max_lag + H, node), whose last H steps begin at the positions `step` (batch,); covariates
        (batch, H + F, node or 1, covariate). Units: physical.
        """
        whole = self.scaler.standardize(history)
        history_len = whole.shape[1] - self.max_lag
        length = history_len + predict_len
        slots = torch.stack([self.calendar(one, length).slots for one in step.tolist()])
        climatology = self.climatology[slots[..., 0]].to(history.device)
        if covariates is not None:
            covariates = standardize(covariates, self.covariates).to(history.device)
        earlier = lagged(self.lags, lambda lag: whole[:, self.max_lag - lag:][:, :length]) if self.lags else None
        return Batch.of(whole[:, self.max_lag:], history_len, slots[:, history_len - 1].to(history.device), climatology,
                        step.to(history.device), self.masked, covariates, earlier)

    def as_text(self, times: np.ndarray) -> np.ndarray:
        return stamps_as_text(times, self.time_zone)

    def calendar(self, step: int, count: int) -> Calendar:
        """Slots and stamps of `count` steps from the one at position `step`."""
        return make_calendar(self.start, self.interval, count, self.time_zone, self.rule, step - self.first_step)
