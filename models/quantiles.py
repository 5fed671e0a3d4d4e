"""Margins: from conditional quantiles to members, and from values to normal scores. Pure functions."""

import functools

import torch
from torch import Tensor

from data.constants import ANY_VALUE

NORMAL_SCORE_LIMIT = 4.0  # beyond the quantiles a normal score is extrapolated, no further than this


def pinball(quantiles: Tensor, truth: Tensor) -> Tensor:
    """Twice the pinball loss at LEVELS: quantiles (batch, level, ...), truth (batch, ...) -> (batch, level, ...).

        2 * max(q * (truth - quantile_q), (q - 1) * (truth - quantile_q))
    """
    level = _levels(quantiles.shape[1], quantiles.device, quantiles.dtype).view(-1, *[1] * (truth.dim() - 1))
    excess = truth.unsqueeze(1) - quantiles
    return 2 * torch.maximum(level * excess, (level - 1) * excess)


def equidistant_quantiles(quantiles: Tensor, members: int) -> Tensor:
    """Quantiles at the levels (i + 0.5) / M, from those at l / (L + 1): an ensemble, sorted up to rounding.

    Between levels linear in the normal quantile of the level, beyond the ends with the end slope: exact for a
    Gaussian at every level.
    Shapes: quantiles (batch, L, F, node), sorted -> (batch, M, F, node).
    """
    weights = _probit_weights(quantiles.shape[1], members).to(quantiles)
    return torch.einsum("ml,blfv->bmfv", weights, quantiles)


def reorder(sorted_members: Tensor, scores: Tensor) -> Tensor:
    """Put sorted members into the rank order of scores, node by node and step by step.

        member[i] = sorted_members[rank(scores[i])]

    Shapes: both (batch, member, F, node). Each margin keeps its values.
    Source: ensemble copula coupling, Schefzik et al. 2013 (arXiv:1302.7149).
    """
    return torch.empty_like(sorted_members).scatter_(1, scores.argsort(dim=1), sorted_members)


def smooth_members(drawn: Tensor, members: int = 0) -> Tensor:
    """The quantiles of an ensemble at the levels (i + 0.5) / M, in the rank order of its first M members (0: all).

    The sorted members stand for the quantiles at the levels l / (L + 1), as L members drawn at random do on average.
    Of as many quantiles as members, calibration gains and CRPS does not: that takes L several times M.
    Shapes: (batch, L, F, node) -> (batch, M, F, node). The order stays; the ends are extrapolated.
    """
    first = drawn[:, :members or None]
    if drawn.shape[1] == 1:
        return first
    return reorder(equidistant_quantiles(drawn.sort(dim=1).values, first.shape[1]), first)


def quantiles_at_scores(quantiles: Tensor, scores: Tensor) -> Tensor:
    """The quantile function read at normal scores: members drawn at random where the scores are standard normal.

        member = quantile at the level Phi(score),    linear in the score, as in `equidistant_quantiles`

    Shapes: quantiles (batch, L, F, node), sorted, at the levels l / (L + 1); scores (batch, M, F, node) -> as scores.
    """
    known = _normal_levels(quantiles.shape[1], quantiles.device, quantiles.dtype)
    left = torch.searchsorted(known, scores.contiguous(), right=True).sub_(1).clamp_(0, len(known) - 2)
    share = (scores - known[left]) / known.diff()[left]
    below = quantiles.gather(1, left)
    return torch.lerp(below, quantiles.gather(1, left.add_(1)), share)


@functools.cache
def _probit_weights(levels: int, members: int) -> Tensor:
    """The linear map from quantiles at L levels to M members: (M, L), two neighbouring weights in each row."""
    known = _normal_levels(levels, torch.device("cpu"), torch.float64)
    wanted = torch.special.ndtri((torch.arange(members, dtype=torch.float64) + 0.5) / members)
    left = (torch.searchsorted(known, wanted, right=True) - 1).clamp(0, levels - 2)
    share = (wanted - known[left]) / (known[left + 1] - known[left])
    weights = torch.zeros(members, levels, dtype=torch.float64)
    row = torch.arange(members)
    weights[row, left], weights[row, left + 1] = 1 - share, share
    return weights


def read_elsewhere(quantiles: Tensor, shift: Tensor, widening: Tensor | float = 1.0) -> Tensor:
    """Quantiles read at other levels: moved by `shift`, and further from each other for a `widening` above 1.

        read_l = quantile at Phi(widening * Phi^-1(l) + shift),    see `quantiles_at_scores`

    Shapes: quantiles (batch, level, F, node), shift (batch, F, node), widening a number. Order is kept.
    """
    known = _normal_levels(quantiles.shape[1], quantiles.device, quantiles.dtype)
    return quantiles_at_scores(quantiles, (widening * known).view(-1, 1, 1) + shift.unsqueeze(1))


