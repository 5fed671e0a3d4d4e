"""Climatology: the mean of a node's values in the same slot of the cycle, at other steps than those of the window."""

import torch
from torch import Tensor

from .scaling import BLOCK, Scaler, add_at

SLOTS_PER_NEIGHBOUR = 96  # finer cycles are smoothed over slots // 96 neighbours on each side


class Climatology:
    """Mean of a node's reference values in each slot of the calendar's first cycle, without those of the window.

        climatology(t) = mean of value(s) over reference steps s in the slot of t, s not in the window of t

    Windows whose targets all lie behind the reference leave nothing out: their histories are known to a forecast too.
    Values are smoothed over a few neighbours where a cycle has many slots; then these are left out with the window.
    With a few days of data the mean of a slot would contain much of the value to be forecast, and two steps of a window
    a cycle apart would reveal each other.
    Each segment of the field has a reference of its own: the training part, or, for a field that is only evaluated, its
    validation steps. A slot without any other reference step gets the mean of the training part, 0.
    Units: standardized. `masked`: missing values (NaN) are left out, each node has its own number of reference values.
    """

    def __init__(self, values: Tensor, slots: Tensor, size: int, scaler: Scaler, references: list[tuple[int, int]],
                 masked: bool = False):
        self.values, self.slots, self.scaler, self.masked = values, slots, scaler, masked
        self.radius = size // SLOTS_PER_NEIGHBOUR
        self.first, self.last = torch.tensor(references, device=values.device).T
        self.sums = torch.zeros(len(references), size, values.shape[1], device=values.device)
        self.counts = torch.zeros(len(references), size, values.shape[1] if masked else 1, device=values.device)
        for table, count, (first, last) in zip(self.sums, self.counts, references, strict=True):
            for steps in torch.arange(first, last, device=values.device).split(BLOCK):
                mean, weight = self.smoothed(steps.unsqueeze(0), first, last)
                add_at(table, slots[steps], mean[0])
                add_at(count, slots[steps], weight[0])
        self.means = self.sums / self.counts.clamp_min(1)  # for steps outside of the reference

    def smoothed(self, steps: Tensor, first, last) -> tuple[Tensor, Tensor]:
        """Mean at `steps` (batch, step) and their neighbours, and its weight 1; if `masked`, the sum and the number."""
        total, seen = 0, 0
        for shift in range(-self.radius, self.radius + 1):
            values = self.scaler.standardize(self.values[(steps + shift).clamp(first, last - 1)])
            if self.masked:
                seen = seen + (~values.isnan()).to(values.dtype)
                values = values.nan_to_num()
            total = total + values
        if self.masked:
            return total, seen
        return total / (2 * self.radius + 1), torch.ones_like(total[..., :1])

    def __call__(self, steps: Tensor, segment: Tensor, history_len: int) -> Tensor:
        """Climatology at consecutive `steps` (batch, step) of windows in `segment` (batch,): (batch, step, node)."""
        first, last = self.first[segment].unsqueeze(1), self.last[segment].unsqueeze(1)
        left_out = steps[:, :1] + torch.arange(-self.radius, steps.shape[1] + self.radius, device=steps.device)
        inside = ((left_out >= first) & (left_out < last) & (steps[:, [history_len]] < last)).unsqueeze(-1)
        left_out = left_out.clamp(0, len(self.slots) - 1)
        slot, segment = self.slots[steps], segment.unsqueeze(1)
        own, weight = self.smoothed(left_out, first, last)
        same_slot = (slot.unsqueeze(2) == self.slots[left_out].unsqueeze(1)).to(own.dtype)
        total = self.sums[segment, slot] - same_slot @ (inside * own)
        count = self.counts[segment, slot] - same_slot @ (inside * weight)
        return torch.where(count > 0, total / count.clamp_min(1), 0.0)
