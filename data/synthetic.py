"""Synthetic field whose predictive distribution is known exactly.

The field is seasonal, correlated in space and time, and its spread depends on the hour and the node:

    values[t, v] = seasonal_mean[slot(t), v] + spread[slot(t), v] * warp(z[t, v])
    cov(z[t, v], z[s, u]) = temporal[t - s] * spatial[v, u]
    temporal[lag] = 0.6 * 0.95 ** |lag| + 0.4 * 0.6 ** |lag|
    spatial[v, u] = (1 - nugget) * exp(-distance[v, u] / length_scale) + nugget * (v == u)

z is a stationary Gaussian process, so its distribution given the history is Gaussian too, with mean and covariance in
closed form. With a `skew`, `warp` makes the distribution of the values skewed, and its spread grows with their level.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS_PER_DAY = 24
WEIGHTS, DECAYS = (0.6, 0.4), (0.95, 0.6)  # of the two parts of z: share of the variance, lag-one correlation


@dataclass(frozen=True)
class OracleSettings:
    """Size and distribution of a synthetic field."""

    nodes: int = 32
    steps: int = 4000
    length_scale: float = 0.3  # in sides of the square that the nodes lie in
    skew: float = 0.0
    nugget: float = 0.01


@dataclass(frozen=True, eq=False)
class OraclePredictive:
    """Exact distribution of the future given the history.

        future[b, f, v] = seasonal_mean[b, f, v] + spread[b, f, v] * warp(z[b, f, v] + error[f, v])
        cov(error[f, v], error[g, u]) = temporal_covariance[f, g] * spatial_covariance[v, u]

    Shapes: (batch, horizon, node) where none is given. Units: physical, but for z.
    """

    z: Tensor  # conditional mean
    seasonal_mean: Tensor
    spread: Tensor
    temporal_covariance: Tensor  # (horizon, horizon)
    spatial_factor: Tensor  # (node, node), lower Cholesky factor of the spatial covariance
    skew: float

    @property
    def z_std(self) -> Tensor:
        """Conditional standard deviation of z: (horizon, 1)."""
        return self.temporal_covariance.diagonal().sqrt().to(self.z).unsqueeze(1)

    def values(self, z: Tensor) -> Tensor:
        """Futures by z: (..., horizon, node), after a batch axis."""
        shape = len(z), *[1] * (z.dim() - 3), *self.z.shape[1:]
        return self.seasonal_mean.view(shape) + self.spread.view(shape) * warp(z, self.skew)

    def sample_z(self, members: int, generator: torch.Generator) -> Tensor:
        """z of joint futures, (batch, member, horizon, node)."""
        shape = len(self.z), members, *self.z.shape[1:]
        white = torch.randn(shape, generator=generator, dtype=self.z.dtype, device=generator.device).to(self.z)
        temporal_factor = torch.linalg.cholesky(self.temporal_covariance)
        return self.z[:, None] + temporal_factor.to(white) @ (white @ self.spatial_factor.T.to(white))


def warp(z: Tensor, skew: float) -> Tensor:
    """A standard normal value as a lognormal one of mean 0 and variance 1; z itself where skew is 0.

        warped = (exp(skew * z) - exp(skew^2 / 2)) / size,    size = sqrt((exp(skew^2) - 1) * exp(skew^2))
    """
    return z if skew == 0 else (torch.exp(skew * z) - math.exp(skew**2 / 2)) / _size(skew)


def unwarp(warped: Tensor, skew: float) -> Tensor:
    """The inverse of `warp`."""
    return warped if skew == 0 else torch.log((warped * _size(skew) + math.exp(skew**2 / 2)).clamp_min(1e-12)) / skew


def _size(skew: float) -> float:
    return math.sqrt(math.expm1(skew**2) * math.exp(skew**2))


@dataclass(frozen=True, eq=False)
class OracleField:
    """A simulated field and the distribution that it was drawn from, in float64 but for the values. Units: physical."""

    settings: OracleSettings
    values: Tensor  # (step, node), float32
    positions: Tensor  # (node, 2), in the unit square
    seasonal_mean: Tensor  # (slot, node): hours of a weekday, then hours of a weekend day
    spread: Tensor  # (slot, node)
    spatial_factor: Tensor  # (node, node), lower Cholesky factor of the spatial covariance

    @property
    def spatial_covariance(self) -> Tensor:
        """Covariance of z between nodes at one time, (node, node)."""
        return self.spatial_factor @ self.spatial_factor.T

    def temporal_covariance(self, lag: Tensor) -> Tensor:
        """Covariance of z at one node between times `lag` steps apart, for an integer tensor of any shape."""
        return sum(weight * decay ** lag.abs().double() for weight, decay in zip(WEIGHTS, DECAYS, strict=True))

    def predictive(self, history: Tensor, first_step: Tensor, horizon: int) -> OraclePredictive:
        """Distribution of the `horizon` steps after `history`, given the history and nothing earlier.

            gain = K_fh inverse(K_hh)                     K = temporal covariance of (history, future)
            mean of z_future = gain @ z_history
            covariance of z_future = (K_ff - gain K_hf) (x) spatial covariance

        Space drops out of the gain because every node has the same history of times.
        Shapes: history (batch, H, node); first_step (batch,), the step at which each window begins. Units: physical.
        Source: Gaussian conditioning, Rasmussen & Williams 2006, Eq. A.6.
        """
        seen = history.shape[1]
        step = torch.arange(seen + horizon)
        K = self.temporal_covariance(step[:, None] - step)
        K_hh, K_hf, K_ff = K[:seen, :seen], K[:seen, seen:], K[seen:, seen:]
        gain = torch.linalg.solve(K_hh, K_hf).T
        covariance = K_ff - gain @ K_hf

        slot = seasonal_slot(first_step.cpu()[:, None] + step)
        mean, spread, skew = self.seasonal_mean[slot], self.spread[slot], self.settings.skew
        z = gain @ unwarp((history.to("cpu", torch.float64) - mean[:, :seen]) / spread[:, :seen], skew)
        mean, spread = mean[:, seen:].to(history), spread[:, seen:].to(history)
        return OraclePredictive(z.to(history), mean, spread, covariance, self.spatial_factor, skew)


def make_oracle(settings: OracleSettings = OracleSettings(), seed: int = 0) -> OracleField:
    """Simulate a field of hourly values; a longer series begins with the bits of the shorter one."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(settings.nodes, 2, generator=generator, dtype=torch.float64)
    offset = 4 * torch.randn(settings.nodes, generator=generator, dtype=torch.float64)
    amplitude, node_spread = torch.rand(2, settings.nodes, generator=generator, dtype=torch.float64)

    hour_angle = 2 * torch.pi * torch.arange(STEPS_PER_DAY, dtype=torch.float64)[:, None] / STEPS_PER_DAY
    wave = (6 + 4 * amplitude) * torch.sin(hour_angle - torch.pi / 2 * positions[:, 0])
    seasonal_mean = 50 + offset + torch.cat([wave, 0.6 * wave - 4])  # a wave along the first axis, weaker at weekends
    hour_spread = (1 - torch.cos(hour_angle - torch.pi / 4)) / 2
    spread = (4 * 3 ** ((hour_spread + node_spread) / 2)).repeat(2, 1)  # 4 to 12, smallest at 03:00

    distance = (positions[:, None] - positions).norm(dim=-1)
    correlation = (1 - settings.nugget) * torch.exp(-distance / settings.length_scale)
    correlation.diagonal().add_(settings.nugget)
    spatial_factor = torch.linalg.cholesky(correlation)
    z = _simulate(settings, spatial_factor, generator)
    slot = seasonal_slot(torch.arange(settings.steps))
    values = (seasonal_mean[slot] + spread[slot] * warp(z, settings.skew)).float()
    return OracleField(settings, values, positions, seasonal_mean, spread, spatial_factor)


