"""Quantiles and z (normal scores): from conditional quantiles to members, from values to z. Pure functions."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

NORMAL_SCORE_LIMIT = 4.0  # z beyond the outermost quantiles is extrapolated, no further than this
SMALLEST_DISTANCE = 1e-5  # of two quantiles between which z is interpolated, near the resolution of float32


def pinball(quantiles: Tensor, truth: Tensor) -> Tensor:
    """Twice the pinball loss at QUANTILE_LEVELS.

        2 * max(level * (truth - quantile), (level - 1) * (truth - quantile))

    Shapes: quantiles (batch, level, ...), truth (batch, ...) -> (batch, level, ...).
    """
    level = _levels(quantiles.shape[1], quantiles.device, quantiles.dtype).view(-1, *[1] * (truth.dim() - 1))
    excess = truth.unsqueeze(1) - quantiles
    return 2 * torch.maximum(level * excess, (level - 1) * excess)


def equidistant_quantiles(quantiles: Tensor, members: int) -> Tensor:
    """Quantiles at the M levels (i + 0.5) / M, from those at the L levels l / (L + 1).

    Linear in z between levels, with the slope of the end beyond them: exact for a Gaussian at every level.
    Shapes: quantiles (batch, L, F, node), sorted -> (batch, M, F, node), sorted up to rounding.
    """
    z = z_of_members(members).to(quantiles).view(-1, 1, 1)
    return quantiles_at_z(quantiles, z.expand(len(quantiles), -1, *quantiles.shape[2:]))


def z_of_members(members: int) -> Tensor:
    """z of the M levels (i + 0.5) / M: (M,), float64."""
    return torch.special.ndtri((torch.arange(members, dtype=torch.float64) + 0.5) / members)


def quantiles_at_z(quantiles: Tensor, z: Tensor) -> Tensor:
    """The quantile at the level Phi(z): random members where z is standard normal.

    Linear in z, as in `equidistant_quantiles`.
    Shapes: quantiles (batch, L, F, node), sorted, at the levels l / (L + 1); z (batch, M, F, node) -> as z.
    """
    level_z = z_of_levels(quantiles.shape[1], quantiles.device, quantiles.dtype)
    left = torch.searchsorted(level_z, z.contiguous(), right=True).sub_(1).clamp_(0, len(level_z) - 2)
    share = (z - level_z[left]) / level_z.diff()[left]
    below = quantiles.gather(1, left)
    return torch.lerp(below, quantiles.gather(1, left.add_(1)), share)


def reorder(sorted_members: Tensor, ranked: Tensor) -> Tensor:
    """Sorted members in the rank order of the values `ranked`, for each node and step.

        member[i] = sorted_members[rank of ranked[i]]

    Shapes: both (batch, member, F, node). The margins stay the same.
    Source: ensemble copula coupling, Schefzik et al. 2013 (arXiv:1302.7149).
    """
    return torch.empty_like(sorted_members).scatter_(1, ranked.argsort(dim=1), sorted_members)


def couple(quantiles: Tensor, ranked: Tensor) -> Tensor:
    """Ensemble copula coupling: equidistant quantiles in the rank order of `ranked` (batch, M, F, node)."""
    return reorder(equidistant_quantiles(quantiles, ranked.shape[1]), ranked)


def smooth_members(samples: Tensor, members: int) -> Tensor:
    """Quantiles of samples at the levels (i + 0.5) / M, in the rank order of the first M samples.

    Sorted samples are estimates of the quantiles at the levels l / (L + 1). With L = M calibration improves and CRPS
    does not: that takes L several times M.
    Shapes: (batch, L, F, node) -> (batch, M, F, node).
    """
    return couple(samples.sort(dim=1).values, samples[:, :members])


def pit_bounds(quantiles: Tensor, truth: Tensor, minimum: float | Tensor, step: float | Tensor) -> Tensor:
    """Bounds of the probability integral transform (PIT) of each value: P(value < truth), P(value <= truth).

    Linear in z between two quantiles. The bounds differ where a value stands for a range: the `minimum` of the support
    for all below it, a multiple of `step` (above 0) for all that is rounded to it.
    Shapes: quantiles (batch, level, ..., node), truth (batch, ..., node), minimum and step () or (node,) ->
    (batch, 2, ..., node).
    """
    level_z = z_of_levels(quantiles.shape[1], quantiles.device, quantiles.dtype)

    def z_at(value: Tensor, compare: Callable) -> Tensor:
        upper = compare(quantiles, value.unsqueeze(1)).sum(1).clamp_(1, len(level_z) - 1)
        above = quantiles.gather(1, upper.unsqueeze(1)).squeeze(1)
        below = quantiles.gather(1, upper.unsqueeze(1) - 1).squeeze(1)
        share = (value - below) / (above - below).clamp_min(SMALLEST_DISTANCE)
        z = level_z[upper - 1] + share * (level_z[upper] - level_z[upper - 1])
        return z.clamp_(-NORMAL_SCORE_LIMIT, NORMAL_SCORE_LIMIT)

    rounded = torch.as_tensor(step).any()  # before the move: a device is not waited for
    minimum, step = (torch.as_tensor(part, dtype=truth.dtype, device=truth.device) for part in (minimum, step))
    highest = z_at(truth + step / 2, torch.le)  # the last one of equal quantiles, the first one below
    lowest = z_at(truth - step / 2, torch.lt) if rounded else highest
    return torch.stack([torch.special.ndtr(lowest) * (truth > minimum), torch.special.ndtr(highest)], dim=1)


def z_from_pit(bounds: Tensor, uniform: Tensor) -> Tensor:
    """z at a random place between two bounds of the PIT: standard normal where the quantiles are calibrated.

    Shapes: bounds (batch, 2, ...) of `pit_bounds`, uniform (batch, ...) in [0, 1] -> (batch, ...).
    Source: the randomised probability integral transform, Dunn and Smyth 1996.
    """
    level = torch.lerp(bounds[:, 0], bounds[:, 1], uniform)
    return torch.special.ndtri(level).clamp(-NORMAL_SCORE_LIMIT, NORMAL_SCORE_LIMIT)


def to_support(values: Tensor, minimum: float | Tensor, step: float | Tensor) -> Tensor:
    """The nearest possible values: at least `minimum`, and multiples of `step` above it (0: any).

    Shapes: values (..., node), minimum and step () or (node,).
    """
    minimum, step = (torch.as_tensor(part, dtype=values.dtype, device=values.device) for part in (minimum, step))
    values = values.clamp_min(minimum)
    return torch.where(step > 0, minimum + ((values - minimum) / step).round() * step, values)


def keep_mean_above(members: Tensor, minimum: float | Tensor) -> Tensor:
    """The nearest members of at least `minimum` that have the same mean, where that mean is not below it.

        kept = minimum + max(members - minimum - shift, 0),    shift >= 0 such that the mean stays

    Clamping alone would raise the mean, at every node and in every sum over nodes.
    Shapes: members (batch, member, ..., node), minimum () or (node,).
    """
    minimum = torch.as_tensor(minimum, dtype=members.dtype)
    bounded = minimum > -math.inf
    if not bounded.any():
        return members
    minimum, bounded = minimum.to(members.device), bounded.to(members.device)
    lowest = torch.where(bounded, minimum, 0.0)
    above = members - lowest
    total = above.sum(1, keepdim=True)
    kept = torch.where(total > 0, project_on_simplex(above, total, 1), 0.0)
    return torch.where(bounded, lowest + kept, members)


def round_members(members: Tensor, minimum: float | Tensor, step: float | Tensor) -> Tensor:
    """Possible values near the members, by `to_support`, but with the mean of whole numbers kept to step / (2 M).

    As many members are rounded up as that takes, those with the largest remainders, the others down. Each rounded to
    the nearest value, most members of rare counts would be 0, and too few above.
    Shapes: members (batch, M, ..., node), minimum and step () or (node,).
    Source: the method of largest remainders.
    """
    if not torch.as_tensor(step).any():  # before the move: a device is not waited for
        return to_support(members, minimum, step)
    minimum, step = (torch.as_tensor(part, dtype=members.dtype, device=members.device) for part in (minimum, step))
    members = members.clamp_min(minimum)
    units = (members - minimum) / step
    remainder = units.frac()
    place = torch.arange(members.shape[1], device=members.device).view(-1, *[1] * (members.dim() - 2))
    up = reorder(place < remainder.sum(1, keepdim=True).round(), -remainder)
    return torch.where(step > 0, minimum + (units.floor() + up) * step, members)


def project_on_simplex(values: Tensor, total: float | Tensor, dim: int) -> Tensor:
    """The nearest values that are at least 0 and have the sum `total` along `dim`.

    Source: Duchi et al. 2008.
    """
    falling = values.sort(dim, descending=True).values
    number = torch.arange(1, values.shape[dim] + 1, device=values.device)
    number = number.view(-1, *[1] * (values.dim() - 1 - dim % values.dim()))
    shift = (falling.cumsum(dim) - total) / number  # if so many values, the largest, stay above 0
    staying = (falling > shift).sum(dim, keepdim=True).clamp_min(1)
    return (values - shift.gather(dim, staying - 1)).clamp_min(0)


@functools.cache
def _levels(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The levels l / (L + 1), copied to a device once."""
    return (torch.arange(1, count + 1, dtype=torch.float64) / (count + 1)).to(device, dtype)


@functools.cache
def z_of_levels(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """z of the equidistant levels l / (L + 1), copied to a device once: (L,)."""
    return torch.special.ndtri(_levels(count, torch.device("cpu"), torch.float64)).to(device, dtype)
