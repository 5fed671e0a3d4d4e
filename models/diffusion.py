"""The mathematics of the diffusion: noise schedules, forward marginals, reverse step, samplers.

Tensors in, tensors out, no networks, files or configuration. All but `diffuse` is for the shifted variable, residual -
endpoint, which follows plain DDPM: the endpoint is a constant shift of the whole path.

`alpha_bar` of a loss has one value per batch entry, (batch,), on the device of the tensors. That of a sampler is a
scalar on the CPU, which multiplies a tensor of any device without a transfer.
Shapes: all other tensors (batch, F, node). Units: standardized.

One calling shape for all samplers:

    clean = sampler(predict_velocity, start, alpha_bars, steps, noise)

    predict_velocity(noisy, step) -> v of `noisy` (same shape) at the integer diffusion step, see `velocity`
    start       the shifted residual at the last step, standard normal
    alpha_bars  share of the clean variance at each of N steps, see `alpha_bar_of`: (N,), float64, on the CPU
    steps       number of steps of the sampler, from 1 to N
    noise(noise_index)  standard normal tensor of the shape of start, noise_index = 0, 1, ...; deterministic samplers
                never call it
"""

from functools import partial

import torch
from torch import Tensor


def beta_of(power: float, steps: int, first: float = 1e-4, last: float = 0.5) -> Tensor:
    """Variances of the noise that each diffusion step adds, with roots that grow linearly: (N,).

    Source: the CoST paper's setting (power 1); the authors' release ("quad", power 2), after CSDI.
    """
    return torch.linspace(first ** (1 / power), last ** (1 / power), steps, dtype=torch.float64) ** power


NOISE_SCHEDULES = {"quadratic": partial(beta_of, 2), "linear": partial(beta_of, 1)}


def alpha_bar_of(beta: Tensor) -> Tensor:
    """Share of the clean variance that is left at each step n: (1 - beta[0]) * ... * (1 - beta[n]), (N,).

    float64, so that products over many steps keep their digits.
    Source: Ho et al. 2020 (arXiv:2006.11239), section 2.
    """
    return (1 - beta.double()).cumprod(0)


def broadcast(alpha_bar: Tensor, like: Tensor) -> Tensor:
    """Values (batch,) with the trailing axes and the dtype of `like`."""
    return alpha_bar.to(like.dtype).reshape(alpha_bar.shape + (1,) * (like.dim() - 1))


def draw_endpoint(fluctuation_scale: Tensor, noise: Tensor) -> Tensor:
    """The endpoint of the diffusion: the fluctuation scale with a random sign, +1 or -1 with probability 1/2.

        endpoint = sign(noise) * fluctuation_scale

    Shapes: fluctuation_scale (node,) or as noise.
    Source: CoST section 4.3, the paper's Q.
    """
    return torch.copysign(fluctuation_scale.to(noise.dtype).expand_as(noise), noise)


