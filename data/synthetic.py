"""A field whose predictive law is known exactly: what forecasts are measured against.

The field is seasonal, correlated in space and time, and noisier at some hours and nodes than at others:

    values[t, v] = seasonal_mean[slot(t), v] + spread[slot(t), v] * z[t, v]
    cov(z[t, v], z[s, u]) = temporal[t - s] * spatial[v, u]
    temporal[lag] = slow_weight * slow_decay ** |lag| + (1 - slow_weight) * fast_decay ** |lag|
    spatial[v, u] = (1 - nugget) * exp(-distance[v, u] / length_scale) + nugget * (v == u)

z is a stationary Gaussian process, so the law of the future given the history is Gaussian too, with mean and
covariance in closed form. A score divided by the score of that law says how far a forecaster is from perfect.
"""

import math
from dataclasses import dataclass

import torch

START = "2020-01-06"  # a Monday, so that step 0 opens a week
STEPS_PER_DAY = 24
LEVEL = 50.0
SPREAD_RANGE = (4.0, 12.0)
MAX_COVARIANCE_ENTRIES = 2**26  # 512 MiB in float64


@dataclass(frozen=True, eq=False)
class OraclePredictive:
    """Exact Gaussian law of the future given the history.

        future[b, f, v] = mean[b, f, v] + spread[b, f, v] * error[f, v]
        cov(error[f, v], error[g, u]) = temporal_covariance[f, g] * spatial_covariance[v, u]

    Shapes: mean, spread (batch, horizon, node); temporal_covariance (horizon, horizon);
    spatial_factor (node, node), lower Cholesky factor of the spatial covariance. Units: physical.
    `mean`, `std` and samples have the dtype and device of the history; the two matrices stay in float64.
    """

    mean: torch.Tensor
    spread: torch.Tensor
    temporal_covariance: torch.Tensor
    spatial_factor: torch.Tensor

    @property
    def std(self):
        """Marginal standard deviation of each value, (batch, horizon, node)."""
        return self.spread * self.temporal_covariance.diagonal().sqrt().to(self.spread)[:, None]

    def covariance(self):
        """Joint covariance of each future, (batch, horizon * node, horizon * node) in float64, time-major.

        Raises: ValueError where it would not fit in memory; `sample` and `std` work at any size.
        """
        batch, horizon, nodes = self.mean.shape
        if batch * (horizon * nodes) ** 2 > MAX_COVARIANCE_ENTRIES:
            raise ValueError(
                f"the joint covariance of {batch} futures of {horizon} steps x {nodes} nodes has "
                f"{batch * (horizon * nodes) ** 2:.1e} entries, more than {MAX_COVARIANCE_ENTRIES:.1e}; "
                "ask for fewer windows, steps or nodes, or use .std and .sample()"
            )
        spatial_covariance = self.spatial_factor @ self.spatial_factor.T
        spread = self.spread.flatten(1).to(spatial_covariance)
        error_covariance = torch.kron(self.temporal_covariance, spatial_covariance)
        return spread[:, :, None] * error_covariance * spread[:, None, :]

    def sample(self, members, generator):
        """Draw joint futures, (batch, member, horizon, node).

            future = mean + spread * (temporal_factor @ white @ spatial_factor.T)

        The two factors are the lower Cholesky factors of the two covariances.
        """
        batch, horizon, nodes = self.mean.shape
        shape, dtype = (batch, members, horizon, nodes), self.mean.dtype
        white = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device).to(self.mean)
        temporal_factor = torch.linalg.cholesky(self.temporal_covariance)
        error = temporal_factor.to(white) @ (white @ self.spatial_factor.T.to(white))
        return self.mean[:, None] + self.spread[:, None] * error


