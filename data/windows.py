"""Windows of a field in batches: chronological split, scaler of the training part, windows gathered by index."""

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from .climatology import Climatology
from .constants import ANY_VALUE
from .context import Context
from .covariates import Covariates, standardize
from .fields import Field
from .lags import as_text, choose_lags, lagged
from .nodes import nearest_nodes
from .registry import DATASETS
from .scaling import BLOCK, UNLIKE, NodeStatistics, Scaler, as_real, by_node
from .stamps import local_times, parse_time
from .table import MEMORY_LIMIT, listed

SPLITS = ("train", "validation", "test")
FINGERPRINT_VALUES = 1 << 24


@dataclass(frozen=True)
class WindowSettings:
    """Flags, see `split_windows`, `WindowedField`, `NodeStatistics.scaler`, `lags.choose_lags`; support: any values,
    only `nonnegative` ones, or those of the card of the field (auto)."""

    split: str = ""
    training_span: str = "targets"
    scaling: str = "field"
    lags: str = "none"
    highest: float | None = None
    support: str = "auto"


@dataclass(frozen=True)
class Batch:
    """Some windows: what a forecast may see of them, and their futures."""

    context: Context
    future: Tensor  # (batch, F, node), standardized; the climatology where a value is missing
    start: Tensor  # (batch,), the first step of each window in the series, which identifies it in every split
    truth: Tensor | None = None  # (batch, F, node), the future in physical units, NaN where missing; not in a forecast
    rows: tuple[int, int, int] | None = None  # first, last and total, of a batch that several processes share
    weight: float = 1.0  # number of these rows over that of an average process

    @property
    def target_mask(self) -> Tensor | None:
        """Which values of the future count in a loss or score: (batch, F, node); None: all."""
        return self.context.target_mask

    @functools.cached_property
    def counts(self) -> Tensor:
        """1 where a value of the future counts, else 0: (batch, F, node)."""
        return torch.ones_like(self.future) if self.target_mask is None else self.target_mask.to(self.future.dtype)

    @classmethod
    def join(cls, batches: Iterable["Batch"]) -> "Batch":
        """The windows of several batches as one, without covariates."""
        contexts, *parts = zip(*((replace(batch.context, covariates=None), batch.future, batch.start)
                                 for batch in batches), strict=True)
        return cls(Context.join(contexts), *map(torch.cat, parts))

    @classmethod
    def of(cls, window: Tensor, history_len: int, calendar: Tensor, climatology: Tensor, start: Tensor, masked: bool,
           covariates: Tensor | None = None, lagged: Tensor | None = None, part_known: bool = False) -> "Batch":
        """The batch of windows (batch, H + F, node), or (batch, H, node) without a future.

        The climatology replaces NaN: of a field with gaps (`masked`), of futures of which only a part is known
        (`part_known`), and of `lagged` values (batch, H + F, node, lag). Other shapes: see `Context`.
        """
        observed = target_mask = None
        if masked or part_known:
            values = ~window.isnan()
            window = torch.where(values, window, climatology[:, :window.shape[1]])
            observed, target_mask = values[:, :history_len] if masked else None, values[:, history_len:]
        if lagged is not None:
            lagged = torch.where(lagged.isnan(), climatology.unsqueeze(-1), lagged)
        context = Context(window[:, :history_len], calendar, climatology, observed, target_mask, covariates, lagged)
        return cls(context, window[:, history_len:], start)


