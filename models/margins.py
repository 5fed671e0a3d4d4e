"""Margins: from the future of a window to the variable z that is diffused, and from samples of z to members."""

import math

import torch
from torch import Tensor, nn

from data.context import Context
from data.windows import Batch

from .base import BLOCKS, independent, inflation
from .mean import MeanModel
from .quantiles import (
    couple,
    keep_mean_above,
    pit_bounds,
    quantiles_at_z,
    round_members,
    smooth_members,
    to_support,
    z_from_pit,
    z_of_levels,
)
from .recalibration import OUTERMOST
from .scale import LEAST_SPREAD, FluctuationScale, quantile_spread

MEMBERS = ("random", "quantiles")
"""Kinds of an ensemble: random members, or quantiles at equidistant levels in the rank order of random ones."""
LARGEST_WIDTH = 2.0  # factor of the members' spread, and its inverse the smallest
WIDTH_PRIOR = 3.0  # independent windows of evidence that later residuals are as large as training ones
FEW_WIDTH = 1.2  # largest factor for few validation windows
OVERSAMPLED = 4  # samples for each member, where an ensemble of residuals is smoothed
CLASSES = 32  # of forecasts, in --margin empirical
TABLE_LEVELS = 400
LARGEST_SAMPLE = 2**20  # targets that the tables are made of, at most
RIDGE = 1e-3
DIGIT = 32  # a level's place among 32 strata of its stratum is as good as a random number


