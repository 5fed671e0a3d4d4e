"""Physical units to standardized ones and back."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

BLOCK = 1024  # time steps read at once, so that a memory map stays on disk
WHOLE_WITHIN = 1e-3, 1e-6  # absolute, and as a share of the value and of the mean
LOST = 1e-5  # share of a value that the rounding of standardized ones may be
LARGEST_WHOLE = 2.0**24  # every larger float32 is a whole number
UNLIKE = 10.0  # ratio of spreads, or distance in spreads of the field, from which a node needs a scale of its own
EXTREMES = 3, 1 / 500, 1 / 10  # number of values of a node that may be outliers: at least, as a share, and at most
OUTLYING = 3.0  # smallest ratio of the spread of all values of a node with outliers to that of the others
BEYOND = 2.0  # outliers are cut at this multiple of the largest distance of another value from the mean
NORMAL_QUARTILES = 1.349  # distance of the quartiles of a normal distribution, in standard deviations
EVIDENCE = 2.0  # for logarithms: twice this is beyond the 95 % quantile of a chi-squared variable
SAMPLE = 20_000, 64  # most steps and nodes of a `recent` part
FINE = 10.0  # smallest value of whole numbers, in steps, whose logarithm varies smoothly enough
LEAST_SHARE, MOST = 0.1, 1000.0  # of the smallest and largest training value of a node, where logarithms are cut
ATOM, LEAST_EQUAL = 0.5, 5  # least share and number of training values of a node that equal its largest one, a bound
LEAST_LOG_SPREAD = 1e-3  # standard deviation of logarithms; a node that varies less may vary more later


def add_at(table: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """table[index] += values, in place. Rows of an index add up in their order, so that results are reproducible."""
    if table.is_cuda:  # where index_add_ has no fixed order; on a CPU index_put_ has none
        return table.index_put_((index,), values, accumulate=True)
    return table.index_add_(0, index, values)


@dataclass(frozen=True)
class Scaler:
    """Mean and standard deviation of the field, or of each node (then parts may be tuples, one entry for a node).

        standardized = (physical - mean) / std,    cut at +-limit

    With `least`, values are replaced by their logarithms, those below `least` by that of `least`. Missing values (NaN)
    are left out. Of whole numbers (counts) `physical` rounds values within the rounding error of float32, so that equal
    counts stay equal. `least` and a finite `highest` always have an entry for each node.
    """

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    whole: bool | tuple[bool, ...] = False  # training values are whole numbers
    limit: float | tuple[float, ...] = math.inf  # finite where there are outliers, which mean and std then leave out
    nonnegative: bool | tuple[bool, ...] = False  # `physical` gives no value below 0
    precise: bool = False  # the values are stored in float64: so are differences from the mean
    least: tuple[float, ...] | None = None
    highest: float | tuple[float, ...] = math.inf  # `physical` gives no value above it

    @classmethod
    def fit(cls, training: Tensor) -> "Scaler":
        """One mean and spread for all training values (time, node), as published; std 1 for a constant field."""
        count = sum(block.numel() - int(block.isnan().sum()) for block in training.split(BLOCK))
        mean = sum(float(block.double().nansum()) for block in training.split(BLOCK)) / count
        square = sum(float((block.double() - mean).square().nansum()) for block in training.split(BLOCK))
        std = (square / count) ** 0.5
        return cls(mean, std if std > 1e-12 * max(abs(mean), 1e-300) else 1.0, is_whole(training),
                   precise=is_precise(training))

    @property
    def by_node(self) -> bool:
        return isinstance(self.mean, tuple)

    @property
    def basis(self) -> str:
        """What mean and spread are those of."""
        return "the logarithm of each node" if self.least else "each node" if self.by_node else "the field"

    @property
    def any_whole(self) -> bool:
        return any(self.whole) if isinstance(self.whole, tuple) else self.whole

    def of_nodes(self, nodes: slice) -> "Scaler":
        """The scaler of some nodes."""
        return replace(self, **{name: value[nodes] for name, value in vars(self).items() if isinstance(value, tuple)})

    def zero(self, device: torch.device | str = "cpu") -> Tensor:
        """Zero in standardized units, never cut: (), or (node,)."""
        return self._standardize(torch.zeros(len(self.mean) if self.by_node else (), device=device))

    def standardize(self, physical: Tensor) -> Tensor:
        """Values (..., node) in float32."""
        limit = self.part("limit", physical.device, torch.float32)
        return self._standardize(physical).clamp(-limit, limit)

    def physical(self, standardized: Tensor) -> Tensor:
        """Physical values in float64; zero becomes exactly zero, so that it equals the zeros of the data."""
        mean, std, whole, nonnegative, limit, highest = (self.part(name, standardized.device) for name in (
            "mean", "std", "whole", "nonnegative", "limit", "highest"))
        if self.least:
            return standardized.double().clamp(-limit, limit).mul_(std).add_(mean).exp_().clamp_max_(highest)
        physical = (standardized.double() * std).add_(mean)
        if self.any_whole:
            nearest = physical.round()
            absolute, relative = WHOLE_WITHIN
            close = (physical - nearest).abs_() < relative * (nearest.abs() + abs(mean)) + absolute
            physical = torch.where(close & whole, nearest, physical)
        physical.masked_fill_(standardized == self.zero(standardized.device), 0.0)
        if nonnegative is not False:
            physical = torch.where((physical < 0) & nonnegative, 0.0, physical)
        return physical.clamp_max_(highest)

    def stored(self, value: float) -> float:
        """A number in physical units as the field stores it."""
        return float(torch.tensor(value, dtype=torch.float64 if self.precise else torch.float32))

    def tied(self, members: Tensor, values: Tensor) -> Tensor:
        """Members (..., node) of `physical`, equal to the values (float64) from which its rounding alone parts them.

        Not where that is no small share of a value: nodes much smaller than the field.
        """
        size = values.abs()
        if not self.least:
            size = size + sum(abs(self.part(name, values.device)) for name in ("mean", "std"))
        rounding = WHOLE_WITHIN[1] * size * (torch.finfo(torch.float32).eps * size <= LOST * values.abs())
        return torch.where((members - values).abs() <= rounding, values, members)

    def _standardize(self, physical: Tensor) -> Tensor:
        kind = torch.float64 if self.precise or self.by_node else torch.float32
        if self.least:
            physical = logarithms(physical, self.part("least", physical.device))
        mean, std = (self.part(name, physical.device) for name in ("mean", "std"))
        return ((physical.to(kind) - mean) * (1 / std)).float()  # as CUDA divides: the same bits everywhere

    def part(self, name: str, device: torch.device | str, kind: torch.dtype | None = None):
        """A part as a number, or as a tensor (node,) on a device, copied there once."""
        value = getattr(self, name)
        if not isinstance(value, tuple):
            return value
        kind = kind or (torch.bool if isinstance(value[0], bool) else torch.float64)
        key = name, str(device), kind
        if key not in self._sent:
            self._sent[key] = torch.tensor(value, dtype=kind, device=device)
        return self._sent[key]

    @functools.cached_property
    def _sent(self) -> dict:
        return {}


@dataclass(frozen=True)
class NodeStatistics:
    """Statistics of the training values of each node, without missing ones: (node,) each, float64."""

    count: Tensor
    mean: Tensor  # without outliers, as is std; 0 for a node without any value
    std: Tensor
    low: Tensor
    high: Tensor
    limit: Tensor  # distance from the mean beyond which there are only outliers; infinite without outliers
    resolution: float  # of the stored type, as a share of a value

    @classmethod
    def of(cls, training: Tensor, least: Tensor | None = None) -> "NodeStatistics":
        """Statistics of training values (time, node); with `least` (node,) of the logarithms of a `Scaler`."""
        count, mean, std, low, high = _moments(training, least)
        limit = torch.full_like(std, math.inf)
        # the most distant values are outliers where the spread is more than OUTLYING times that of the others
        fewest, share, most = EXTREMES
        extremes = torch.minimum((count * share).floor().clamp_min(fewest), (count * most).floor())
        furthest = torch.maximum(high - mean, mean - low)
        may_have = furthest.square() * extremes >= (1 - OUTLYING**-2) * count * std.square()
        for node in (may_have & (std > 0) & (extremes > 0)).nonzero().flatten().tolist():
            values = logarithms(training[:, node:node + 1], least if least is None else least[node])
            edge = (values - mean[node]).abs().nan_to_num(-1.0).topk(int(extremes[node]), 0).values[-1]
            others = torch.where((values - mean[node]).abs() < edge, values, math.nan)
            _, middle, spread, lowest, highest = _moments(others)
            if 0 < OUTLYING * spread < std[node]:
                mean[node], std[node], limit[node] = middle, spread, BEYOND * max(highest - middle, middle - lowest)
        resolution = torch.finfo(training.dtype).eps if training.is_floating_point() else 2.0**-52
        return cls(count, mean, std, low, high, limit, resolution)

    @property
    def varying(self) -> Tensor:
        """Which nodes vary by more than the rounding of their type."""
        return (self.high > self.low) & (self.std > self.resolution * self.mean.abs())

    @property
    def unresolved(self) -> Tensor:
        """Which nodes vary by a few roundings of their type only."""
        return (self.high > self.low) & (self.std < 4 * self.resolution * self.mean.abs())

    @property
    def outlying(self) -> Tensor:
        return self.limit < math.inf

    def field(self) -> tuple[float, float]:
        """Mean and spread of all values of all nodes."""
        mean = float((self.count * self.mean).sum() / self.count.sum())
        square = (self.count * (self.std.square() + (self.mean - mean).square())).sum() / self.count.sum()
        return mean, float(square.sqrt())

    def multiplicative(self, training: Tensor, horizon: int) -> bool:
        """Whether proportional changes describe these training values (time, node) better than additive ones.

            gain = n / 2 * log(variance of changes / variance of changes of the logarithm) - sum of log(value)

        It is the log likelihood ratio of normal changes, averaged over nodes. It must exceed EVIDENCE for changes over
        one step or for changes over a horizon, of which n / horizon are independent. Small counts and nodes with
        outliers have no logarithms, nor have fields whose nodes mostly have rare jumps: changes of the logarithm with
        a standard deviation above OUTLYING times that of a normal distribution of the same quartiles.
        Source: Box and Cox 1964, with the likelihood of changes in place of that of residuals.
        """
        small = self.low < FINE
        if bool(((self.low <= 0) | self.outlying).any()) or (
                bool(small.any()) and bool((small & is_whole(training, by_node=True)).any())):
            return False
        values, gains = recent(training), []
        logarithm = values.log()
        steps = logarithm.diff(dim=0)
        quartiles = steps.nanquantile(torch.tensor([0.25, 0.75]).to(steps), dim=0)
        spread = steps.square().nanmean(0).sqrt()
        if (spread > OUTLYING * quartiles.diff(dim=0)[0] / NORMAL_QUARTILES).double().mean() > 0.5:
            return False
        for span in (1, horizon):
            change, relative = (each[span:] - each[:-span] for each in (values, logarithm))
            seen = ~change.isnan()
            ratio = change.square().nansum(0) / relative.square().nansum(0)
            gain = seen.sum(0) / 2 * ratio.log() - (logarithm[span:] * seen).nansum(0)
            gains.append(float(gain.nanmean()) / span)
        return max(gains) > EVIDENCE

    def unlike(self) -> Tensor:
        """Which nodes need a scale of their own, by their spread or level in spreads of the field, see UNLIKE."""
        mean, std = self.field()
        spread, level = self.std / std, (self.mean - mean).abs() / std
        return self.varying & ((spread < 1 / UNLIKE) | (spread > UNLIKE)) | (level > UNLIKE)

    def upper_bounds(self, training: Tensor, values: Tensor) -> float | tuple[float, ...]:
        """The largest of these training values of each node where at least ATOM of them equal it; else infinity.

        Such a value is mostly the end of a range, as that of visibility. Constant nodes have no bound, nor have those
        with larger `values` (time, node) after the training part. One infinity where no node has a bound.
        """
        equal = sum((block == self.high).sum(0) for block in training.split(BLOCK))
        bounded = (equal >= (ATOM * self.count).clamp_min(LEAST_EQUAL)) & (equal < self.count)
        bounded &= by_node(values, torch.amax) <= self.high
        return tuple(torch.where(bounded, self.high, math.inf).tolist()) if bool(bounded.any()) else math.inf

    def scaler(self, training: Tensor, scaling: str, horizon: int = 1) -> Scaler:
        """The scaler of these training values (time, node); scaling: auto, log, node, or field (as published).

        auto: of logarithms where the field is `multiplicative`, else of each node where nodes are unlike, else of the
        field. The std of a constant node is the size of its value (of logarithms 1), for a node of zeros the median
        spread of the others.
        Raises: ValueError for log where a value is not positive.
        """
        precise = is_precise(training)
        if scaling == "log" and bool((self.low <= 0).any()):
            raise ValueError(f"--scaling log: there are training values down to {float(self.low.min()):g}; only "
                             "positive ones have logarithms: choose node")
        if scaling == "log" or scaling == "auto" and self.multiplicative(training, horizon):
            least = self.low * LEAST_SHARE
            found = NodeStatistics.of(training, least)
            std = torch.where(found.varying, found.std.clamp_min(LEAST_LOG_SPREAD), 1.0)
            limit = torch.minimum(found.limit, (self.high * MOST).log() - found.mean) / std
            parts = dict(mean=found.mean, std=std, limit=limit, least=least)
            return Scaler(**{name: tuple(part.tolist()) for name, part in parts.items()}, precise=precise)
        if scaling == "node" or scaling == "auto" and self.unlike().any():
            varying = self.varying
            typical = float(self.std[varying].median()) if varying.any() else 1.0
            std = torch.where(varying, self.std, torch.where(self.mean != 0, self.mean.abs(), typical))
            parts = self.mean, std, is_whole(training, by_node=True), self.limit / std
            return Scaler(*(tuple(part.tolist()) for part in parts), precise=precise)
        if scaling == "field" or not self.outlying.any():
            return Scaler.fit(training)
        mean, std = self.field()
        furthest = torch.where(self.outlying, self.limit, torch.maximum(self.high - self.mean, self.mean - self.low))
        limit = float(((self.mean - mean).abs() + furthest).max()) / std
        return Scaler(mean, std, is_whole(training), limit, precise=precise)


def as_real(values: Tensor) -> Tensor:
    """Values in float64 where they are stored so, or are whole numbers that float32 cannot hold; else in float32."""
    return values.double() if is_precise(values) else values.float()


def by_node(values: Tensor, end: Callable) -> Tensor:
    """The lowest (torch.amin) or highest (torch.amax) value of each node (node,), the opposite infinity without any."""
    none = math.inf if end is torch.amin else -math.inf
    return end(torch.stack([end(as_real(block).nan_to_num(none), 0) for block in values.split(BLOCK)]), 0)


def is_precise(values: Tensor) -> bool:
    """Whether values (time, node) are stored in float64, or as whole numbers that float32 cannot hold."""
    if values.is_floating_point():
        return values.dtype == torch.float64
    return values.element_size() > 2 and any(
        bool((block.double().abs() > LARGEST_WHOLE).any()) for block in values.split(BLOCK))


def is_whole(values: Tensor, by_node: bool = False) -> bool | Tensor:
    """Whether values (time, node), or those of each node (node,), are whole numbers, and some small one is not 0."""
    whole, some = (torch.full((values.shape[1],), start) for start in (True, False))
    for block in map(as_real, values.split(BLOCK)):
        largest = 2.0**52 if block.dtype == torch.float64 else LARGEST_WHOLE
        small = torch.where(block.abs() < largest, block, 0.0)
        whole &= (small == small.round()).all(0)
        some |= (small != 0).any(0)
        if not (by_node or bool(whole.all())):
            return False
    return whole & some if by_node else bool(whole.all() and some.any())


def recent(training: Tensor) -> Tensor:
    """The last steps of some evenly spread nodes of values (time, node), in float64; see SAMPLE."""
    steps, nodes = SAMPLE
    chosen = torch.linspace(0, training.shape[1] - 1, min(nodes, training.shape[1])).round().long()
    return training[-steps:][:, chosen].double()


def logarithms(values: Tensor, least: Tensor | None) -> Tensor:
    """Values in float64, or with `least` their logarithms, see `Scaler`."""
    return values.double() if least is None else torch.maximum(values.double(), least).log()


def _moments(values: Tensor, least: Tensor | None = None) -> tuple[Tensor, ...]:
    """Number, mean, standard deviation, lowest and highest of the values (time, node) that are not missing."""
    blocks = values.split(BLOCK)
    count = sum((~block.isnan()).sum(0) for block in blocks).double()
    mean = sum(logarithms(block, least).nansum(0) for block in blocks) / count.clamp_min(1)
    square = sum((logarithms(block, least) - mean).square().nansum(0) for block in blocks)
    low, high = (torch.where(count > 0, logarithms(by_node(values, end), least), 0.0)
                 for end in (torch.amin, torch.amax))
    return count, mean, (square / count.clamp_min(1)).sqrt(), low, high
