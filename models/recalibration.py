"""Recalibration: where the validation part shows that quantiles sit too high or too low, read them at other levels."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .quantiles import shift_levels

BINS = 24  # of the calendar's first cycle, at most
PRIOR = 3.0  # cycles (days, years) of evidence at which half of what was seen is believed
LARGEST_SCORE = 2.5  # a single outlier counts no more than this


class Recalibration(nn.Module):
    """A shift of the levels for every node, horizon step and time of the cycle.

        shift = cycles / (cycles + PRIOR) * mean normal score of the validation windows at that time of the cycle

    A normal score is 0 on average where the quantiles are right. The number of cycles (days, or years of months)
    behind a mean decides how much of it is believed, as in the mean of a normal law with a normal prior around
    0. One shift for all levels moves an ensemble without changing the ranks of its members, so that joint paths stay.
    Shapes: quantiles (batch, level, F, node), calendar (batch, cycle); shift (bin, F, node). Units: normal scores.
    """

    def __init__(self, num_nodes: int, predict_len: int, size: int):
        super().__init__()
        self.size = size
        self.register_buffer("shift", torch.zeros(min(size, BINS), predict_len, num_nodes))

    def bins(self, calendar: Tensor) -> Tensor:
        return calendar[:, 0] * len(self.shift) // self.size

    @torch.no_grad()
    def fit(self, parts: Iterable[tuple[Tensor, Tensor, Tensor | None]]) -> None:
        """Measure the shifts from parts of the validation windows.

        Their normal scores (window, F, node), calendar, and which scores count (window, F, node), None: all.
        """
        total, count = torch.zeros_like(self.shift), torch.zeros_like(self.shift)
        for scores, calendar, observed in parts:
            bins = self.bins(calendar)
            weight = torch.ones_like(scores) if observed is None else observed.to(scores.dtype)
            total.index_add_(0, bins, weight * scores.clamp(-LARGEST_SCORE, LARGEST_SCORE))
            count.index_add_(0, bins, weight)
        cycles = count * len(self.shift) / self.size
        self.shift.copy_(total / count.clamp_min(1) * cycles / (cycles + PRIOR))

    def forward(self, quantiles: Tensor, calendar: Tensor) -> Tensor:
        return shift_levels(quantiles, self.shift[self.bins(calendar)])
