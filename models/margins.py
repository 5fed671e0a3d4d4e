"""Margins: from the future of a window to the variable z that is diffused, and from samples of z back to members.

One interface. `given` is what a margin takes from stage 1 for a forecast, `prepared` what it takes for a loss; z is
(batch, F, node), members are (batch, member, F, node). Units: standardized.
"""

import torch
from torch import Tensor, nn

from data.context import Context

from .mean import MeanModel
from .quantiles import (
    equidistant_quantiles,
    keep_mean_above,
    levels_of,
    normal_scores,
    quantiles_at_scores,
    reorder,
    smooth_members,
    to_support,
)
from .scale import FluctuationScale

LARGEST_WIDTH = 1.5
OVERSAMPLED = 4  # members drawn for each one that is kept, where an ensemble of residuals is smoothed


class ResidualMargin(nn.Module):
    """The residual around the mean, divided by the fluctuation scale or (`scaled` off) as it is.

        z = (future - mean) / scale,    member = mean + width * scale * (z - mean of z over members)

    The last term, `center`, makes the stage-1 mean the mean of the members. Members are moved to values of the
    `support`, their mean being kept. z is standardized by training residuals, which stage 1 has seen. The quantiles of
    stage 1, recalibrated on validation, show the spread of those that it has not seen:

        width = max(1, widening / excess),    widening: `MeanModel.widening`, excess: `FluctuationScale.excess`

    It is 1 with other scales than "quantiles".
    Source: CoST section 4.2 (residual).
    """

    def __init__(self, scale: FluctuationScale, support: tuple[float, float], scaled: bool = True, center: bool = True,
                 inputs: tuple[str, ...] = ("mean", "scale")):
        super().__init__()
        self.scale, self.support, self.scaled, self.center, self.inputs = scale, support, scaled, center, inputs
        self.register_buffer("width", torch.ones(()))

    @torch.no_grad()
    def given(self, mean_model: MeanModel, context: Context) -> Tensor:
        """The conditional mean and the fluctuation scale: (batch, 2, F, node)."""
        predicted = mean_model.predict(context)
        return torch.stack([predicted.mean(1), self.scale.state(predicted)], dim=1)

    def prepare(self, mean_model: MeanModel, future: Tensor, context: Context) -> Tensor:
        return self.given(mean_model, context)

    def fit(self, mean_model: MeanModel, futures: Tensor, prepared: Tensor, context: Context, spectrum) -> None:
        """Estimate the fluctuation scale from training windows, see `FluctuationScale.fit`."""
        mean, state = prepared.unbind(1)
        self.scale.fit(futures - mean, state, context.calendar, context.target_mask, spectrum)
        if self.scale.kind == "quantiles":
            excess = self.scale.excess(futures - mean, state, context.target_mask)
            self.width.copy_((mean_model.widening / excess.clamp_min(1 / LARGEST_WIDTH)).clamp(1, LARGEST_WIDTH))

    def encode(self, future: Tensor, prepared: Tensor, context: Context, uniform: Tensor) -> Tensor:
        mean, state = prepared.unbind(1)
        return (future - mean) / self.scale(context.calendar, state) if self.scaled else future - mean

    def features(self, given: Tensor, context: Context) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs of the denoiser beside the context, (batch, F, node) each: anomalies, and values of nodes."""
        mean, state = given.unbind(1)
        anomalies = [mean - context.future_climatology] if "mean" in self.inputs else []
        return anomalies, [self.scale(context.calendar, state).log()] if "scale" in self.inputs else []

    def draws(self, members: int, kind: str) -> int:
        """How many samples of z an ensemble of so many members takes."""
        return OVERSAMPLED * members if kind == "quantiles" else members

    def decode(self, z: Tensor, given: Tensor, context: Context, members: int, kind: str) -> Tensor:
        """Members of an ensemble of a kind, random or its smoothed quantiles, from `draws` samples of z."""
        if self.center:
            z = (z - z.mean(1, keepdim=True)) * (z.shape[1] / (z.shape[1] - 1)) ** 0.5
        mean, state = given.unbind(1)
        residual = self.width * z
        if self.scaled:
            residual = residual * self.scale(context.calendar, state).unsqueeze(1)
        drawn = mean.unsqueeze(1) + residual
        if kind == "quantiles":
            drawn = smooth_members(drawn, members)
        return to_support(keep_mean_above(drawn, self.support[0]), *self.support)


class QuantileMargin(nn.Module):
    """Normal scores of the future under conditional quantiles.

        z = Phi^-1(level of the future),    member = quantile function read at Phi(z)

    kind "quantiles" takes the quantiles at equidistant levels in the rank order of z instead: the margins of the
    ensemble are then exact, whatever the diffusion does.
    Source: ensemble copula coupling, Schefzik et al. 2013 (arXiv:1302.7149).
    """

    inputs = ()

    def __init__(self, support: tuple[float, float]):
        super().__init__()
        self.support = support

    @torch.no_grad()
    def given(self, mean_model: MeanModel, context: Context) -> Tensor:
        """The conditional quantiles: (batch, level, F, node)."""
        return mean_model.predict(context)

    @torch.no_grad()
    def prepare(self, mean_model: MeanModel, future: Tensor, context: Context) -> Tensor:
        """The levels between which the future lies under the uncalibrated quantiles: (batch, 2, F, node)."""
        return levels_of(mean_model.uncalibrated.predict(context), future, *self.support)

    def fit(self, mean_model: MeanModel, futures: Tensor, prepared: Tensor, context: Context, spectrum) -> None:
        """Nothing to estimate."""

    def encode(self, future: Tensor, prepared: Tensor, context: Context, uniform: Tensor) -> Tensor:
        return normal_scores(prepared, uniform)

    def features(self, given: Tensor, context: Context) -> tuple[list[Tensor], list[Tensor]]:
        return [], []

    def draws(self, members: int, kind: str) -> int:
        return members

    def decode(self, z: Tensor, given: Tensor, context: Context, members: int, kind: str) -> Tensor:
        if kind == "random":
            return to_support(quantiles_at_scores(given, z), *self.support)
        return to_support(reorder(equidistant_quantiles(given, members), z), *self.support)


MEMBERS = ("random", "quantiles")
"""Kinds of an ensemble: independent draws, or quantiles at equidistant levels in the rank order of draws."""