def diffuse(residual: Tensor, endpoint: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """The residual after the forward diffusion up to `alpha_bar`; at the last step about N(endpoint, I).

        noisy = endpoint + sqrt(alpha_bar) * (residual - endpoint) + sqrt(1 - alpha_bar) * noise

    Source: CoST Eq. 12-13 (arXiv:2502.11013), after CARD (arXiv:2206.07275).
    """
    alpha_bar = broadcast(alpha_bar, residual)
    return endpoint + alpha_bar.sqrt() * (residual - endpoint) + (1 - alpha_bar).sqrt() * noise


def posterior(noisy: Tensor, clean: Tensor, alpha_bar: Tensor, alpha_bar_next: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance at the next, less noisy step, given the noisy and the clean value.

        ratio    = alpha_bar / alpha_bar_next                   (between neighbouring steps: alpha)
        mean     = sqrt(alpha_bar_next) * (1 - ratio) / (1 - alpha_bar) * clean
                 + sqrt(ratio) * (1 - alpha_bar_next) / (1 - alpha_bar) * noisy
        variance = (1 - ratio) * (1 - alpha_bar_next) / (1 - alpha_bar)

    alpha_bar, alpha_bar_next: scalars, any number of steps apart; alpha_bar_next 1 gives the clean value.
    Source: Ho et al. 2020, Eq. 7; between neighbouring steps the mean is CoST Eq. 14. Differs from the paper's print:
    alpha, not alpha_bar, stands under the root, as the algebra and the authors' release have it.
    """
    ratio = alpha_bar / alpha_bar_next
    share = (1 - alpha_bar_next) / (1 - alpha_bar)
    mean = alpha_bar_next.sqrt() * (1 - ratio) / (1 - alpha_bar) * clean + ratio.sqrt() * share * noisy
    return mean, (1 - ratio) * share


def velocity(clean: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """v, a target with variance 1 at every step: v = sqrt(alpha_bar) * noise - sqrt(1 - alpha_bar) * clean.

    Source: Salimans and Ho 2022 (arXiv:2202.00512), appendix D.
    """
    alpha_bar = broadcast(alpha_bar, clean)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean


def velocity_to_clean(noisy: Tensor, predicted: Tensor, alpha_bar: Tensor) -> Tensor:
    """The clean value by a predicted v: clean = sqrt(alpha_bar) * noisy - sqrt(1 - alpha_bar) * v."""
    return alpha_bar.sqrt() * noisy - (1 - alpha_bar).sqrt() * predicted


def noise_to_velocity(noisy: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """v by a predicted noise: v = (noise - sqrt(1 - alpha_bar) * noisy) / sqrt(alpha_bar)."""
    return (noise - (1 - alpha_bar).sqrt() * noisy) / alpha_bar.sqrt()


def evenly_spaced(positions: Tensor, steps: int) -> list[int]:
    """`steps` (1 to N) distinct diffusion steps, from last to first, closest to an even grid of their `positions` (N,).

    A second-order rule has about equal steps in the variable that it integrates.
    """
    last = len(positions) - 1
    if not 1 <= steps <= last + 1:
        raise ValueError(f"--sample_steps {steps}: choose 1 to {last + 1}, the number of diffusion steps")
    grid = torch.linspace(float(positions[last]), float(positions[0]), steps, dtype=torch.float64)
    path = []
    for remaining, target in zip(range(steps - 1, -1, -1), grid, strict=True):
        highest = path[-1] - 1 if path else last
        path.append(min(max(int((positions - target).abs().argmin()), remaining), highest))
    return path


def angle_of(alpha_bar: Tensor) -> Tensor:
    """The angle between clean value and noise: alpha_bar = cos(angle)^2."""
    return torch.atan2((1 - alpha_bar).sqrt(), alpha_bar.sqrt())


def half_log_snr(alpha_bar: Tensor) -> Tensor:
    """lambda, half the logarithm of the signal-to-noise ratio."""
    return (alpha_bar / (1 - alpha_bar)).log() / 2


def along(alpha_bars: Tensor, path: list[int]):
    """Triples (step, its alpha_bar, alpha_bar of the next step on the path; 1 after the last)."""
    found = [alpha_bars[step] for step in path] + [torch.ones_like(alpha_bars[0])]
    return zip(path, found[:-1], found[1:], strict=True)


def ancestral(predict_velocity, start: Tensor, alpha_bars: Tensor, steps: int, noise) -> Tensor:
    """Draw every next value from its posterior: DDPM sampling, on a subset of the diffusion steps when steps < N.

    Source: Ho et al. 2020, Algorithm 2, with the posterior's variance; with all N steps its mean is CoST Eq. 14.
    """
    noisy, path = start, evenly_spaced(torch.arange(len(alpha_bars)), steps)
    for noise_index, (step, alpha_bar, alpha_bar_next) in enumerate(along(alpha_bars, path)):
        clean = velocity_to_clean(noisy, predict_velocity(noisy, step), alpha_bar)
        mean, variance = posterior(noisy, clean, alpha_bar, alpha_bar_next)
        noisy = mean if noise_index == steps - 1 else mean + variance.sqrt() * noise(noise_index)
    return noisy


def adams(predict_velocity, start: Tensor, alpha_bars: Tensor, steps: int, noise=None) -> Tensor:
    """Solve the probability-flow equation with a second-order multistep rule in the angle between clean and noise.

        angle = atan(sqrt(1 - alpha_bar) / sqrt(alpha_bar)),    d noisy / d angle = v,    h = angle_next - angle
        next  = noisy + h * (v + h / (2 h_previous) * (v - v_previous))

    The first step is of first order, since there is no earlier value. For white data the best v is 0, and the result
    is exact in any number of steps; other rules make such data too narrow or too wide. Steps are evenly spaced in
    angle^(2/3): closer where little noise is left.
    Source: v and the angle: Salimans and Ho 2022 (arXiv:2202.00512), appendix D; the rule of Adams and Bashforth.
    """
    path = evenly_spaced(-angle_of(alpha_bars) ** (2 / 3), steps)
    noisy, previous = start, None
    for step, alpha_bar, alpha_bar_next in along(alpha_bars, path):
        v = predict_velocity(noisy, step)
        angle, slope = angle_of(alpha_bar), v
        step_size = angle_of(alpha_bar_next) - angle
        if previous is not None:
            slope = v + step_size / (2 * (angle - previous[1])) * (v - previous[0])
        noisy, previous = noisy + step_size * slope, (v, angle)
    return noisy


def dpm2m(predict_velocity, start: Tensor, alpha_bars: Tensor, steps: int, noise=None) -> Tensor:
    """Solve the probability-flow equation with a second-order multistep rule in log signal-to-noise.

        lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)),   h = lambda_next - lambda
        D      = clean + h / (2 h_previous) * (clean - clean_previous)
        next   = sigma_next / sigma * noisy - sqrt(alpha_bar_next) * expm1(-h) * D

    The first step is of first order, since there is no earlier value. So is the last one, where lambda_next is infinite
    and the rule is `next = clean`.
    Source: Lu et al. 2022 (arXiv:2211.01095), Algorithm 2, on discrete steps evenly spaced in lambda.
    """
    path = evenly_spaced(half_log_snr(alpha_bars), steps)
    noisy, previous = start, None
    for step, alpha_bar, alpha_bar_next in along(alpha_bars, path):
        clean = velocity_to_clean(noisy, predict_velocity(noisy, step), alpha_bar)
        log_snr = half_log_snr(alpha_bar)
        if step == path[-1]:
            break
        step_size = half_log_snr(alpha_bar_next) - log_snr
        extrapolated = clean
        if previous is not None:
            weight = step_size / (2 * (log_snr - previous[1]))
            extrapolated = clean + weight * (clean - previous[0])
        shrink = ((1 - alpha_bar_next) / (1 - alpha_bar)).sqrt()
        gain = alpha_bar_next.sqrt() * torch.expm1(-step_size)
        noisy, previous = shrink * noisy - gain * extrapolated, (clean, log_snr)
    return clean


SAMPLERS = {"ancestral": ancestral, "dpm2m": dpm2m, "adams": adams}
