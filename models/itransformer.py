"""iTransformer: attention between nodes, each embedded as a whole series."""

import torch
from torch import Tensor, nn

from data.context import Context

from .layers import ExtraInputs, IdentityEmbedding, InitialForecast, Task
from .mean import MeanModel


class ITransformer(MeanModel):
    """A transformer encoder whose tokens are the nodes: each is embedded by its history and climatology.

    Attention between all nodes costs memory and time quadratic in their number: up to some thousand nodes.
    Source: Liu et al. 2024 (arXiv:2310.06625), CoST's alternative for stage 1; differs from the paper: node, calendar
    and climatology are inputs, and an `InitialForecast` replaces the normalisation of each window.
    """

    compiled = "encoder",

    def __init__(self, task: Task, objective: str, channels: int = 32, layers: int = 4, dropout: float = 0.15,
                 heads: int = 8):
        super().__init__(objective)
        self.identity = IdentityEmbedding(task, channels)
        width = -(-4 * channels // heads) * heads
        self.embed = nn.Linear(2 * task.history_len + task.predict_len, channels)
        self.extra = ExtraInputs(task, channels)
        self.join = nn.Linear(channels + self.identity.width, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False) if layers else nn.Identity()
        self.project = nn.Linear(width, task.predict_len * self.outputs)
        self.initial = InitialForecast(task)

    def predict(self, context: Context) -> Tensor:
        steps = torch.cat([context.history, context.climatology], dim=1).transpose(1, 2)
        hidden = self.extra(self.embed(steps), context.missing, context.features)
        hidden = self.encoder(self.join(torch.cat([hidden, self.identity(context.calendar)], dim=-1)))
        return self.by_output(self.project(hidden)).float() + self.initial(context).unsqueeze(1)
