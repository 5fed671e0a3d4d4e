"""Networks of stage 1: subclasses of `MeanModel`, see there."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.context import Context

from .layers import ExtraInputs, IdentityEmbedding, InitialForecast, ResidualBlock, Task, TokenMixer
from .mean import MeanModel

WINDOW = 25  # steps of the moving average of DLinear, at most


class STID(MeanModel):
    """Residual MLP on [history, node, calendar].

    With `climatology` the climatology of history and horizon is an input too, and the output is a departure from an
    `InitialForecast`. With `tokens` a `TokenMixer` stands between the blocks. Without both it is the published network.
    channels: width of the embeddings of history and node; calendar_channels: of each cycle (0: as the others).
    Source: Shao et al. 2022 (arXiv:2208.05233); CoST's stage 1.
    """

    compiled = "blocks",

    def __init__(self, task: Task, objective: str, channels: int = 32, calendar_channels: int = 0, layers: int = 4,
                 dropout: float = 0.15, climatology: bool = True, tokens: int = 8):
        super().__init__(objective)
        self.identity = IdentityEmbedding(task, channels, calendar_channels)
        width = channels + self.identity.width
        steps = 2 * task.history_len + task.predict_len if climatology else task.history_len
        self.embed = nn.Linear(steps, channels)
        self.initial = InitialForecast(task) if climatology else None
        blocks = []
        for layer in range(layers):
            blocks += [TokenMixer(width, tokens)] if tokens and layer else []
            blocks += [ResidualBlock(width, dropout)]
        self.blocks = nn.Sequential(*blocks)
        self.project = nn.Linear(width, task.predict_len * self.outputs)
        self.extra = ExtraInputs(task, channels)

    def predict(self, context: Context) -> Tensor:
        steps = context.history if self.initial is None else torch.cat([context.history, context.climatology], dim=1)
        hidden = self.extra(self.embed(steps.transpose(1, 2)), context.missing, context.features)
        hidden = torch.cat([hidden, self.identity(context.calendar)], dim=-1)
        change = self.by_output(self.project(self.blocks(hidden)))
        return change if self.initial is None else change.float() + self.initial(context).unsqueeze(1)


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


class DLinear(MeanModel):
    """Linear in trend (moving average) and remainder of the anomaly, the same maps for all nodes.

        change = trend_map(moving average of the anomaly) + remainder_map(anomaly - moving average)

    Source: Zeng et al. 2023 (arXiv:2205.13504); differs from the paper: inputs are departures from the climatology,
    outputs departures from an `InitialForecast`.
    """

    def __init__(self, task: Task, objective: str):
        super().__init__(objective)
        self.half = (min(WINDOW, task.history_len) - 1) // 2
        size = task.predict_len * self.outputs
        self.trend_map, self.remainder_map = nn.Linear(task.history_len, size), nn.Linear(task.history_len, size)
        self.extra = ExtraInputs(task, size)
        self.initial = InitialForecast(task)

    def predict(self, context: Context) -> Tensor:
        anomaly = context.anomaly.transpose(1, 2)
        padded = F.pad(anomaly, (self.half, self.half), mode="replicate")
        trend = F.avg_pool1d(padded, 2 * self.half + 1, stride=1)
        change = self.extra(self.trend_map(trend) + self.remainder_map(anomaly - trend), context.missing,
                            context.features)
        return self.by_output(change) + self.initial(context).unsqueeze(1)
