"""Denoisers: networks that predict the noise or v of a noisy sample, given the context of its window."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import ExtraInputs, IdentityEmbedding, ResidualBlock, StepEmbedding, Task


class MLPDenoiser(nn.Module):
    """Residual MLP in the manner of STID on [inputs of the window, noisy sample, endpoint, node, calendar, step].

    What is constant along a sampling path is computed once: `encode` for a window, `condition` for the endpoint of a
    member, if any. `forward` costs little more than the residual blocks. The first linear layer is the sum of its
    parts, so the network is the one that is given all inputs at every step.

    steps: length S of the inputs, history and others; joined: number of leading hidden values to which sample, endpoint
    and step are added (0: all).
    Shapes: inputs (batch, S, node); noisy, endpoint (batch, F, node); calendar (batch, cycle);
    step (batch,) integers, or (1,) for all; result (batch, F, node). Units: standardized.
    Source: CoST section 4.4.
    """

    def __init__(self, task: Task, steps: int, channels: int = 32, layers: int = 2, embedding: int = 32,
                 dropout: float = 0.15, endpoint: bool = False, joined: int = 0, step_embedding=StepEmbedding):
        super().__init__()
        self.identity = IdentityEmbedding(task, embedding)
        width = channels + self.identity.width
        joined = joined or width
        self.embed_inputs = nn.Linear(steps, channels)
        self.embed_endpoint = nn.Linear(task.predict_len, joined, bias=False) if endpoint else None
        self.embed_noisy = nn.Linear(task.predict_len, joined, bias=False)
        self.embed_step = step_embedding(joined)
        self.blocks = nn.Sequential(*(ResidualBlock(width, dropout) for _ in range(layers)))
        self.project = nn.Linear(width, task.predict_len)
        self.extra = ExtraInputs(task, channels)

    def encode(self, inputs: Tensor, calendar: Tensor, missing: Tensor | None, features: Tensor | None) -> Tensor:
        """Hidden values of a window: (batch, node, width); missing and features: see `ExtraInputs`."""
        hidden = self.extra(self.embed_inputs(inputs.transpose(1, 2)), missing, features)
        return torch.cat([hidden, self.identity(calendar)], dim=-1)

    def condition(self, hidden: Tensor, endpoint: Tensor) -> Tensor:
        """Hidden values of a member: those of its window plus its endpoint, if any. The batch of `hidden` may be 1."""
        if self.embed_endpoint is None:
            return hidden
        return hidden + self._widen(self.embed_endpoint(endpoint.transpose(1, 2)))

    def forward(self, noisy: Tensor, step: Tensor, hidden: Tensor) -> Tensor:
        """The predicted noise or v: (batch, F, node)."""
        dtype = self.project.weight.dtype
        hidden = (hidden + self._widen(self.embed_step(step).unsqueeze(1))).to(dtype)  # small where rows share a window
        hidden = hidden + self._widen(self.embed_noisy(noisy.transpose(1, 2).to(dtype)))
        return self.project(self.work(hidden)).transpose(1, 2)

    def work(self, hidden: Tensor) -> Tensor:
        """The hidden layers: (batch, node, width) -> (batch, node, width)."""
        return self.blocks(hidden)

    def round_to(self, dtype: torch.dtype) -> None:
        """Convert the layers of `forward` to `dtype`, for sampling. Inputs and everything else stay in float32."""
        for part in (self.embed_noisy, self.blocks, self.project):
            part.to(dtype)

    def _widen(self, values: Tensor) -> Tensor:
        """Values of the joined width, padded with zeros to the full width."""
        short = self.project.in_features - values.shape[-1]
        return F.pad(values, (0, short)) if short else values


class PublishedDenoiser(MLPDenoiser):
    """The denoiser of the authors' release: sample, endpoint and step enter its leading `channels` alone.

    Its step code has frequencies from 1 to 10,000 and one linear layer more; its first layer is initialised as one of
    2 (H + F) inputs. Differs from the release, without effect on any output: no weights for inputs that are always 0,
    nor for outputs that no loss uses.
    Source: the authors' release of arXiv:2502.11013; step code: CSDI (arXiv:2107.03502).
    """

    def __init__(self, task: Task, steps: int, channels: int = 32, **choices):
        super().__init__(task, steps, channels, joined=channels, step_embedding=lambda width: nn.Sequential(
            StepEmbedding(128, size=128, highest=1e4), nn.SiLU(), nn.Linear(128, width)), **choices)
        bound = (2 * (task.history_len + task.predict_len)) ** -0.5
        for part in filter(None, (self.embed_inputs, self.embed_endpoint, self.embed_noisy)):
            for weight in part.parameters():
                nn.init.uniform_(weight, -bound, bound)
