"""Correction of ensembles while observations arrive: quantile levels by adaptive conformal inference."""

import math

import torch
from torch import Tensor

from data.constants import ANY_VALUE

from .quantiles import to_support

TRACKED = (0.05, 0.5, 0.95)
RATE = 0.05  # of the shift, at the first step of the horizon
WIDTH_RATE = 0.05
SMALLEST_WIDTH = 0.05  # members keep their order


class OnlineCalibration:
    """Ensembles of one window after the other, each corrected by what has been observed of the windows before.

        member' = quantile function of the members at Phi(width * score + shift),    score = Phi^-1(rank / (M + 1))
        shift += RATE / f * (1[observation > quantile'_.5] - 1/2)         of each node and step f of the horizon
        width += WIDTH_RATE * (share outside quantile'_.05 .. quantile'_.95 - 1/10)               one for the field

    quantile' is that of the forecast as it was issued, f steps before its observation arrives; the share is that of all
    nodes and steps that have been observed since the window before. A member keeps its rank, so that joint paths stay.
    The width alone leaves the mean of a symmetric ensemble where it is; only misses to one side move it.

    Guarantee, whatever the series does: over T windows, with equal numbers of observations in each,

        share outside - 1/10 = (width at the end - 1) / (WIDTH_RATE * T),    while the width is above SMALLEST_WIDTH

    and alike for the share above the median of each node and step. The width is bounded by the furthest observations
    in units of the ensemble's spread: a share that is wrong for good would move it without end. An observation equal to
    the quantile counts by the share of its ties above the level. Members that are all equal have no width to correct,
    and missing observations tell nothing.
    Units: any, the same in all calls.
    Source: Gibbs and Candes 2021 (arXiv:2106.00170), Eq. 2, with the delay of the horizon; on normal scores in place of
    levels, as the quantile tracker of Angelopoulos et al. 2023 (arXiv:2307.16895). The rate of the shift falls with the
    step, since errors of f steps ahead stay alike for f steps.
    """

    def __init__(self, support: tuple[float, float] = ANY_VALUE):
        self.support = support
        self.shift, self.width = torch.zeros(()), 1.0
        self._step, self._issued = None, []

    def correct(self, history: Tensor, members: Tensor, step: int) -> Tensor:
        """The members of the window whose first forecast step has the position `step` in the series.

        history: what was observed before that step, NaN where missing. Targets of earlier windows that lie in it are
        learned from, each once.
        Shapes: history (H, node), members (member, F, node) -> as members, in float64.
        Raises: ValueError where the window does not come after the one before.
        """
        if self._step is not None and step <= self._step:
            raise ValueError(f"a window from step {step} after one from step {self._step}: an online correction takes "
                             "windows in the order of time, each once")
        members = members.double()
        if self._step is None:
            self.shift = members.new_zeros(members.shape[1:])
        self._observe(history.to(members), step)
        self._step = step

        place = members.argsort(0)
        ordered = members.gather(0, place)
        flat = ordered[-1] == ordered[0]
        scores, level = _scores(len(members), members).view(-1, 1, 1), members.new_tensor(TRACKED).view(-1, 1, 1)
        corrected, quantile = (
            torch.where(flat, ordered[:1], to_support(_read(ordered, self.width * each + self.shift), *self.support))
            for each in (scores, torch.special.ndtri(level)))
        below, upto = (compare(corrected.unsqueeze(0), quantile.unsqueeze(1)).sum(1)
                       for compare in (torch.lt, torch.le))
        tied = ((upto + 1 - (len(members) + 1) * level) / (upto + 1 - below)).clamp(0, 1)
        self._issued.append((step, quantile.masked_fill(flat, math.nan), tied))
        return torch.empty_like(members).scatter_(0, place, corrected)

    def _observe(self, history: Tensor, step: int) -> None:
        """Move shift and width by the targets of issued windows that have been observed since the last window."""
        begin = step - len(history)
        fresh = begin if self._step is None else max(begin, self._step)
        outside, told = 0.0, 0.0
        for first, quantile, tied in self._issued:
            steps = slice(max(fresh - first, 0), min(step - first, quantile.shape[1]))  # of its horizon
            if steps.start >= steps.stop:
                continue
            seen = history[first + steps.start - begin:first + steps.stop - begin]
            quantile, tied = quantile[:, steps], tied[:, steps]
            above = (seen > quantile).double() + (seen == quantile) * tied
            tells = ~(seen.isnan() | quantile[0].isnan())
            ahead = torch.arange(steps.start + 1, steps.stop + 1, device=seen.device).view(-1, 1)
            self.shift[steps] += RATE / ahead * tells * (above[1] - 0.5)
            outside += float((tells * (1 - above[0] + above[2])).sum())
            told += float(tells.sum())
        if told:
            self.width = max(self.width + WIDTH_RATE * (outside / told - 2 * TRACKED[0]), SMALLEST_WIDTH)
        self._issued = [one for one in self._issued if one[0] + one[1].shape[1] > step]


def _scores(count: int, like: Tensor) -> Tensor:
    """Normal scores of the sorted members, those of the levels l / (M + 1)."""
    return torch.special.ndtri(torch.arange(1, count + 1, dtype=like.dtype, device=like.device) / (count + 1))


def _read(ordered: Tensor, scores: Tensor) -> Tensor:
    """The quantile function of sorted members (member, F, node) at scores (score, F, node).

    Linear in the score between members; beyond the ends with the slope of the whole ensemble, since that of its last
    two members is mostly chance.
    """
    known = _scores(len(ordered), ordered)
    left = (torch.searchsorted(known, scores.contiguous(), right=True) - 1).clamp(0, len(known) - 2)
    share = ((scores - known[left]) / known.diff()[left]).clamp(0, 1)
    below = ordered.gather(0, left)
    inside = torch.lerp(below, ordered.gather(0, left + 1), share)
    slope = (ordered[-1] - ordered[0]) / (known[-1] - known[0])
    return inside + slope * (scores - scores.clamp(known[0], known[-1]))