def levels_of(quantiles: Tensor, truth: Tensor, minimum: float | Tensor, step: float | Tensor) -> Tensor:
    """The levels between which each value lies under its conditional quantiles: P(value < truth), P(value <= truth).

    Linear in the normal quantile of the level between two quantiles. They differ where a value stands for many: at the
    `minimum` of its support for all that lies below, as a whole number (`step` above 0) for all that is rounded to it.
    Both are numbers, or of each node (node,).
    Shapes: quantiles (batch, level, ...), truth (batch, ...) -> (batch, 2, ...).
    """
    known = _normal_levels(quantiles.shape[1], quantiles.device, quantiles.dtype)

    def score(value: Tensor) -> Tensor:
        upper = (quantiles < value.unsqueeze(1)).sum(1).clamp_(1, len(known) - 1)
        above = quantiles.gather(1, upper.unsqueeze(1)).squeeze(1)
        below = quantiles.gather(1, upper.unsqueeze(1) - 1).squeeze(1)
        share = (value - below) / (above - below).clamp_min(1e-3)
        found = known[upper - 1] + share * (known[upper] - known[upper - 1])
        return found.clamp_(-NORMAL_SCORE_LIMIT, NORMAL_SCORE_LIMIT)

    minimum, step = (part.to(truth.device) if isinstance(part, Tensor) else part for part in (minimum, step))
    highest = score(truth + step / 2)
    lowest = score(truth - step / 2) if isinstance(step, Tensor) or step else highest
    return torch.stack([torch.special.ndtr(lowest) * (truth > minimum), torch.special.ndtr(highest)], dim=1)


def normal_scores(levels: Tensor, uniform: Tensor) -> Tensor:
    """Normal scores of values that lie between two levels each: standard normal when the quantiles are right.

    Where the levels differ, `uniform` draws one between them.
    Shapes: levels (batch, 2, ...) of `levels_of`, uniform (batch, ...) -> (batch, ...).
    Source: the randomised probability integral transform, Dunn and Smyth 1996.
    """
    level = torch.lerp(levels[:, 0], levels[:, 1], uniform)
    return torch.special.ndtri(level).clamp(-NORMAL_SCORE_LIMIT, NORMAL_SCORE_LIMIT)


def to_support(values: Tensor, minimum: float | Tensor, step: float | Tensor) -> Tensor:
    """The nearest values that the field can take: none below `minimum`, multiples of `step` above it (0: all).

    Both are numbers, or of each node (node,); values (..., node).
    """
    minimum, step = (part.to(values.device) if isinstance(part, Tensor) else part for part in (minimum, step))
    values = values.clamp_min(minimum)
    if not isinstance(step, Tensor):
        return minimum + ((values - minimum) / step).round() * step if step else values
    return torch.where(step > 0, minimum + ((values - minimum) / step).round() * step, values)


def keep_mean_above(members: Tensor, minimum: float | Tensor) -> Tensor:
    """The nearest members none of which is below `minimum`, with the mean of the given ones where that is not below.

        kept = minimum + max(members - minimum - shift, 0),    shift >= 0 such that the mean stays

    To clamp alone would lift the mean, at every node and in every sum over nodes.
    Shapes: (batch, member, ..., node), minimum a number or (node,). Source: projection on a simplex, Duchi et al. 2008.
    """
    if isinstance(minimum, Tensor):
        minimum = minimum.to(members.device)
        bounded = minimum > ANY_VALUE[0]
        return torch.where(bounded, _kept_above(members, torch.where(bounded, minimum, 0.0)), members)
    return members if minimum == ANY_VALUE[0] else _kept_above(members, minimum)


def _kept_above(members: Tensor, minimum: float | Tensor) -> Tensor:
    above = members - minimum
    total = above.sum(1, keepdim=True)
    falling = above.sort(1, descending=True).values
    count = torch.arange(1, members.shape[1] + 1, device=members.device).view(-1, *[1] * (members.dim() - 2))
    shift = (falling.cumsum(1) - total) / count  # if so many members, the largest, stay above
    staying = (falling > shift).sum(1, keepdim=True)
    kept = (above - shift.gather(1, (staying - 1).clamp_min(0))).clamp_min(0)
    return minimum + torch.where(total > 0, kept, 0.0)


@functools.cache
def _levels(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The levels l / (L + 1), on a device: sent there once, not at every step."""
    return (torch.arange(1, count + 1, dtype=torch.float64) / (count + 1)).to(device, dtype)


@functools.cache
def _normal_levels(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The normal quantiles of `_levels`."""
    return torch.special.ndtri(_levels(count, torch.device("cpu"), torch.float64)).to(device, dtype)
