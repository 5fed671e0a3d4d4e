"""Mean model: the conditional mean of the future, from history, node identity and calendar."""

import torch
from torch import Tensor, nn

from .layers import IdentityEmbedding, ResidualBlock


class STID(nn.Module):
    """Residual MLP on [history, node, calendar], the same weights for every node.

    Shapes: history (batch, H, node), calendar (batch, cycle) of the last history step -> (batch, F, node).
    Units: standardized.
    Source: Shao et al. 2022 (arXiv:2208.05233); CoST's stage 1.
    """

    def __init__(self, num_nodes: int, history_len: int, predict_len: int, calendar_sizes: tuple[int, ...],
                 channels: int = 32, layers: int = 4, dropout: float = 0.15):
        super().__init__()
        self.identity = IdentityEmbedding(num_nodes, calendar_sizes, channels)
        width = channels + self.identity.width
        self.embed = nn.Linear(history_len, channels)
        self.blocks = nn.Sequential(*(ResidualBlock(width, dropout) for _ in range(layers)))
        self.project = nn.Linear(width, predict_len)

    def forward(self, history: Tensor, calendar: Tensor) -> Tensor:
        hidden = torch.cat([self.embed(history.transpose(1, 2)), self.identity(calendar)], dim=-1)
        return self.project(self.blocks(hidden)).transpose(1, 2)