class WindowedField:
    """All windows of a field, split in time, copied batch by batch.

    starts    first step of every window, by split
    training  the part of the series that training windows see: every statistic is measured on it
    measured  the part that scaler and fluctuation scale are estimated from: `training`, or as published
              (`training_span` "histories") the part that the histories of the training windows see
    alike     whether nodes have about one scale, see `NodeStatistics.unlike`
    """

    def __init__(self, field: Field, history_len: int, predict_len: int, settings: WindowSettings = WindowSettings(),
                 covariates: Covariates | None = None, device: torch.device | str = "cpu"):
        self.history_len, self.predict_len, self.device = history_len, predict_len, device
        self.starts, training_steps = split_windows(field, history_len, predict_len, settings.split)
        self.training = field.values[:training_steps]
        if field.masked:
            seen = sum((~block.isnan()).sum(0) for block in self.training.split(BLOCK))
            if unseen := [field.node_names[node] for node in (seen == 0).nonzero().flatten()]:
                raise ValueError(f"{field.name}: {len(unseen)} of {len(seen)} nodes have no value in the "
                                 f"{training_steps} steps that train ({listed(unseen)}): leave them out of the file")
            first, last = (int(self.starts["validation"][end]) + history_len for end in (0, -1))
            if field.values[first:last + predict_len].isnan().all():
                raise ValueError(f"{field.name}: no target of the validation windows has a value, at the steps {first} "
                                 f"to {last + predict_len - 1}: choose another --split")
        self.measured = self.training if settings.training_span == "targets" else self.training[:-predict_len]
        self.num_nodes = field.values.shape[1]
        self.field = self._fit_scaler(field, settings.scaling, settings.support)
        if (highest := settings.highest) is not None:
            largest = float(by_node(field.values, torch.amax).max())
            if largest > max(highest, self.scaler.stored(highest)):
                raise ValueError(f"--highest {highest:g}: {field.name} has values up to {largest:g}")
            bounds = np.broadcast_to(np.minimum(self.scaler.highest, highest), self.num_nodes)
            self.scaler = replace(self.scaler, highest=tuple(bounds.tolist()))
        self.nearest_nodes = functools.cache(functools.partial(nearest_nodes, field))  # by their number
        self._values = field.values.to(device) if field.values.numel() * 4 <= MEMORY_LIMIT else field.values
        self.window_device = self._values.device  # where windows are gathered: the CPU for a memory map
        self._slots = field.calendar.slots.to(self.window_device)
        self._offsets = torch.arange(history_len + predict_len, device=self.window_device)
        self._covariates, self.covariate_scalers, self.covariate_ranges = None, {}, {}
        if covariates is not None:
            seen = dict(zip(covariates.names, covariates.values[:training_steps].unbind(-1), strict=True))
            self.covariate_scalers = {name: Scaler.fit(values) for name, values in seen.items()}
            self.covariate_ranges = {name: (float(values.min()), float(values.max())) for name, values in seen.items()}
            self._covariates = standardize(covariates.values, self.covariate_scalers).to(self.window_device)
        self.lags = choose_lags(settings.lags, field.spec.interval, predict_len, self.training)
        (_, self._evaluated_from), *evaluated = field.segments
        references = [(0, training_steps)] + [(first, first + field.spec.validation_steps) for first, _ in evaluated]
        self._climatology = Climatology(self._values, self._slots[:, 0], field.calendar.sizes[0], self.scaler,
                                        references, field.masked)

    def _fit_scaler(self, field: Field, scaling: str, support: str) -> Field:
        """Fit `scaler` and `alike`; the field with its support, and with notes on both."""
        nonnegative = {"auto": field.spec.nonnegative, "any": False, "nonnegative": True}[support]
        if support == "nonnegative" and (lowest := by_node(field.values, torch.amin).min()) < 0:
            raise ValueError(f"--support nonnegative: {field.name} has values down to {lowest:g}; leave the flag out")
        if scaling == "field" and field.name in DATASETS:
            self.scaler, self.alike, notes = Scaler.fit(self.measured), True, []
        else:
            statistics = NodeStatistics.of(self.measured)
            self.alike = not bool(statistics.unlike().any())
            self.scaler = statistics.scaler(self.measured, scaling, self.predict_len)
            if nonnegative is not False and field.name not in DATASETS:
                self.scaler = replace(self.scaler, highest=statistics.upper_bounds(self.measured, field.values))
            notes = notes_on_scale(statistics, self.scaler, scaling, field)
            if self.scaler.least and (lowest := by_node(field.values, torch.amin).min()) <= 0:
                notes.append(f"the logarithms of values are used, as training values are positive, but later there are "
                             f"values down to {lowest:g}: no forecast is below 0; see --scaling")
        overall = nonnegative
        if nonnegative is None:
            from_zero, lowest = (by_node(values, torch.amin) for values in (self.training, field.values))
            if not self.scaler.by_node:
                from_zero, lowest = from_zero.min(), lowest.min()
            from_zero = from_zero == 0
            if bool((from_zero & (lowest < 0)).any()):
                notes.append(f"the smallest training value is 0, but later there are values down to "
                             f"{lowest.min():g}: forecasts may be negative too")
            bounded = from_zero & (lowest >= 0)
            nonnegative = tuple(bounded.tolist()) if self.scaler.by_node else bool(bounded)
            overall = bool(bounded.all())
        self.scaler = replace(self.scaler, nonnegative=nonnegative)
        return replace(field, spec=replace(field.spec, nonnegative=overall)).with_notes(*notes)

    @property
    def support(self) -> tuple[float, float] | tuple[Tensor, Tensor]:
        """Smallest value of the field and distance between two values (0: none), standardized; (node,) if `by_node`."""
        return self.support_where(self.scaler.nonnegative)

    def support_where(self, nonnegative: bool | tuple[bool, ...]) -> tuple[float, float] | tuple[Tensor, Tensor]:
        bounded, scaler, zero = torch.tensor(nonnegative), self.scaler, self.scaler.zero()
        if scaler.least or not bounded.any():
            return ANY_VALUE
        if not scaler.by_node:
            return float(zero), 1 / scaler.std if scaler.whole else 0.0
        bounded = bounded.expand(len(zero))
        step = torch.where(bounded & torch.tensor(scaler.whole), 1 / torch.tensor(scaler.std), 0.0)
        return torch.where(bounded, zero, ANY_VALUE[0]).to(self.device), step.to(self.device)

    @property
    def climatology(self) -> Tensor:
        """Climatology of each slot of the calendar's first cycle, for windows after the data: (slot, node)."""
        return self._climatology.means[-1].clone()  # a checkpoint holds no other segment

    @functools.cached_property
    def fingerprint(self) -> dict:
        """Identity of these data: times, split, names of nodes, and digests of covariates and evenly spread values."""
        def digest(content: bytes) -> str:
            return sha256(content).hexdigest()[:16]

        values, calendar = self.field.values, self.field.calendar
        count = min(len(values), max(1, FINGERPRINT_VALUES // self.num_nodes))
        steps = torch.linspace(0, len(values) - 1, count, dtype=torch.float64).round().long()
        precision = "datetime64[M]" if self.field.spec.interval[1] == "month" else "datetime64[m]"
        first, last = (str(time.astype(precision).astype("datetime64[m]")) + calendar.zone
                       for time in calendar.times[[0, -1]])
        found = {"first_time": first, "last_time": last,
                 "windows": {split: [int(starts[0]), int(starts[-1])] for split, starts in self.starts.items()},
                 "node_names_sha256": digest("\n".join(self.field.node_names).encode()),
                 "values_sha256": digest(as_real(values[steps]).numpy().tobytes())}
        if self._covariates is not None:
            found["covariates_sha256"] = digest(self._covariates[:len(values)].cpu().numpy().tobytes())
        return found

    def metadata(self) -> dict:
        """What a model depends on: stage 2 refuses a stage-1 model of other metadata."""
        support = self.support
        mean, std = (sum(part) / len(part) if isinstance(part, tuple) else part
                     for part in (self.scaler.mean, self.scaler.std))
        return {"num_nodes": self.num_nodes, "calendar_sizes": list(self.field.calendar.sizes),
                "scaler_mean": mean, "scaler_std": std,
                "support": None if support is ANY_VALUE else [
                    part.tolist() if isinstance(part, Tensor) else part for part in support],
                "masked": self.field.masked,
                "covariates": {name: scaler.mean for name, scaler in self.covariate_scalers.items()},
                "lag_steps": as_text(self.lags)}

    def local_times(self, start: int) -> np.ndarray:
        """Stamps of the window that begins at `start`, in local time: (H + F,)."""
        calendar = self.field.calendar
        return local_times(calendar.times[start:start + self.history_len + self.predict_len], calendar.zone)

    def batch(self, starts: Tensor, known_until: int | None = None) -> Batch:
        """The windows that begin at `starts` (batch,), gathered by one indexing operation.

        Targets from the step `known_until` on, if given, count as missing.
        """
        starts = starts.to(self.window_device)
        steps = starts.unsqueeze(1) + self._offsets
        physical = as_real(self._values[steps]).to(self.device)
        if known_until is not None:
            physical = physical.masked_fill((steps >= known_until).unsqueeze(-1).to(self.device), torch.nan)
        calendar = self._slots[starts + self.history_len - 1].to(self.device)
        climatology = self._climatology(steps, self._segment(starts), self.history_len).to(self.device)
        batch = Batch.of(self.scaler.standardize(physical), self.history_len, calendar, climatology,
                         starts.to(self.device), self.field.masked,
                         None if self._covariates is None else self._covariates[steps].to(self.device),
                         self._lagged(steps) if self.lags else None, known_until is not None)
        return replace(batch, truth=physical[:, self.history_len:])

    def _lagged(self, steps: Tensor) -> Tensor:
        """Values `lags` earlier than `steps` (batch, step), NaN before the segment: (batch, step, node, lag)."""
        first = self._segment(steps[:, :1]) * self._evaluated_from

        def values(distance: int) -> Tensor:
            earlier = steps - distance
            found = self.scaler.standardize(self._values[earlier.clamp_min(0)])
            return torch.where((earlier >= first).unsqueeze(-1), found, torch.nan)

        return lagged(self.lags, values).to(self.device)

    def standardized(self, steps: Tensor) -> Tensor:
        """Values at any steps of the series, gaps filled with the mean of their slot: (*steps.shape, node)."""
        steps = steps.to(self.window_device)
        values = self.scaler.standardize(self._values[steps])
        if self.field.masked:
            mean = self._climatology.means[self._segment(steps), self._slots[steps, 0]]
            values = torch.where(values.isnan(), mean, values)
        return values.to(self.device)

    def _segment(self, steps: Tensor) -> Tensor:
        return (steps >= self._evaluated_from).long()

    def batches(self, split: str, batch_size: int, generator: torch.Generator | None = None,
                limit: int = 0) -> "WindowBatches":
        """Batches of a split in time order, or shuffled; of `limit` windows: evenly spread, or the first shuffled."""
        starts = self.starts[split]
        if generator is None:
            return WindowBatches(self, evenly(starts, limit), batch_size)
        return WindowBatches(self, starts[torch.randperm(len(starts), generator=generator)][:limit or None], batch_size)

    def calibration(self, batch_size: int, limit: int = 0) -> "WindowBatches":
        """Batches of the windows from the first of validation to the last before the test; targets after it are masked.

        They hold every value of validation that is known when the first test window is forecast. Statistics that are
        applied to the test (spreads, residuals, recalibration) are measured on them.
        """
        first, test = (int(self.starts[split][0]) for split in SPLITS[1:])
        return WindowBatches(self, evenly(torch.arange(first, test), limit), batch_size,
                             known_until=test + self.history_len)


@dataclass(frozen=True)
class WindowBatches:
    """Batches of chosen windows, each window once; the last batch may be smaller."""

    data: WindowedField
    starts: Tensor
    batch_size: int
    sharer: tuple[int, int] = (0, 1)  # number of the process, and of the processes that share each batch
    known_until: int | None = None  # see `WindowedField.batch`

    def __len__(self) -> int:
        return -(-len(self.starts) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """The batches; of shared ones the rows of this process. One without any computes the first row at weight 0."""
        rank, count = self.sharer
        for chosen in self.starts.to(self.data.window_device).split(self.batch_size):
            total = len(chosen)
            first, last = rank * total // count, (rank + 1) * total // count
            weight = (last - first) * count / total
            if first == last:
                first, last = 0, 1
            yield replace(self.data.batch(chosen[first:last], self.known_until), weight=weight,
                          rows=(first, last, total) if count > 1 else None)

    def share_batches(self, rank: int, count: int) -> "WindowBatches":
        """The same batches, reduced to the rows of process `rank` of `count`."""
        return replace(self, sharer=(rank, count))

    def share_windows(self, rank: int, count: int) -> "WindowBatches":
        """Batches of the windows of process `rank` of `count`, every window in one. Raises: ValueError for none."""
        if len(self.starts) < count:
            raise ValueError(f"{count} processes cannot share {len(self.starts)} windows: start fewer processes")
        return replace(self, starts=self.starts.tensor_split(count)[rank])


def evenly(starts: Tensor, limit: int) -> Tensor:
    """At most `limit` of the windows, evenly spread; all of them where it is 0."""
    if not 0 < limit < len(starts):
        return starts
    return starts[torch.linspace(0, len(starts) - 1, limit).round().long()]


def split_windows(field: Field, history_len: int, predict_len: int,
                  split: str = "") -> tuple[dict[str, Tensor], int]:
    """First steps of the windows of each split, and the number of steps that training windows cover.

    One field: all windows in time order, shares 6:2:2 or those of `split` ("0.7,0.1,0.2"). Or `split` holds the times
    at which validation and test begin ("2013-09-01,2013-11-01"): then no target belongs to two splits.
    A pair of fields: the first one for training, the first `validation_steps` of the second for validation, its
    other steps for the test.
    Raises: ValueError where a split would be empty, or no validation window would have all its targets before the test.
    Source: CoST section 5.1 and the authors' release.
    """
    length = history_len + predict_len
    starts = {name: torch.arange(first, max(last - length + 1, first))
              for name, (first, last) in zip(SPLITS, _parts(field, split, history_len, length), strict=True)}
    for name, found in starts.items():
        if len(found) == 0:
            by_split, other = (f" by --split {split}", ", another split") if split else ("", "")
            raise ValueError(f"{field.name}: no {name} window{by_split}: {len(field.values)} steps in all, a window "
                             f"takes --history_len {history_len} + --predict_len {predict_len} = {length}; choose "
                             f"shorter lengths{other} or a longer series")
    if int(starts["test"][0] - starts["validation"][0]) < predict_len:
        raise ValueError(f"{field.name}: futures of all validation windows and the first test window would overlap: "
                         f"{len(starts['validation'])} validation windows, --predict_len {predict_len} needs "
                         f"{predict_len}; choose shorter lengths, or by --split more for validation")
    return starts, int(starts["train"][-1]) + length


def _parts(field: Field, split: str, history_len: int, length: int) -> list[tuple[int, int]]:
    """Half-open ranges of the steps of which training, validation and test windows consist."""
    steps, given = len(field.values), (split or "0.6,0.2,0.2").split(",")
    if len(field.segments) == 2:
        if split:
            raise ValueError(f"--split {split}: {field.name} is split by field: trained on one, evaluated on another")
        (_, first), (_, end) = field.segments
        second = first + field.spec.validation_steps
        return [(0, first), (first, second), (second, end)]
    try:
        shares = [float(part) for part in given]
    except ValueError:
        shares = []
    if len(given) == 2 and not 0 < sum(shares) <= 2:  # a year is a number too
        first, second = (int(np.searchsorted(field.calendar.times, parse_time(part, "--split", field.calendar.zone)))
                         for part in given)
        if first >= second:
            raise ValueError(f"--split {split}: validation must begin before the test, both within the data")
        return [(0, first), (max(first - history_len, 0), second), (max(second - history_len, 0), steps)]
    if len(shares) != 3 or not min(shares) > 0 or not abs(sum(shares) - 1) < 1e-6:
        raise ValueError(f"--split {split}: expected three shares that add up to 1, as 0.6,0.2,0.2, or the two times "
                         "at which validation and test begin, as 2013-09-01,2013-11-01")
    windows = max(steps - length + 1, 0)
    train, validation = round(shares[0] * windows), round(shares[1] * windows)
    bounds = (0, train, train + validation, windows)
    return [(first, end + length - 1) for first, end in itertools.pairwise(bounds)]


def notes_on_scale(statistics: NodeStatistics, scaler: Scaler, scaling: str, field: Field) -> list[str]:
    """Notes on nodes that differ in scale or are constant, outliers, spreads near the type's resolution, and bounds."""
    names, constant = field.node_names, statistics.low == statistics.high
    if constant.any():
        constant &= by_node(field.values, torch.amin) < by_node(field.values, torch.amax)
    unlike = "each node is scaled by its own mean and spread" + ", those of its logarithm" * bool(scaler.least)
    if not scaler.by_node:
        unlike = (f"one scale for all, as --scaling {scaling} says: nodes of small values have little weight; "
                  "--scaling node gives each its own")
    outlying = "they widen the scale, as --scaling field says" if scaling == "field" else (
        "its scale leaves them out, and they are clipped for the networks; scores use them unchanged")
    texts = (
        (statistics.unlike(), f"level or spread of {{}} differ by more than {UNLIKE:g} times from the spread of the "
         f"field: {unlike}"),
        (statistics.outlying & (scaler.least is None), f"a few values of {{}} are far from all others of the node: "
         f"{outlying}"),
        (statistics.unresolved, "the spread of {} is about the resolution of the file's numbers at that level: store "
         "the values in float64, or without the level"),
        (constant, "{} have one value in the training part and others later: forecasts of them hardly vary"),
        (torch.tensor(scaler.highest) < torch.inf, "{} mostly have their largest value: no forecast is above it; see "
         "--support"),
    )
    return [text.format(f"{int(chosen.sum())} of {len(names)} nodes "
                        f"({listed([names[node] for node in chosen.nonzero().flatten()])})")
            for chosen, text in texts if chosen.any()]
