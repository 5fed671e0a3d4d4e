"""The scale-aware diffusion process: forward marginals, reverse step, noise <-> clean residual.

Everything is exact for the shifted variable u = residual - endpoint, which follows plain DDPM:
the endpoint is a constant shift of the whole path. Samplers therefore work on u and know no scale.

A noise level is one value per batch entry, shape (batch,), on the tensors' device, or a scalar of a
`NoiseSchedule`: those stay on the CPU, where a scalar multiplies a tensor of any device without a transfer.
"""

import torch
from torch import Tensor

from .schedule import NoiseSchedule


def broadcast(level: Tensor, like: Tensor) -> Tensor:
    """Give one value per batch entry the trailing axes of `like`, and its dtype; leave a scalar as it is."""
    return level.to(like.dtype).reshape(level.shape + (1,) * (like.dim() - 1)) if level.dim() else level


def draw_endpoint(fluctuation_scale: Tensor, noise: Tensor) -> Tensor:
    """Give each element the fluctuation scale of its node with a random sign: where its noising path ends.

        endpoint = sign(noise) * fluctuation_scale

    Shapes: fluctuation_scale (node,); noise and result (batch, horizon, node). Units: standardized.
    The noise only lends its signs: +1 or -1 with probability 1/2.
    Source: CoST section 4.3, the paper's Q.
    """
    return torch.copysign(fluctuation_scale.to(noise.dtype).expand_as(noise), noise)


def diffuse(residual: Tensor, endpoint: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Carry a clean residual along the forward process to noise level `alpha_bar`.

        noisy = endpoint + sqrt(alpha_bar) * (residual - endpoint) + sqrt(1 - alpha_bar) * noise

    Shapes: residual, endpoint, noise (batch, horizon, node); alpha_bar (batch,). Units: standardized.
    At the last step the residual is all but forgotten: noisy ~ N(endpoint, I).
    Source: CoST Eq. 12-13 (arXiv:2502.11013), after CARD (arXiv:2206.07275).
    """
    alpha_bar = broadcast(alpha_bar, residual)
    return endpoint + alpha_bar.sqrt() * (residual - endpoint) + (1 - alpha_bar).sqrt() * noise


def noise_to_clean(noisy: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Recover the clean shifted residual from a noisy one and its noise.

        clean = (noisy - sqrt(1 - alpha_bar) * noise) / sqrt(alpha_bar)
    """
    alpha_bar = broadcast(alpha_bar, noisy)
    return (noisy - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()


def clean_to_noise(noisy: Tensor, clean: Tensor, alpha_bar: Tensor) -> Tensor:
    """Recover the noise in a noisy shifted residual from its clean value: inverse of `noise_to_clean`."""
    alpha_bar = broadcast(alpha_bar, noisy)
    return (noisy - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()


def posterior(noisy: Tensor, clean: Tensor, alpha_bar: Tensor, alpha_bar_next: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the shifted residual at a lower noise level, given its noisy and clean value.

        ratio    = alpha_bar / alpha_bar_next                   (one-step case: alpha[n])
        mean     = sqrt(alpha_bar_next) * (1 - ratio) / (1 - alpha_bar) * clean
                 + sqrt(ratio) * (1 - alpha_bar_next) / (1 - alpha_bar) * noisy
        variance = (1 - ratio) * (1 - alpha_bar_next) / (1 - alpha_bar)

    Both levels are scalars; `alpha_bar_next` is the lower noise, any number of steps away (1 gives the clean
    value itself).
    Source: Ho et al. 2020, Eq. 7.
    """
    ratio = alpha_bar / alpha_bar_next
    share = (1 - alpha_bar_next) / (1 - alpha_bar)
    mean = alpha_bar_next.sqrt() * (1 - ratio) / (1 - alpha_bar) * clean + ratio.sqrt() * share * noisy
    return mean, (1 - ratio) * share


def reverse_mean(noisy: Tensor, noise: Tensor, endpoint: Tensor, schedule: NoiseSchedule, step: int) -> Tensor:
    """Mean of the reverse step as the paper prints it, in the residual itself.

        mean = (noisy - beta / sqrt(1 - alpha_bar) * noise) / sqrt(alpha) + (1 - 1 / sqrt(alpha)) * endpoint

    The samplers never call this: it is `posterior` of the shifted variable in other words, and a test holds
    the two together.
    Source: CoST Eq. 14; differs from the paper: alpha, not alpha_bar, stands under the root, as the algebra
    and the authors' release have it.
    """
    beta, alpha, alpha_bar = (values[step] for values in (schedule.beta, schedule.alpha, schedule.alpha_bar))
    return (noisy - beta / (1 - alpha_bar).sqrt() * noise) / alpha.sqrt() + (1 - 1 / alpha.sqrt()) * endpoint


def velocity(clean: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """What a network predicts in place of the noise: v = sqrt(alpha_bar) * noise - sqrt(1 - alpha_bar) * clean.

    Its variance is 1 at every noise level where that of the clean value is.
    Shapes: clean (the shifted residual) and noise alike; alpha_bar (batch,).
    Source: Salimans and Ho 2022 (arXiv:2202.00512), appendix D.
    """
    alpha_bar = broadcast(alpha_bar, clean)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean


def velocity_to_noise(noisy: Tensor, predicted: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise in a noisy shifted residual by its v: sqrt(1 - alpha_bar) * noisy + sqrt(alpha_bar) * v."""
    alpha_bar = broadcast(alpha_bar, noisy)
    return (1 - alpha_bar).sqrt() * noisy + alpha_bar.sqrt() * predicted