class Margin(nn.Module):
    """Base class of the margins. A subclass implements `given`, `encode` and `decode`, and replaces others as needed.

    support: see `data.windows.WindowedField.support`.
    Shapes: future, z (batch, F, node); members (batch, member, F, node). Units: standardized.
    """

    inputs: tuple[str, ...] = ()
    """Names of the inputs that `features` gives to the denoiser."""
    center = False
    """Whether the z of an ensemble are centred. The sign of z is then of no use: training takes either."""

    def __init__(self, support: tuple):
        super().__init__()
        self.support = support
        self.register_buffer("validation_size", torch.ones(()), persistent=False)  # of z, over that of training

    def given(self, mean_model: MeanModel, context: Context, future: Tensor | None = None) -> Tensor:
        """What a forecast needs of stage 1, or for a future (`prepared`) what a loss does: (batch, ..., F, node)."""
        raise NotImplementedError

    def fit(self, training: tuple[Batch, Tensor], validation: tuple[Batch, Tensor], spectrum) -> None:
        """Estimate the parameters of the margin, if any.

        training, validation: windows in the order of time, and what `given` is for their futures; spectrum(): see
        `FluctuationScale.fit`.
        """

    def encode(self, future: Tensor, prepared: Tensor, context: Context, uniform: Tensor) -> Tensor:
        """z of a future; uniform: random numbers in [0, 1], shaped as the future, for values that stand for a range."""
        raise NotImplementedError

    def features(self, given: Tensor, context: Context) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs of the denoiser beside the context, (batch, F, node) each: anomalies, and other values."""
        return [], []

    def log_scale(self, given: Tensor, context: Context) -> Tensor:
        """Logarithm of the scale that z is divided by, mean over steps, given or prepared: (batch, node).

        Without one it is 0. The noise has classes by it.
        """
        return given.new_zeros(len(given), given.shape[-1])

    def num_samples(self, members: int, kind: str) -> int:
        """Number of samples of z for an ensemble of this size and kind (MEMBERS)."""
        return members

    def decode(self, z: Tensor, given: Tensor, context: Context, members: int, kind: str) -> Tensor:
        """Members of an ensemble from `num_samples` samples of z (batch, sample, F, node)."""
        raise NotImplementedError


def centred(z: Tensor) -> Tensor:
    """Random z (batch, M, ...) less their mean, with the variance that they are drawn with."""
    return (z - z.mean(1, keepdim=True)) * (z.shape[1] / (z.shape[1] - 1)) ** 0.5


class ResidualMargin(Margin):
    """The residual around the mean, divided by the fluctuation scale where `scaled`.

        z = (future - mean) / scale,    member = mean + width * scale * (z - mean of z over members) * sqrt(M / (M - 1))

    With `center`, z are centred over the members, whose mean is then the stage-1 mean. Members move to possible values
    of the `support` and keep their mean. Training residuals, which standardize z, may be smaller than later ones, or of
    another origin. So the width is estimated from validation residuals in blocks of time:

        ratio = size of z in a block / size of z in training,    size: 90 % quantile of |z|
        width = argmin_w of (n * mean of sqrt(w^2 + ratio^2) + WIDTH_PRIOR * sqrt(w^2 + 1)) / (n + WIDTH_PRIOR)
                            - w / sqrt(2),    between 1 / LARGEST_WIDTH and LARGEST_WIDTH

    with n independent windows, in at most BLOCKS blocks. Up to a factor this is the expected CRPS of normal members, if
    values are normal with these sizes; later windows may return to the size of training. With BLOCKS blocks it is the
    width of the later half if that is larger, since errors that have grown stay large. Bias and size of these residuals
    were estimated from n windows: it is times `inflation(n, 2)`, at most FEW_WIDTH.
    The width of plain residuals is 1.
    inputs: which of "mean" and "scale" the denoiser is given.
    Source: CoST section 4.2 (residual).
    """

    def __init__(self, scale: FluctuationScale, support: tuple, scaled: bool = True, center: bool = True,
                 inputs: tuple[str, ...] = ("mean", "scale")):
        super().__init__(support)
        self.scale, self.scaled, self.center, self.inputs = scale, scaled, center, inputs
        self.register_buffer("width", torch.ones(()))

    def given(self, mean_model: MeanModel, context: Context, future: Tensor | None = None) -> Tensor:
        """The mean and the part of the scale that depends on the history: (batch, 2, F, node)."""
        return self._mean_and_state(mean_model.predict(context))

    def fit(self, training: tuple[Batch, Tensor], validation: tuple[Batch, Tensor], spectrum) -> None:
        windows, prepared = training
        residual = self._residual(windows.future, prepared, torch.rand_like(windows.future))
        self.scale.fit(residual, prepared[:, 1], windows.context.calendar, windows.counts, spectrum)
        if self.scaled:
            ratio, number = self._ratio(training, validation)
            if len(ratio) and ratio.max() < math.inf:
                self.validation_size.copy_(ratio.square().mean().sqrt())
                width = self._width(ratio, number)
                if len(ratio) == BLOCKS:
                    width = max(width, self._width(ratio[BLOCKS // 2:], number / 2))
                width = width * min(inflation(number, 2), FEW_WIDTH)
                self.width.fill_(min(max(width, 1 / LARGEST_WIDTH), LARGEST_WIDTH))

    def _ratio(self, training: tuple[Batch, Tensor], validation: tuple[Batch, Tensor]) -> tuple[Tensor, float]:
        """Size of z in blocks of validation over that in training, (block,), and the number of independent windows.

        Of targets whose scale is not less than a step of the values, as that of rare counts, and blocks that have some.
        """
        def sizes(windows: Batch, prepared: Tensor) -> tuple[Tensor, Tensor]:
            future, context = windows.future, windows.context
            counts = self.scale(context.calendar, prepared[:, 1]) * (2 * OUTERMOST) > self.scale.step
            return self.encode(future, prepared, context, torch.rand_like(future)).abs(), counts & windows.counts.bool()

        def size(found: Tensor, counts: Tensor) -> Tensor:
            found = found[counts]
            return found.kthvalue(math.ceil(0.9 * len(found))).values if len(found) else found.new_zeros(())

        number = independent(validation[0].start, validation[0].future.shape[1])
        blocks = min(BLOCKS, number)
        split = (part.tensor_split(blocks) for part in sizes(*validation))
        by_block = torch.stack([size(*block) for block in zip(*split, strict=True)])
        by_block = by_block[by_block > 0]
        return by_block / size(*sizes(*training)), number * len(by_block) / blocks

    @staticmethod
    def _width(ratio: Tensor, number: float) -> float:
        """The width of the lowest expected CRPS, by the ratios of blocks of `number` independent windows."""
        width = torch.linspace(1 / LARGEST_WIDTH, LARGEST_WIDTH, 301, device=ratio.device).unsqueeze(1)
        of_blocks = torch.hypot(width, ratio).mean(1, keepdim=True)
        of_prior = torch.hypot(width, torch.ones_like(width))
        expected = (number * of_blocks + WIDTH_PRIOR * of_prior) / (number + WIDTH_PRIOR) - width / 2**0.5
        return float(width[expected.argmin()])

    def encode(self, future: Tensor, prepared: Tensor, context: Context, uniform: Tensor) -> Tensor:
        return self._residual(future, prepared, uniform) / self._unit(prepared, context)

    def features(self, given: Tensor, context: Context) -> tuple[list[Tensor], list[Tensor]]:
        mean, state = given[:, 0], given[:, 1]
        anomalies = [mean - context.future_climatology] if "mean" in self.inputs else []
        return anomalies, [self.scale(context.calendar, state).log()] if "scale" in self.inputs else []

    def log_scale(self, given: Tensor, context: Context) -> Tensor:
        return self._unit(given, context).log().mean(1)

    def num_samples(self, members: int, kind: str) -> int:
        return OVERSAMPLED * members if kind == "quantiles" else members

    def decode(self, z: Tensor, given: Tensor, context: Context, members: int, kind: str) -> Tensor:
        residual = self.width * self._unit(given, context).unsqueeze(1) * (centred(z) if self.center else z)
        samples = given[:, :1] + self._from_residual(residual, given)
        if kind == "quantiles":
            samples = smooth_members(samples, members)
        return round_members(keep_mean_above(samples, self.support[0]), *self.support)

    def _unit(self, given: Tensor, context: Context) -> Tensor:
        """What residuals are divided by: (batch, F, node)."""
        return self.scale(context.calendar, given[:, 1]) if self.scaled else torch.ones_like(given[:, 1])

    def _mean_and_state(self, predicted: Tensor) -> Tensor:
        return torch.stack([predicted.mean(1), self.scale.state(predicted)], dim=1)

    def _residual(self, future: Tensor, prepared: Tensor, uniform: Tensor) -> Tensor:
        """The residual of a future, of a normal distribution: (batch, F, node)."""
        return future - prepared[:, 0]

    def _from_residual(self, residual: Tensor, given: Tensor) -> Tensor:
        """The inverse: values less the mean, of residuals of a normal distribution (batch, sample, F, node)."""
        return residual


class ShapedMargin(ResidualMargin):
    """The residual, mapped to a normal distribution by the quantiles of stage 1, divided by the fluctuation scale.

        z = spread * Phi^-1(level of the future) / scale,    spread: of the quantiles, see `FluctuationScale.state`
        member = quantile at the level Phi(width * scale / spread * z)

    Members are skewed or have heavy tails where stage 1 shows that; where its quantiles are those of a normal
    distribution, z and members are those of `ResidualMargin`, as are width and centring of z. The mean of the members
    includes the tails, which the average of quantiles, the stage-1 mean, leaves out. Nodes that hardly varied in
    training may vary later: no spread is below the floor of the scale.
    Source: normal quantile transform, Krzysztofowicz 1997, Journal of Hydrology 197, 286-292.
    """

    def given(self, mean_model: MeanModel, context: Context, future: Tensor | None = None) -> Tensor:
        """Mean, state and conditional quantiles, whose spread is at least the floor: (batch, 2 + level, F, node).

        With a future its PIT bounds under these quantiles: (batch, 2 + 2, F, node).
        """
        quantiles = mean_model.predict(context)
        missing = (self.scale.floor.clamp_min(LEAST_SPREAD) - quantile_spread(quantiles)).clamp_min(0)
        level_z = z_of_levels(quantiles.shape[1], quantiles.device, quantiles.dtype).view(-1, 1, 1)
        quantiles = quantiles + missing.unsqueeze(1) * level_z
        shape = quantiles if future is None else pit_bounds(quantiles, future, *self.support)
        return torch.cat([self._mean_and_state(quantiles), shape], dim=1)

    def _residual(self, future: Tensor, prepared: Tensor, uniform: Tensor) -> Tensor:
        return prepared[:, 1] * z_from_pit(prepared[:, 2:], uniform)

    def _from_residual(self, residual: Tensor, given: Tensor) -> Tensor:
        return quantiles_at_z(given[:, 2:], residual / given[:, 1:2]) - given[:, :1]


class QuantileMargin(Margin):
    """z of the future under the conditional quantiles of stage 1.

        z = Phi^-1(level of the future),    member = quantile at the level Phi(z)

    With kind "quantiles" members are the quantiles at equidistant levels in the rank order of z: the margins of the
    ensemble are then exact for any diffusion.
    Source: ensemble copula coupling, Schefzik et al. 2013 (arXiv:1302.7149).
    """

    def given(self, mean_model: MeanModel, context: Context, future: Tensor | None = None) -> Tensor:
        """Conditional quantiles, or PIT bounds of a future under uncalibrated ones: (batch, level or 2, F, node)."""
        if future is None:
            return mean_model.predict(context)
        return pit_bounds(mean_model.uncalibrated(context), future, *self.support)

    def encode(self, future: Tensor, prepared: Tensor, context: Context, uniform: Tensor) -> Tensor:
        return z_from_pit(prepared, uniform)

    def decode(self, z: Tensor, given: Tensor, context: Context, members: int, kind: str) -> Tensor:
        return to_support(quantiles_at_z(given, z) if kind == "random" else couple(given, z), *self.support)


class EmpiricalMargin(Margin):
    """z of the future among training values of targets with a similar forecast: for fields of many zeros.

        index = weight_f @ (mean, highest quantile of stage 1, climatology), each less the minimum of the support
        class = number of edges below the index
        z = Phi^-1(level of the future in the table of its class),    member = value of the table at Phi(z)

    Members are zero as often as such training values were. The weights are those of a ridge regression of the future.
    The classes have equal sizes in the mean of two measures: number of targets, and their sum. Members are stratified:
    one in each of M equal parts of the levels, in the rank order of z, and at its middle for kind "quantiles".
    Shapes: weight (F, 3), edges (class - 1,), table (class, level). Units: standardized, above the minimum.
    Source: isotonic distributional regression, Henzi et al. 2021 (arXiv:1909.03725), with classes of a fitted index in
    place of isotonic estimates; the randomised probability integral transform, Dunn and Smyth 1996.
    """

    def __init__(self, support: tuple, predict_len: int):
        super().__init__(support)
        self.register_buffer("minimum", torch.as_tensor(support[0], dtype=torch.float32), persistent=False)
        self.register_buffer("weight", torch.zeros(predict_len, 3))
        self.register_buffer("edges", torch.zeros(CLASSES - 1))
        self.register_buffer("table", torch.zeros(CLASSES, TABLE_LEVELS))

    def given(self, mean_model: MeanModel, context: Context, future: Tensor | None = None) -> Tensor:
        """The three parts of the index: (batch, 3, F, node), before the recalibration, unreliable with many zeros."""
        predicted = mean_model.uncalibrated(context)
        parts = torch.stack([predicted.mean(1), predicted[:, -1], context.future_climatology], dim=1)
        return (parts - self.minimum).clamp_min(0)

    def fit(self, training: tuple[Batch, Tensor], validation: tuple[Batch, Tensor], spectrum) -> None:
        windows, prepared = training
        values, observed = (windows.future - self.minimum).double(), windows.counts.bool()
        parts = prepared.movedim(1, -1).double()  # (..., node, 3)
        for step, (y, x, seen) in enumerate(zip(values.unbind(1), parts.unbind(1), observed.unbind(1), strict=True)):
            x, y = x[seen], y[seen]
            square = x.T @ x
            ridge = RIDGE * square.diagonal().mean().clamp_min(1e-12) * torch.eye(3).to(square)
            self.weight[step] = torch.linalg.solve(square + ridge, x.T @ y)
        values, index = values[observed].float(), self._index(prepared)[observed]
        chosen = torch.linspace(0, len(values) - 1, min(len(values), LARGEST_SAMPLE), dtype=torch.float64).long()
        index, order = index[chosen].sort()
        values = values[chosen][order]
        total = values.double().cumsum(0)
        share = (total / total[-1].clamp_min(1e-12) + torch.linspace(0, 1, len(values)).to(total)) / 2
        inner = torch.arange(1, CLASSES).to(share) / CLASSES
        self.edges.copy_(index[torch.searchsorted(share, inner).clamp_max(len(index) - 1)])
        members = torch.searchsorted(self.edges, index, right=True)
        for number in range(CLASSES):
            own = values[members == number]
            if len(own):
                place = ((torch.arange(TABLE_LEVELS) + 0.5) / TABLE_LEVELS * len(own)).long().to(own.device)
                self.table[number:] = own.sort().values[place]  # an empty class has the table of the one before

    def encode(self, future: Tensor, prepared: Tensor, context: Context, uniform: Tensor) -> Tensor:
        classes, above, z = self._class(prepared), future - self.minimum, torch.empty_like(future)
        for number in classes.unique().tolist():
            own = classes == number
            bounds = torch.stack([torch.searchsorted(self.table[number], above[own], right=right)
                                  for right in (False, True)], dim=1) / TABLE_LEVELS
            z[own] = z_from_pit(bounds, uniform[own])
        return z

    def decode(self, z: Tensor, given: Tensor, context: Context, members: int, kind: str) -> Tensor:
        within = 0.5
        if kind == "random":
            within = (DIGIT * members * torch.special.ndtr(z.double())).frac().float()
        level = (z.argsort(1).argsort(1) + within) / members
        place = self._class(given).unsqueeze(1) * TABLE_LEVELS + (level * TABLE_LEVELS).long().clamp_max(
            TABLE_LEVELS - 1)
        return to_support(self.table.flatten()[place] + self.minimum, *self.support)

    def _index(self, given: Tensor) -> Tensor:
        return torch.einsum("bkfv,fk->bfv", given, self.weight)

    def _class(self, given: Tensor) -> Tensor:
        return torch.searchsorted(self.edges, self._index(given).contiguous(), right=True)