@dataclass(frozen=True, eq=False)
class OracleField:
    """A simulated field together with the law it was drawn from.

    Shapes: values (step, node) in float32; positions (node, 2) in the unit square, seasonal_mean and spread
    (slot, node), spatial_factor (node, node), lower Cholesky factor of the spatial covariance, in float64.
    A slot is an hour of a weekday (0-23) or of a weekend day (24-47). Units: physical.
    """

    values: torch.Tensor
    positions: torch.Tensor
    seasonal_mean: torch.Tensor
    spread: torch.Tensor
    spatial_factor: torch.Tensor
    slow_weight: float
    slow_decay: float
    fast_decay: float
    start: str = START
    steps_per_day: int = STEPS_PER_DAY

    @property
    def spatial_covariance(self):
        """Covariance of z between nodes at one time, (node, node), ones on the diagonal."""
        return self.spatial_factor @ self.spatial_factor.T

    def temporal_covariance(self, lag):
        """Covariance of z at one node between times `lag` steps apart, for an integer tensor of any shape."""
        lag = lag.abs().double()
        return self.slow_weight * self.slow_decay**lag + (1 - self.slow_weight) * self.fast_decay**lag

    def predictive(self, history, first_step, horizon):
        """Law of the `horizon` steps after `history`, given the history and nothing earlier.

            gain = K_fh inverse(K_hh)                     K = temporal covariance of (history, future)
            mean = seasonal_mean + spread * (gain @ z_history)
            covariance of z_future = (K_ff - gain K_hf) (x) spatial covariance

        Space drops out of the gain because every node has the same history of times. Steps may lie beyond the
        simulated series: the law has no end.
        Shapes: history (batch, H, node); first_step (batch,) integers, the step at which each window begins.
        Units: physical.
        Source: Gaussian conditioning, Rasmussen & Williams 2006, Eq. A.6.
        """
        nodes = len(self.positions)
        if history.ndim != 3 or history.shape[1] < 1 or history.shape[2] != nodes:
            raise ValueError(f"history is {tuple(history.shape)}; it must be (batch, H >= 1, {nodes} nodes)")
        first_step = torch.as_tensor(first_step, device="cpu")
        if first_step.shape != history.shape[:1] or first_step.is_floating_point():
            raise ValueError(f"first_step must hold one integer for each of the {len(history)} windows")
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}; it must be at least 1")

        seen = history.shape[1]
        step = torch.arange(seen + horizon)
        K = self.temporal_covariance(step[:, None] - step)
        K_hh, K_hf, K_ff = K[:seen, :seen], K[:seen, seen:], K[seen:, seen:]
        gain = torch.linalg.solve(K_hh, K_hf).T

        slot = seasonal_slot(first_step[:, None] + step)
        mean, spread = self.seasonal_mean[slot], self.spread[slot]
        z_history = (history.to("cpu", torch.float64) - mean[:, :seen]) / spread[:, :seen]
        return OraclePredictive(
            mean=(mean[:, seen:] + spread[:, seen:] * (gain @ z_history)).to(history),
            spread=spread[:, seen:].to(history),
            temporal_covariance=K_ff - gain @ K_hf,
            spatial_factor=self.spatial_factor,
        )


