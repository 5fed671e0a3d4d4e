"""STID: a residual MLP on history, node identity and calendar, the paper's mean model."""

import torch
from torch import Tensor, nn

from data.context import Context

from .layers import ExtraInputs, IdentityEmbedding, InitialForecast, ResidualBlock, Task, TokenMixer
from .mean import MeanModel


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
