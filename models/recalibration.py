"""Recalibration: quantiles are remapped to other levels where validation shows a bias or too small a width."""

from collections.abc import Iterable
from statistics import NormalDist

import torch
from torch import Tensor, nn

from data.constants import QUANTILE_LEVELS
from data.scaling import add_at

from .quantiles import quantiles_at_z, z_of_levels

BINS = 24  # of the calendar's first cycle, at most
PRIOR = 3.0  # cycles (days, years) of evidence with the shrinkage weight 1/2
LARGEST_SCORE = 2.5  # absolute z are cut here, so that outliers do not determine a shift
OUTERMOST = NormalDist().inv_cdf(QUANTILE_LEVELS[-1])  # z beyond is extrapolated and does not depend on the width
WIDEST = 3.0


def spread_of(mean_square: Tensor) -> Tensor:
    """The standard deviation, from 1 to WIDEST, of normal z that have this mean square when cut at +-OUTERMOST."""
    spread = torch.linspace(1, WIDEST, 2001, dtype=torch.float64)
    edge = OUTERMOST / spread
    inside = torch.special.erf(edge / 2**0.5)
    density = (-edge.square() / 2).exp() * (2 / torch.pi) ** 0.5
    mean_squares = spread.square() * (inside - edge * density + edge.square() * (1 - inside))
    place = torch.searchsorted(mean_squares, mean_square.double().cpu()).clamp_max(len(spread) - 1)
    return spread[place].to(mean_square)


class Recalibration(nn.Module):
    """A shift of the levels for every node, horizon step and time of the cycle, and one widening for all of them.

        recalibrated = quantile at the level Phi(widening * Phi^-1(level) + shift)
        weight   = cycles / (cycles + PRIOR)
        shift    = weight * mean z of the validation windows at that time of the cycle
        widening = max(1, spread of z of the later half around the shifts of the earlier half) ^ weight

    z is standard normal where the quantiles are calibrated. cycles: number of days, weeks or years behind a statistic.
    Quantiles are never narrowed: the epoch was selected on these windows, and later ones differ more from training.
    Shapes: quantiles (batch, level, F, node), calendar (batch, cycle), shift (bin, F, node), widening ().
    Units: those of z.
    """

    def __init__(self, num_nodes: int, predict_len: int, size: int):
        super().__init__()
        self.size = size
        self.register_buffer("shift", torch.zeros(min(size, BINS), predict_len, num_nodes))
        self.register_buffer("widening", torch.ones(()))

    def bins(self, calendar: Tensor) -> Tensor:
        """Time of the cycle: (batch,)."""
        return calendar[:, 0] * len(self.shift) // self.size

    def fit(self, parts: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]], windows: int) -> None:
        """Estimate shifts and widening from parts of the validation windows in the order of time, `windows` in all.

        parts: (z, calendar, which z count, which of them do in the widening), all but calendar (window, F, node).
        """
        total, count = torch.zeros_like(self.shift), torch.zeros_like(self.shift)
        squares, widths = torch.zeros(2, dtype=torch.float64, device=total.device)
        seen, half, earlier = 0, -(-windows // 2), None
        for z, calendar, counts, for_width in parts:
            part = z, self.bins(calendar), counts, counts * for_width
            pieces = zip(*(each.tensor_split([max(half - seen, 0)]) for each in part), strict=True)
            seen += len(z)
            for late, (z, bins, counts, for_width) in enumerate(pieces):
                if late and len(z):
                    earlier = self._shift(total, count) if earlier is None else earlier
                    around = (z - earlier[bins]).clamp(-OUTERMOST, OUTERMOST)
                    squares += (for_width * around.square()).sum(dtype=torch.float64)
                    widths += for_width.sum(dtype=torch.float64)
                add_at(total, bins, counts * z.clamp(-LARGEST_SCORE, LARGEST_SCORE))
                add_at(count, bins, counts)
        self.shift.copy_(self._shift(total, count))
        cycles = self._cycles(count)
        cycles = cycles.sum() / (cycles > 0).sum().clamp_min(1) / 2  # of the later half, at times that the calendar has
        self.widening.copy_(spread_of(squares / widths.clamp_min(1)) ** (cycles / (cycles + PRIOR)))

    def forward(self, quantiles: Tensor, calendar: Tensor) -> Tensor:
        """The recalibrated quantiles: (batch, level, F, node)."""
        level_z = z_of_levels(quantiles.shape[1], quantiles.device, quantiles.dtype).view(-1, 1, 1)
        return quantiles_at_z(quantiles, self.widening * level_z + self.shift[self.bins(calendar)].unsqueeze(1))

    def _cycles(self, count: Tensor) -> Tensor:
        return count * len(self.shift) / self.size

    def _shift(self, total: Tensor, count: Tensor) -> Tensor:
        """The mean z times its shrinkage weight."""
        cycles = self._cycles(count)
        return total / count.clamp_min(1) * cycles / (cycles + PRIOR)
