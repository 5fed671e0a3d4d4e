"""Recalibration: where the validation part shows that quantiles sit in the wrong place, read them at other levels."""

from collections.abc import Iterable
from statistics import NormalDist

import torch
from torch import Tensor, nn

from data.constants import QUANTILE_LEVELS

from .quantiles import remap_quantile_levels

BINS = 24  # of the calendar's first cycle, at most
PRIOR = 3.0  # cycles (days, years) of evidence at which half of what was seen is believed
LARGEST_SCORE = 2.5  # a single outlier counts no more than this
OUTERMOST = NormalDist().inv_cdf(QUANTILE_LEVELS[-1])  # scores beyond are extrapolated and tell of no width
WIDEST = 3.0


def spread_of(mean_square: Tensor) -> Tensor:
    """The standard deviation, from 1 to WIDEST, of normal scores whose mean square is so large.

    Those beyond OUTERMOST are counted as if they lay there.
    """
    spread = torch.linspace(1, WIDEST, 2001, dtype=torch.float64)
    edge = OUTERMOST / spread
    inside = torch.special.erf(edge / 2**0.5)
    density = (-edge.square() / 2).exp() * (2 / torch.pi) ** 0.5
    mean_squares = spread.square() * (inside - edge * density + edge.square() * (1 - inside))
    place = torch.searchsorted(mean_squares, mean_square.double().cpu()).clamp_max(len(spread) - 1)
    return spread[place].to(mean_square)


class Recalibration(nn.Module):
    """A shift of the levels for every node, horizon step and time of the cycle, and one widening for all of them.

        belief   = cycles / (cycles + PRIOR)
        shift    = belief * mean normal score of the validation windows at that time of the cycle
        widening = max(1, spread of the scores of the later half around the shifts of the earlier half) ^ belief

    Normal scores are standard normal where the quantiles are right. The number of cycles (days or weeks, years of
    months) behind a statistic decides how much of it is believed, as in the mean of a normal law with a normal prior.
    Quantiles are never narrowed: the same windows have chosen the epoch, and later ones lie further from the training
    part. Both leave the ranks of an ensemble's members as they are, so that joint paths stay.
    Shapes: quantiles (batch, level, F, node), calendar (batch, cycle); shift (bin, F, node), widening a number.
    Units: normal scores.
    """

    def __init__(self, num_nodes: int, predict_len: int, size: int):
        super().__init__()
        self.size = size
        self.register_buffer("shift", torch.zeros(min(size, BINS), predict_len, num_nodes))
        self.register_buffer("widening", torch.ones(()))

    def bins(self, calendar: Tensor) -> Tensor:
        return calendar[:, 0] * len(self.shift) // self.size

    @torch.no_grad()
    def fit(self, parts: Iterable[tuple[Tensor, Tensor, Tensor | None, Tensor]], windows: int) -> None:
        """Measure shifts and widening from parts of the validation windows in the order of time, so many in all.

        Their normal scores (window, F, node), calendar, which scores count, None: all, and which of them can tell how
        wide quantiles are (both as the scores).
        """
        total, count = torch.zeros_like(self.shift), torch.zeros_like(self.shift)
        squares, telling = torch.zeros(2, dtype=torch.float64, device=total.device)
        seen, half, earlier = 0, -(-windows // 2), None
        for scores, calendar, observed, tells in parts:
            target_mask = torch.ones_like(scores) if observed is None else observed.to(scores.dtype)
            part = scores, self.bins(calendar), target_mask, target_mask * tells
            pieces = zip(*(each.tensor_split([max(half - seen, 0)]) for each in part), strict=True)
            seen += len(scores)
            for late, (scores, bins, target_mask, tells) in enumerate(pieces):
                if late and len(scores):
                    earlier = self._shift(total, count) if earlier is None else earlier
                    around = (scores - earlier[bins]).clamp(-OUTERMOST, OUTERMOST)
                    squares += (tells * around.square()).sum(dtype=torch.float64)
                    telling += tells.sum(dtype=torch.float64)
                total.index_add_(0, bins, target_mask * scores.clamp(-LARGEST_SCORE, LARGEST_SCORE))
                count.index_add_(0, bins, target_mask)
        self.shift.copy_(self._shift(total, count))
        cycles = self._cycles(count)
        cycles = cycles.sum() / (cycles > 0).sum().clamp_min(1) / 2  # of the later half, at times that the calendar has
        self.widening.copy_(spread_of(squares / telling.clamp_min(1)) ** (cycles / (cycles + PRIOR)))

    def forward(self, quantiles: Tensor, calendar: Tensor) -> Tensor:
        return remap_quantile_levels(quantiles, self.shift[self.bins(calendar)], self.widening)

    def _cycles(self, count: Tensor) -> Tensor:
        return count * len(self.shift) / self.size

    def _shift(self, total: Tensor, count: Tensor) -> Tensor:
        """The mean score, as far as it is believed."""
        cycles = self._cycles(count)
        return total / count.clamp_min(1) * cycles / (cycles + PRIOR)