def seasonal_slot(step: Tensor) -> Tensor:
    """Slot of each step of the series: hour of day, plus 24 on Saturday and Sunday; any integer tensor."""
    weekend = step // STEPS_PER_DAY % 7 >= 5
    return step % STEPS_PER_DAY + STEPS_PER_DAY * weekend


def _simulate(settings: OracleSettings, spatial_factor: Tensor, generator: torch.Generator) -> Tensor:
    """z (step, node), a weighted sum of stationary first-order autoregressions, one for each decay.

        part[t] = decay * part[t - 1] + sqrt(1 - decay ** 2) * white[t]
        z = sum(sqrt(weight) * part) @ spatial_factor.T

    The recursion is unrolled over whole days: all shapes are fixed, so a longer series begins with the same bits.
    """
    weight, decay = (torch.tensor(parts, dtype=torch.float64)[:, None, None] for parts in (WEIGHTS, DECAYS))
    hour, nodes = torch.arange(STEPS_PER_DAY), len(spatial_factor)
    lag = (hour[:, None] - hour).clamp(min=0)
    carry = decay ** (hour[:, None] + 1)
    response = (1 - decay.square()).sqrt() * (decay**lag).tril()

    white = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    days, last = [], white(len(decay), 1, nodes)
    for _ in range(math.ceil(settings.steps / STEPS_PER_DAY)):
        part = carry * last + response @ white(len(decay), STEPS_PER_DAY, nodes)
        last = part[:, -1:]
        days.append((weight.sqrt() * part).sum(0) @ spatial_factor.T)
    return torch.cat(days)[:settings.steps]
