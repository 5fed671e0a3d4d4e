"""Correction of ensembles while observations arrive: quantile levels by adaptive conformal inference."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from data.constants import ANY_VALUE
from data.scaling import logarithms

from .quantiles import quantiles_at_z, to_support, z_of_levels

TRACKED = (0.05, 0.5, 0.95)  # quantile levels
RATE = 0.05  # of the shift, at the first step of the horizon
WIDTH_RATE = 0.05
SMALLEST_WIDTH = 0.05  # above 0, so that members keep their order


class OnlineCalibration:
    """Ensembles of successive windows, each corrected by the observations of the windows before.

        member' = quantile function of the members at Phi(width * z + shift),    z = Phi^-1(rank / (M + 1))
        shift += RATE / f * (1[observation > quantile'_.5] - 1/2)         of each node and step f of the horizon
        width += WIDTH_RATE * (share outside quantile'_.05 .. quantile'_.95 - 1/10)               one for the field

    quantile' is that of the issued forecast, f steps before its observation arrives. The share is that of all nodes and
    steps observed since the window before. A member keeps its rank, so joint paths stay. For any series, over T windows
    with equal numbers of observations and while the width is above SMALLEST_WIDTH,

        share outside - 1/10 = (width at the end - 1) / (WIDTH_RATE * T)

    and alike for the share above the median of each node and step. An observation equal to the quantile counts by the
    share of its ties above the level. Ensembles of equal members and missing observations change nothing.
    With `least` (node,) all of it is of logarithms, as in `data.scaling.Scaler`; no member is above `highest` (node,).
    `run` identifies the run whose forecasts are corrected.
    Units: any, the same in all calls.
    Source: Gibbs and Candes 2021 (arXiv:2106.00170), Eq. 2, with the delay of the horizon; on z in place of levels, as
    the quantile tracker of Angelopoulos et al. 2023 (arXiv:2307.16895).
    """

    def __init__(self, support: tuple = ANY_VALUE, least: Tensor | None = None, highest: Tensor | float = math.inf,
                 run: dict | None = None):
        self.support, self.least, self.run = support, least, run
        self.highest = logarithms(torch.as_tensor(highest), least)
        self.shift, self.width = torch.zeros(()), 1.0
        self._step, self._issued = None, []

    def check_order(self, steps: Sequence[int]) -> None:
        """Raises: ValueError where windows from these steps do not come after the one before, in the order of time."""
        for before, step in itertools.pairwise([-math.inf if self._step is None else self._step, *steps]):
            if step <= before:
                raise ValueError(f"a window from step {step} after one from step {before}: an online correction takes "
                                 "windows in the order of time, each once")

    def correct(self, history: Tensor, members: Tensor, step: int) -> Tensor:
        """The corrected members of the window whose first forecast step has the position `step` in the series.

        history: the observations before that step, NaN where missing; targets of earlier windows among them update
        shift and width, each once.
        Shapes: history (H, node), members (member, F, node) -> as members, in float64.
        Raises: ValueError where the window does not come after the one before, or is of another shape.
        """
        if self._step is not None and members.shape[1:] != self.shift.shape:
            raise ValueError(f"windows of {tuple(members.shape[1:])} (step, node) after those of "
                             f"{tuple(self.shift.shape)}: an online correction is of one run")
        self.check_order([step])
        members = members.double()
        history = logarithms(history.to(members), self.least)
        if self.least is not None:
            members = members.log()
        if self._step is None:
            self.shift = members.new_zeros(members.shape[1:])
        self._observe(history, step)
        self._step = step

        place = members.argsort(0)
        ordered = members.gather(0, place)
        flat = ordered[-1] == ordered[0]
        level = members.new_tensor(TRACKED).view(-1, 1, 1)
        z = z_of_levels(len(members), members.device, members.dtype).view(-1, 1, 1)
        corrected, quantile = (
            torch.where(flat, ordered[:1], to_support(_read(ordered, self.width * each + self.shift),
                                                      *self.support).minimum(self.highest))
            for each in (z, torch.special.ndtri(level)))
        below, upto = (compare(corrected.unsqueeze(0), quantile.unsqueeze(1)).sum(1)
                       for compare in (torch.lt, torch.le))
        tied = ((upto + 1 - (len(members) + 1) * level) / (upto + 1 - below)).clamp(0, 1)
        self._issued.append((step, quantile.masked_fill(flat, math.nan), tied))
        corrected = torch.empty_like(members).scatter_(0, place, corrected)
        return corrected if self.least is None else corrected.exp()

    def _observe(self, history: Tensor, step: int) -> None:
        """Update shift and width by the targets of issued windows that were observed since the last window."""
        begin = step - len(history)
        fresh = begin if self._step is None else max(begin, self._step)
        outside, count = 0.0, 0.0
        for first, quantile, tied in self._issued:
            steps = slice(max(fresh - first, 0), min(step - first, quantile.shape[1]))  # of its horizon
            if steps.start >= steps.stop:
                continue
            seen = history[first + steps.start - begin:first + steps.stop - begin]
            quantile, tied = quantile[:, steps], tied[:, steps]
            above = (seen > quantile).double() + (seen == quantile) * tied
            valid = ~(seen.isnan() | quantile[0].isnan())
            ahead = torch.arange(steps.start + 1, steps.stop + 1, device=seen.device).view(-1, 1)
            self.shift[steps] += RATE / ahead * valid * (above[1] - 0.5)
            outside += float((valid * (1 - above[0] + above[2])).sum())
            count += float(valid.sum())
        if count:
            self.width = max(self.width + WIDTH_RATE * (outside / count - 2 * TRACKED[0]), SMALLEST_WIDTH)
        self._issued = [one for one in self._issued if one[0] + one[1].shape[1] > step]


def _read(ordered: Tensor, z: Tensor) -> Tensor:
    """The quantile function of sorted members (member, F, node) at z (z, F, node).

    Linear in z between members. Beyond the ends it has the slope of the whole ensemble, since that of its last two
    members is mostly chance.
    """
    level_z = z_of_levels(len(ordered), ordered.device, ordered.dtype)
    held = z.clamp(level_z[0], level_z[-1])
    inside = quantiles_at_z(ordered.unsqueeze(0), held.unsqueeze(0)).squeeze(0)
    slope = (ordered[-1] - ordered[0]) / (level_z[-1] - level_z[0])
    return inside + slope * (z - held)
