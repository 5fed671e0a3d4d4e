"""Fluctuation scale: the expected spread of the residual at a node and a time."""

import torch
from torch import Tensor, nn

from data.scaling import add_at

from .layers import pooled_mean
from .recalibration import OUTERMOST

BINS = 48  # of the calendar's first cycle, at most
PRIOR = 3.0  # cycles (days, years) of residuals in a bin that count as much as the mean square of the node
FLOOR = 0.03  # the smallest scale, as a share of the root mean square of all residuals
LEAST_SPREAD = 1e-3  # of conditional quantiles
ROUNDING = 12**-0.5  # standard deviation of the error of rounding, in steps
SCALES = ("quantiles", "cycle", "spectrum", "global")


def quantile_spread(quantiles: Tensor) -> Tensor:
    """(highest quantile - lowest) / that of a standard normal distribution: (batch, level, ...) -> (batch, ...)."""
    return (quantiles[:, -1] - quantiles[:, 0]) / (2 * OUTERMOST)


class FluctuationScale(nn.Module):
    """The fluctuation scale of every node and step of the horizon: calendar (batch, cycle) -> (batch, F, node).

    cycle     root mean square of training residuals per node and time of the calendar's first cycle (hour of day,
              month), shrunk towards that of the node:

                  scale^2 = (cycles * mean residual^2 in the bin + PRIOR * that of the node) / (cycles + PRIOR)

              cycles: number of days or years in the bin, which are about independent; overlapping windows are not

    spectrum  as published: spread of the weak spectral components of the node's training series, see
              `data.fluctuation`; one value for each node
    quantiles as cycle, of residuals divided by `state`, the spread of the conditional quantiles of stage 1: the scale
              then also depends on the history
    global    the root mean square of all training residuals, one value for the field

    A node without any residual has the scale of the field. No scale is below FLOOR, since nodes that never varied in
    training may vary later. Where values are multiples of a `step` (counts; () or (node,), 0: of none) it is not below
    the error of rounding to it.
    Units: standardized. Source: CoST section 4.3 (spectrum).
    """

    def __init__(self, kind: str, num_nodes: int, predict_len: int, size: int, step: float | Tensor = 0.0):
        super().__init__()
        self.kind, self.size = kind, size
        self.register_buffer("step", torch.as_tensor(step, dtype=torch.float32), persistent=False)
        self.register_buffer("rounding", torch.as_tensor(step * ROUNDING, dtype=torch.float32), persistent=False)
        self.register_buffer("floor", torch.zeros_like(self.step))
        self.register_buffer("table", torch.ones(min(size, BINS) if kind in ("cycle", "quantiles") else 1, num_nodes))
        self.register_buffer("ahead", torch.arange(1, predict_len + 1), persistent=False)

    def bins(self, calendar: Tensor) -> Tensor:
        """Rows of the table at the steps of the horizon: (batch, F)."""
        return (calendar[:, :1] + self.ahead) % self.size * len(self.table) // self.size

    def forward(self, calendar: Tensor, state: Tensor | float = 1.0) -> Tensor:
        """The scale at a calendar (batch, cycle) and a `state` (batch, F, node), see `state`: (batch, F, node)."""
        return (state * self.table[self.bins(calendar)]).clamp_min(self.floor)

    def state(self, predicted: Tensor) -> Tensor:
        """The part of the scale that depends on the history, from the outputs of stage 1: (batch, F, node).

        `quantile_spread`, not below LEAST_SPREAD and rounding; 1 where the scale has no such part.
        """
        if self.kind != "quantiles":
            return torch.ones_like(predicted[:, 0])
        return quantile_spread(predicted).clamp_min(self.rounding.clamp_min(LEAST_SPREAD))

    def fit(self, residual: Tensor, state: Tensor, calendar: Tensor, counts: Tensor, spectrum) -> None:
        """Estimate it from training windows: residual, state, counts (window, F, node), calendar (window, cycle).

        spectrum(): the published scale (node,), for that kind.
        """
        if self.kind == "spectrum":
            self.table.copy_(spectrum())
            return
        rms = ((residual.square() * counts).sum() / counts.sum().clamp_min(1)).sqrt()
        self.floor.copy_((FLOOR * rms).clamp_min(self.rounding.clamp_min(1e-6)))
        if self.kind == "global":
            self.table.copy_(rms.expand_as(self.table))
            return
        squares = (residual / state).square() * counts
        node = pooled_mean(squares.sum((0, 1)), counts.sum((0, 1)))
        bins = self.bins(calendar).flatten()
        total, count = (add_at(torch.zeros_like(self.table), bins, part.flatten(0, 1))
                        for part in (squares, counts))
        cycles = count * len(self.table) / (self.size * len(self.ahead))
        variance = (cycles * total / count.clamp_min(1) + PRIOR * node) / (cycles + PRIOR)
        self.table.copy_(variance.sqrt())
