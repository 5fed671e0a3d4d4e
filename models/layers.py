"""Layers of the networks of both stages. Inside a network the layout is (batch, node, feature), contiguous."""

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.context import Context

_own: tuple[int, int, int] | None = None


@contextlib.contextmanager
def own_rows(rows: tuple[int, int, int] | None):
    """Within it `random_rows` gives the rows first..last-1 of `total`: rows = (first, last, total); None: all.

    So the random numbers of a window do not depend on the number of processes that share a batch.
    """
    global _own
    before, _own = _own, rows
    try:
        yield
    finally:
        _own = before


def random_rows(function: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...], axis: int = 0) -> Tensor:
    """`function(shape)`; of a shared batch `function` of the whole shape, narrowed to this process's rows of `axis`."""
    if _own is None:
        return function(shape)
    first, last, total = _own
    return function((*shape[:axis], total, *shape[axis + 1:])).narrow(axis, first, last - first)


@dataclass(frozen=True)
class Task:
    """The sizes of the inputs and outputs of a network."""

    num_nodes: int
    history_len: int
    predict_len: int
    calendar_sizes: tuple[int, ...]  # slots of each cycle of the calendar
    masked: bool = False  # whether values may be missing
    covariates: int = 0  # number of covariates
    lags: int = 0  # number of lags
    averaged_lags: int = 0  # how many of these, the last ones, are means


class Dropout(nn.Module):
    """As torch.nn.Dropout, with one 64-bit random number for four values.

    On a CPU it made a training step of the denoiser a third faster. The share is rounded to a multiple of 1/65536.
    """

    def __init__(self, share: float):
        super().__init__()
        self.dropped = round(share * 65536)

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.dropped == 0:
            return values
        bits = random_rows(functools.partial(_random_bits, device=values.device), values.shape)
        keep = (bits >= self.dropped - 32768).to(values.dtype)
        return values * keep.mul_(65536 / (65536 - self.dropped))