def make_oracle(
    num_nodes=32,
    num_steps=4000,
    seed=0,
    length_scale=0.3,
    nugget=0.01,
    slow_weight=0.6,
    slow_decay=0.95,
    fast_decay=0.6,
):
    """Simulate an `OracleField` of hourly values, level about 50 and standard deviation about 10.

    The same arguments give the same values to the bit, and a longer series begins with the shorter one.
    The unit of length_scale is the square's side; the decays are lag-one correlations of the two parts of z.
    Raises: ValueError for a size below one or a parameter for which no such field exists.
    """
    for name, value, valid, rule in (
        ("num_nodes", num_nodes, num_nodes >= 1, "at least 1"),
        ("num_steps", num_steps, num_steps >= 1, "at least 1"),
        ("length_scale", length_scale, length_scale > 0, "above 0"),
        ("nugget", nugget, 0 < nugget <= 1, "above 0 and at most 1"),
        ("slow_weight", slow_weight, 0 <= slow_weight <= 1, "between 0 and 1"),
        ("slow_decay", slow_decay, 0 <= slow_decay < 1, "at least 0 and below 1"),
        ("fast_decay", fast_decay, 0 <= fast_decay < 1, "at least 0 and below 1"),
    ):
        if not valid:
            raise ValueError(f"{name} is {value}; it must be {rule}")

    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(num_nodes, 2, generator=generator, dtype=torch.float64)
    seasonal_mean, spread = _draw_seasons(positions, generator)
    distance = (positions[:, None] - positions).norm(dim=-1)
    correlation = (1 - nugget) * torch.exp(-distance / length_scale)
    spatial_factor = torch.linalg.cholesky(correlation + nugget * torch.eye(num_nodes, dtype=torch.float64))

    weight = torch.tensor([slow_weight, 1 - slow_weight], dtype=torch.float64)
    decay = torch.tensor([slow_decay, fast_decay], dtype=torch.float64)
    z = _simulate(num_steps, weight, decay, spatial_factor, generator)
    slot = seasonal_slot(torch.arange(num_steps))
    values = (seasonal_mean[slot] + spread[slot] * z).float()
    return OracleField(
        values, positions, seasonal_mean, spread, spatial_factor, slow_weight, slow_decay, fast_decay
    )


def seasonal_slot(step):
    """Slot of each step of the series: hour of day, plus 24 on Saturday and Sunday; any integer tensor."""
    weekend = step // STEPS_PER_DAY % 7 >= 5
    return step % STEPS_PER_DAY + STEPS_PER_DAY * weekend


def _draw_seasons(positions, generator):
    """Seasonal mean and spread of each slot and node, two tensors (2 * STEPS_PER_DAY, node).

    The mean is a daily wave that travels along the first axis, weaker and lower at weekends. The spread fills
    SPREAD_RANGE: least at 03:00 on the calmest node, most at 15:00 on the wildest.
    """
    hour_angle = 2 * torch.pi * torch.arange(STEPS_PER_DAY, dtype=torch.float64)[:, None] / STEPS_PER_DAY
    offset = 4 * torch.randn(len(positions), generator=generator, dtype=torch.float64)
    amplitude, wildness = torch.rand(2, len(positions), generator=generator, dtype=torch.float64)

    wave = (6 + 4 * amplitude) * torch.sin(hour_angle - torch.pi / 2 * positions[:, 0])
    seasonal_mean = LEVEL + offset + torch.cat([wave, 0.6 * wave - 4])
    low, high = SPREAD_RANGE
    of_hour = (1 - torch.cos(hour_angle - torch.pi / 4)) / 2
    spread = low * (high / low) ** ((of_hour + wildness) / 2)
    return seasonal_mean, spread.repeat(2, 1)


def _simulate(num_steps, weight, decay, spatial_factor, generator):
    """Draw z (step, node), a weighted sum of stationary first-order autoregressions, one for each `decay`.

        part[t] = decay * part[t - 1] + sqrt(1 - decay ** 2) * white[t]
        z = sum(sqrt(weight) * part) @ spatial_factor.T

    The recursion is unrolled over one day: part = carry * (last part of the day before) + response @ white.
    Days are whole and the surplus is cut: all shapes are fixed, so a longer series begins with the same bits.
    """
    hour, nodes = torch.arange(STEPS_PER_DAY), len(spatial_factor)
    lag = (hour[:, None] - hour).clamp(min=0)
    decay = decay[:, None, None]
    carry = decay ** (hour[:, None] + 1)
    response = (1 - decay.square()).sqrt() * (decay**lag).tril()

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    days, last = [], draw(len(decay), 1, nodes)
    for _ in range(math.ceil(num_steps / STEPS_PER_DAY)):
        part = carry * last + response @ draw(len(decay), STEPS_PER_DAY, nodes)
        last = part[:, -1:]
        days.append((weight.sqrt()[:, None, None] * part).sum(0) @ spatial_factor.T)
    return torch.cat(days)[:num_steps]
