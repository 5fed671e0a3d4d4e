"""Stage 1: what is expected of the future, from history, node identity, calendar and climatology."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .layers import (
    ExtraInputs,
    IdentityEmbedding,
    ResidualBlock,
    TokenMixer,
    counted,
    extra_inputs,
    mean_over,
    squared_error,
)
from .modes import ModeForecast
from .quantiles import LEVELS, levels_of, normal_scores, pinball
from .recalibration import Recalibration


class STID(nn.Module):
    """Residual MLP on [history, node, calendar]: the conditional mean.

    With `climatology` it also sees what is usual at the steps of history and horizon, and starts from a learned
    mixture of the last value, of that, and of the `lags` last of its `covariates`, which are earlier values of the
    field itself; with `tokens` the nodes learn from each other between the blocks. Without either it is the published
    network.

    Shapes: history (batch, H, node), calendar (batch, cycle) of the last history step, climatology (batch, H + F,
    node), and what the field has beside them, see `ExtraInputs` -> (batch, F, node). Units: standardized.
    Source: Shao et al. 2022 (arXiv:2208.05233); CoST's stage 1.
    """

    def __init__(self, num_nodes: int, history_len: int, predict_len: int, calendar_sizes: tuple[int, ...],
                 channels: int = 32, layers: int = 4, dropout: float = 0.15, climatology: bool = True, tokens: int = 8,
                 masked: bool = False, covariates: int = 0, lags: int = 0, outputs: int = 1):
        super().__init__()
        self.predict_len = predict_len
        self.identity = IdentityEmbedding(num_nodes, calendar_sizes, channels)
        width = channels + self.identity.width
        self.embed = nn.Linear((2 * history_len + predict_len) if climatology else history_len, channels)
        self.persistence = nn.Parameter(torch.zeros(predict_len)) if climatology else None
        self.repetition = nn.Parameter(torch.zeros(predict_len, 1 + lags)) if climatology and lags else None
        blocks = []
        for layer in range(layers):
            blocks += [TokenMixer(width, tokens)] if tokens and layer else []
            blocks += [ResidualBlock(width, dropout)]
        self.blocks = nn.Sequential(*blocks)
        self.project = nn.Linear(width, predict_len * outputs)
        self.extra = ExtraInputs(history_len, predict_len, channels, masked, covariates)

    def forward(self, *known) -> Tensor:
        return self.outlook(*known).squeeze(1)

    def outlook(self, history: Tensor, calendar: Tensor, climatology: Tensor, extras=None) -> Tensor:
        """All outputs of the network: (batch, output, F, node)."""
        known = history if self.persistence is None else torch.cat([history, climatology], dim=1)
        hidden = self.extra(self.embed(known.transpose(1, 2)), *extra_inputs(history, extras))
        hidden = torch.cat([hidden, self.identity(calendar)], dim=-1)
        outlook = self.project(self.blocks(hidden)).unflatten(-1, (self.predict_len, -1)).permute(0, 3, 2, 1)
        if self.persistence is None:
            return outlook
        share = self.persistence.sigmoid().unsqueeze(-1)
        usual = torch.lerp(climatology[:, -self.predict_len:], history[:, -1:], share)
        if self.repetition is not None:
            lags = self.repetition.shape[1] - 1
            usual = torch.cat([usual.unsqueeze(-1), extras.covariates[:, -self.predict_len:, :, -lags:]], dim=-1)
            usual = (usual * self.repetition.softmax(-1).unsqueeze(1)).sum(-1)
        return outlook.float() + usual.unsqueeze(1)

    def loss(self, future: Tensor, *known) -> Tensor:
        return squared_error(self(*known).float(), future, counted(future, *known))


class QuantileSTID(nn.Module):
    """The conditional quantiles of every node and horizon step: what networks with 19 outputs say on average.

        quantiles = recalibration(mean over networks of their sorted outputs + shift of the common modes)

    The networks differ by the weights that they start from; they are trained side by side and judged together.
    Shift and recalibration do nothing until `combine` and `recalibrate` have fitted them. `quantiles` gives (batch,
    level, F, node) in rising order; the model itself gives their mean, which stands for the conditional mean.
    Source: quantile regression, Koenker and Bassett 1978; sorted: Chernozhukov et al. 2010; several networks:
    Lakshminarayanan et al. 2017 (arXiv:1612.01474).
    """

    own_settings = "networks", "linear_modes"  # beside those of a network

    def __init__(self, num_nodes: int, history_len: int, predict_len: int, calendar_sizes: tuple[int, ...],
                 networks: int = 3, linear_modes: int = 16, **choices):
        super().__init__()
        self.networks = nn.ModuleList(
            STID(num_nodes, history_len, predict_len, calendar_sizes, outputs=len(LEVELS), **choices)
            for _ in range(networks))
        self.modes = ModeForecast(num_nodes, history_len, predict_len, calendar_sizes[0], linear_modes)
        self.recalibration = Recalibration(num_nodes, predict_len, calendar_sizes[0])

    def forward(self, *known) -> Tensor:
        return self.quantiles(*known).mean(1)

    def trained_quantiles(self, *known) -> Tensor:
        """Quantiles of the networks alone."""
        return sum(network.outlook(*known).float().sort(1).values for network in self.networks) / len(self.networks)

    def raw_quantiles(self, *known) -> Tensor:
        """Quantiles without recalibration."""
        quantiles = self.trained_quantiles(*known)
        return quantiles + self.modes(*self._anomalies(quantiles, *known)).unsqueeze(1)

    def quantiles(self, history: Tensor, calendar: Tensor, *others) -> Tensor:
        return self.recalibration(self.raw_quantiles(history, calendar, *others), calendar)

    def loss(self, future: Tensor, *known) -> Tensor:
        """Mean over the levels of twice the pinball loss: the CRPS, as far as 19 quantiles see it.

        In training the mean of the networks' own losses, in evaluation the loss of their average.
        """
        observed = counted(future, *known)
        if not self.training:
            return mean_over(pinball(self.trained_quantiles(*known), future), observed)
        return sum(mean_over(pinball(network.outlook(*known).float(), future), observed)
                   for network in self.networks) / len(self.networks)

    @torch.no_grad()
    def levels(self, future: Tensor, support: tuple[float, float], *known) -> Tensor:
        """Levels (batch, 2, F, node) between which the future lies under `raw_quantiles`; see `levels_of`."""
        return levels_of(self.raw_quantiles(*known), future, *support)

    def scores(self, future: Tensor, uniform: Tensor, support: tuple[float, float], *known) -> Tensor:
        """Normal scores (batch, F, node) of the future under `raw_quantiles`; see `normal_scores`."""
        return normal_scores(self.levels(future, support, *known), uniform)

    @torch.no_grad()
    def combine(self, training: Iterable, validation: Iterable) -> None:
        """Fit the forecast of common modes to training batches, and how far it is believed to validation batches.

        Call it after training, in eval mode.
        """
        def truth(batch):
            return batch.future - batch.climatology[:, -batch.future.shape[1]:], batch.scored

        self.modes.fit((batch.history - batch.climatology[:, :batch.history.shape[1]], batch.calendar, *truth(batch))
                       for batch in training)
        self.modes.believe((*self._anomalies(self.trained_quantiles(*batch.known), *batch.known), *truth(batch))
                           for batch in validation)

    @torch.no_grad()
    def recalibrate(self, batches, support: tuple[float, float]) -> None:
        """Fit the recalibration to batches of validation windows. Call it after `combine`, in eval mode.

        Quantiles that differ by a step of the `support` at most, as those of rare counts, cannot tell how wide they
        should be.
        """
        def part(batch):
            quantiles = self.raw_quantiles(*batch.known)
            levels = levels_of(quantiles, batch.future, *support)
            return (normal_scores(levels, torch.rand_like(batch.future)), batch.calendar, batch.scored,
                    quantiles[:, -1] - quantiles[:, 0] > support[1])

        self.recalibration.fit(map(part, batches), len(batches.starts))

    def _anomalies(self, quantiles: Tensor, history: Tensor, calendar: Tensor, climatology: Tensor, extras=None):
        """Inputs of `modes`: forecast and history as deviations from the usual, and the calendar."""
        past, ahead = climatology.split([history.shape[1], quantiles.shape[2]], dim=1)
        return quantiles.mean(1) - ahead, history - past, calendar