@torch.compiler.disable
def _random_bits(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """16 random bits for every element, as integers."""
    count = math.prod(shape)
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    return bits.random_(-(2**63), None).view(torch.int16)[:count].view(shape).clone()


class ResidualBlock(nn.Module):
    """Two linear layers around a ReLU, added to their input.

    Shapes: (..., width) -> (..., width).
    Source: the residual MLP of STID (Shao et al. 2022, arXiv:2208.05233), Eq. 4.
    """

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.expand = nn.Linear(width, width)
        self.contract = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.contract(self.dropout(self.expand(hidden).relu_()))


class TokenMixer(nn.Module):
    """Mix nodes through a few tokens, at a cost linear in the nodes: for the backbones of stage 1.

        tokens = value(softmax over nodes(read) @ hidden),    tokens += mlp(tokens)
        hidden += softmax over tokens(write) @ out(tokens)

    Its wide layers see tokens, not nodes. The last one starts at zero: at first nodes are not mixed.
    Shapes: (batch, node, width) -> (batch, node, width).
    Source: the induced points of Set Transformer (Lee et al. 2019, arXiv:1810.00825), without queries: the hidden
    values contain the node's identity.
    """

    def __init__(self, width: int, tokens: int):
        super().__init__()
        self.read, self.write = nn.Linear(width, tokens), nn.Linear(width, tokens)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = self.value(self.read(hidden).softmax(-2).mT @ hidden)
        tokens = tokens + self.mlp(tokens)
        return hidden + self.write(hidden).softmax(-1) @ self.out(tokens)


class IdentityEmbedding(nn.Module):
    """A learned vector for every node, and one for every slot of each calendar cycle (hour of day, day of week).

    Shapes: calendar (batch, cycle) of integer slots -> (batch, node, width), width = size + cycles * calendar_size.
    Source: STID (arXiv:2208.05233), Eq. 2-3.
    """

    def __init__(self, task: Task, size: int, calendar_size: int = 0):
        super().__init__()
        calendar_size = calendar_size or size
        self.node = nn.Parameter(nn.init.xavier_uniform_(torch.empty(task.num_nodes, size)))
        self.slots = nn.ModuleList(nn.Embedding(slots, calendar_size) for slots in task.calendar_sizes)
        for table in self.slots:
            nn.init.xavier_uniform_(table.weight)
        self.width = size + calendar_size * len(task.calendar_sizes)

    def forward(self, calendar: Tensor) -> Tensor:
        cycles = [table(slot).unsqueeze(1).expand(-1, len(self.node), -1)
                  for slot, table in zip(calendar.unbind(1), self.slots, strict=True)]
        return torch.cat([self.node.expand(len(calendar), -1, -1), *cycles], dim=-1)


class ExtraInputs(nn.Module):
    """Adds the optional inputs to hidden values: a mask of missing values, and features of history and horizon.

        hidden += gaps @ missing + table @ features

    A history without gaps adds nothing; at first gaps add nothing either.
    Shapes: hidden (batch, node, channels), missing (batch, H, node), 1 where a value is missing, features (batch,
    H + F, node or 1, feature).
    Raises: ValueError for inputs that the task does not have, or lacks.
    """

    def __init__(self, task: Task, channels: int):
        super().__init__()
        length, features = task.history_len + task.predict_len, task.covariates + task.lags
        self.table = nn.Linear(length * features, channels, bias=False) if features else None
        self.gaps = None
        if task.masked:  # without random numbers: a field without gaps has the weights that it has by --missing error
            self.gaps = nn.utils.skip_init(nn.Linear, task.history_len, channels, bias=False)
            nn.init.zeros_(self.gaps.weight)

    def forward(self, hidden: Tensor, missing: Tensor | None, features: Tensor | None) -> Tensor:
        if missing is not None:
            if self.gaps is None:
                raise ValueError("missing values, and a model that was trained without any: train with --missing mask")
            hidden = hidden + self.gaps(missing.transpose(1, 2))
        if (features is None) != (self.table is None):
            raise ValueError("a model needs the covariates that it was trained with (--covariates), and no others")
        if features is not None:
            hidden = hidden + self.table(features.transpose(1, 2).flatten(2))
        return hidden


class InitialForecast(nn.Module):
    """A learned mixture of the last value, the climatology and the lags, if any: (batch, F, node).

        mixture = share * last value + (1 - share) * climatology,    initial = sum of weight * [mixture, lags]

    In a gap the last value is `Context.now`. `share` and the weights, with the sum 1, are learned for each step. A
    network predicts departures from the mixture.
    """

    def __init__(self, task: Task):
        super().__init__()
        self.share = nn.Parameter(torch.zeros(task.predict_len))
        self.weights = nn.Parameter(torch.zeros(task.predict_len, 1 + task.lags)) if task.lags else None

    def forward(self, context: Context) -> Tensor:
        share = self.share.sigmoid().unsqueeze(-1)
        mixture = torch.lerp(context.future_climatology, context.now, share)
        if self.weights is None:
            return mixture
        parts = torch.cat([mixture.unsqueeze(-1), context.lags[:, context.history_len:]], dim=-1)
        return (parts * self.weights.softmax(-1).unsqueeze(1)).sum(-1)


def mean_over(values: Tensor, observed: Tensor | None) -> Tensor:
    """Sum of the values where `observed` (None: everywhere), divided by the number of all: a scalar.

    The loss of a batch is then the mean of the losses of its windows.
    Shapes: values (batch, F, node) or (batch, level, F, node), observed (batch, F, node).
    """
    if observed is None:
        return values.mean()
    return (values * (observed if values.dim() == 3 else observed.unsqueeze(1))).mean()


def pooled_mean(total: Tensor, count: Tensor) -> Tensor:
    """total / count; where the count is 0, the mean of all. Shapes: all alike."""
    return torch.where(count > 0, total / count.clamp_min(1e-6), total.sum() / count.sum().clamp_min(1e-6))


class StepEmbedding(nn.Module):
    """Embedding of the diffusion step: sines and cosines of many frequencies, then a small MLP.

        frequencies = highest^(k / (K - 1)), k = 0 .. K - 1, from 1 to `highest`

    Shapes: step (batch,) of integers -> (batch, width).
    Source: Ho et al. 2020 (arXiv:2006.11239), appendix B, after Vaswani et al. 2017, section 3.5.
    """

    def __init__(self, width: int, size: int = 64, highest: float = 1e-4):
        super().__init__()
        half = size // 2
        self.register_buffer("frequencies", torch.exp(torch.arange(half) * (math.log(highest) / (half - 1))),
                             persistent=False)
        self.project = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, step: Tensor) -> Tensor:
        angle = step.unsqueeze(-1) * self.frequencies
        return self.project(torch.cat([angle.sin(), angle.cos()], dim=-1))
