"""Denoiser: what a process asks about a noisy sample (its noise, or v), given everything known about its window."""

import torch
from torch import Tensor, nn

from .layers import ExtraInputs, IdentityEmbedding, Mixer, ResidualBlock, StepEmbedding


class MLPDenoiser(nn.Module):
    """Residual MLP in the manner of STID on [history, noisy residual, endpoint, node, calendar] plus the step.

    What does not change along a sampling path is computed once: `encode` for a window (history, node, calendar),
    `condition` for a member of it (endpoint, where the process has one). `forward` then costs the residual blocks and
    little else. The first linear layer is the sum of its three parts, so this is the same network as one fed with
    everything at every step.

    Shapes: history, noisy, endpoint (batch, H or F, node); calendar (batch, cycle) of the last history step;
    step (batch,) integers, or (1,) for all; result (batch, F, node). Units: standardized.
    Source: CoST section 4.4 and its published settings (8 layers, 128 channels, embeddings of 32).
    """

    mixing = ()  # which of `tokens` and `nearest` it takes

    def __init__(self, num_nodes: int, history_len: int, predict_len: int, calendar_sizes: tuple[int, ...],
                 channels: int = 128, layers: int = 8, embedding: int = 32, dropout: float = 0.15,
                 endpoint: bool = True, masked: bool = False, covariates: int = 0):
        super().__init__()
        self.identity = IdentityEmbedding(num_nodes, calendar_sizes, embedding)
        width = channels + self.identity.width
        self.embed_history = nn.Linear(history_len, channels)
        self.embed_endpoint = nn.Linear(predict_len, width, bias=False) if endpoint else None
        self.embed_noisy = nn.Linear(predict_len, width, bias=False)
        self.embed_step = StepEmbedding(width)
        self.blocks = nn.Sequential(*(ResidualBlock(width, dropout) for _ in range(layers)))
        self.project = nn.Linear(width, predict_len)
        self.extra = ExtraInputs(history_len, predict_len, channels, masked, covariates)

    def encode(self, history: Tensor, calendar: Tensor, *extra) -> Tensor:
        """Context of a window: (batch, node, width); `extra` is for `ExtraInputs`."""
        return torch.cat([self.extra(self.embed_history(history.transpose(1, 2)), *extra), self.identity(calendar)],
                         dim=-1)

    def condition(self, context: Tensor, endpoint: Tensor) -> Tensor:
        """Context of a member: that of its window plus its endpoint. Batch may be 1 in `context`."""
        return context + self.embed_endpoint(endpoint.transpose(1, 2))

    def forward(self, noisy: Tensor, step: Tensor, context: Tensor) -> Tensor:
        dtype = self.project.weight.dtype
        known = (context + self.embed_step(step).unsqueeze(1)).to(dtype)  # small where all rows share a window
        return self.project(self.work(known + self.embed_noisy(noisy.transpose(1, 2).to(dtype)))).transpose(1, 2)

    def work(self, hidden: Tensor) -> Tensor:
        """The hidden layers: (batch, node, width) -> (batch, node, width)."""
        return self.blocks(hidden)

    def round_to(self, dtype: torch.dtype) -> None:
        """Round the weights that work at every step to `dtype`, for sampling only.

        They then run in it throughout; the context and everything outside the network stay in float32.
        """
        self.embed_noisy.to(dtype)
        self.blocks.to(dtype)
        self.project.to(dtype)


class TokenDenoiser(MLPDenoiser):
    """The same network, in which the coordinates of a sample hear each other before each block, see `Mixer`.

    Mixers start at zero: a new one computes what the `MLPDenoiser` of the same seed does.
    """

    mixing = "tokens",

    def __init__(self, *task, tokens: int = 8, nearest: Tensor | None = None, **choices):
        super().__init__(*task, **choices)
        self.register_buffer("nearest", nearest)
        self.mixers = nn.ModuleList(Mixer(self.project.in_features, tokens, nearest) for _ in self.blocks)

    def work(self, hidden: Tensor) -> Tensor:
        for mixer, block in zip(self.mixers, self.blocks, strict=True):
            hidden = block(mixer(hidden, self.nearest))
        return hidden

    def round_to(self, dtype: torch.dtype) -> None:
        super().round_to(dtype)
        self.mixers.to(dtype)


class GraphDenoiser(TokenDenoiser):
    """A `TokenDenoiser` whose nodes also hear their `nearest` ones (node, neighbour), kept with the weights."""

    mixing = "tokens", "nearest"
