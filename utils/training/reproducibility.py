"""Random numbers by index: each is a function of what it is for.

Training noise follows from (seed, epoch, step), ensemble members from (seed, window, member). They depend neither on
the batch or chunk size, nor on earlier random numbers, nor on interruptions of a run.
"""

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB
_KEEP_33, _KEEP_34, _KEEP_37 = (1 << 33) - 1, (1 << 34) - 1, (1 << 37) - 1


def _mix(bits: Tensor) -> Tensor:
    """Scramble 64-bit integers, one to one. Source: Steele et al. 2014, SplitMix64, its output function."""
    bits = (bits ^ ((bits >> 30) & _KEEP_34)) * _FIRST
    bits = (bits ^ ((bits >> 27) & _KEEP_37)) * _SECOND
    return bits ^ ((bits >> 31) & _KEEP_33)


def key(*parts: int | Tensor) -> Tensor:
    """Fold integers, or tensors of them that broadcast, into 64-bit keys; the order of the parts counts."""
    folded = torch.zeros((), dtype=torch.int64)
    for part in parts:
        part = torch.as_tensor(part, dtype=torch.int64)  # a number stays on the CPU: no transfer
        folded = _mix(folded + _GOLDEN + _mix(part + _GOLDEN))
    return folded


def seed_of(*index: int) -> int:
    """The seed of a torch generator for one indexed piece of work, e.g. (seed, epoch, step)."""
    return int(key(*index)) & ((1 << 63) - 1)


def seed_step(seed: int, *index: int) -> None:
    """Seed torch's own generators for one indexed piece of work: dropout and noise follow."""
    torch.manual_seed(seed_of(seed, *index))


def keyed_normal(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal values, one block of `shape` per key: (*keys.shape, *shape), float32, on the keys' device.

    Element i of a block is a function of its key and i: a counter-based generator (SplitMix64) whose 64 bits
    give two uniform numbers, and these, by Box and Muller 1958, two normal ones.
    """
    count = math.prod(shape)
    counter = torch.arange(1, (count + 1) // 2 + 1, device=keys.device) * _GOLDEN
    bits = _mix(keys.unsqueeze(-1) + counter)
    radius = (((bits >> 40) & 0xFFFFFF).float() + 0.5).mul_(2.0**-24).log_().mul_(-2).sqrt_()
    angle = ((bits >> 8) & 0xFFFFFF).float().mul_(2 * math.pi * 2.0**-24)
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return normal[..., :count].unflatten(-1, shape)


class MemberNoise:
    """Noise of an ensemble keyed by (seed, window, member): what `Forecaster.sample` calls.

    `windows` (batch,) are the windows' positions in the series; rows of the flattened (batch, member) axis
    are drawn by `noise(noise_index, first, last) -> (last - first, horizon, node)`.
    """

    def __init__(self, seed: int, windows: Tensor, members: int, shape: tuple[int, int]):
        member = torch.arange(members, device=windows.device)
        self.keys = key(seed, windows.unsqueeze(1), member).reshape(-1)
        self.shape = shape

    def __call__(self, noise_index: int, first: int, last: int) -> Tensor:
        return keyed_normal(key(self.keys[first:last], noise_index), self.shape)
