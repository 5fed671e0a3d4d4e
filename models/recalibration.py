"""Recalibration: where the validation part shows that quantiles sit in the wrong place, read them at other levels."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .quantiles import read_elsewhere

BINS = 24  # of the calendar's first cycle, at most
PRIOR = 3.0  # cycles (days, years) of evidence at which half of what was seen is believed
LARGEST_SCORE = 2.5  # a single outlier counts no more than this
CLAMPED_VARIANCE = 0.97756  # of standard normal scores that are held within +-LARGEST_SCORE


class Recalibration(nn.Module):
    """A shift of the levels for every node, horizon step and time of the cycle, and one widening for all of them.

        belief   = cycles / (cycles + PRIOR)
        shift    = belief * mean normal score of the validation windows at that time of the cycle
        widening = max(1, root mean square of the scores around the shifts) ^ belief

    A normal score is 0 on average, and 1 in its mean square, where the quantiles are right. The number of cycles (days,
    or years of months) behind a statistic decides how much of it is believed, as in the mean of a normal law with a
    normal prior. The mean square is that of a cycle which the shifts have not seen. Quantiles are never narrowed: the
    same windows have chosen the epoch and the shifts, and later ones lie further from the training part.
    Both leave the ranks of an ensemble's members as they are, so that joint paths stay.
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
    def fit(self, parts: Iterable[tuple[Tensor, Tensor, Tensor | None]]) -> None:
        """Measure shifts and widening from parts of the validation windows.

        Their normal scores (window, F, node), calendar, and which scores count (window, F, node), None: all.
        """
        total, squares, count = (torch.zeros_like(self.shift) for _ in range(3))
        for scores, calendar, observed in parts:
            bins = self.bins(calendar)
            weight = torch.ones_like(scores) if observed is None else observed.to(scores.dtype)
            scores = scores.clamp(-LARGEST_SCORE, LARGEST_SCORE)
            total.index_add_(0, bins, weight * scores)
            squares.index_add_(0, bins, weight * scores.square())
            count.index_add_(0, bins, weight)
        cycles = count * len(self.shift) / self.size
        belief = cycles / (cycles + PRIOR)
        self.shift.copy_(total / count.clamp_min(1) * belief)

        around = squares - 2 * self.shift * total + self.shift.square() * count
        # what a cycle deviates that the shifts have not seen, over one that they have: cycles are taken as independent
        unseen = (cycles + belief.square()) / (cycles - 2 * belief + belief.square())
        variance = (around * unseen).nansum() / count.sum().clamp_min(1) / CLAMPED_VARIANCE
        cycles = cycles.mean()
        self.widening.copy_(variance.clamp_min(1) ** (cycles / (cycles + PRIOR) / 2))

    def forward(self, quantiles: Tensor, calendar: Tensor) -> Tensor:
        return read_elsewhere(quantiles, self.shift[self.bins(calendar)], self.widening)
