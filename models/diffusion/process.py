"""The scale-aware diffusion: forward marginals, reverse step, conversions between noise, v and clean residual.

All but `diffuse` is for the shifted variable, residual - endpoint, which follows plain DDPM: the endpoint is a constant
shift of the whole path. Samplers work on the shifted variable and do not depend on the endpoint.

`alpha_bar` of a loss has one value per batch entry, (batch,), on the device of the tensors. That of a sampler is a
scalar on the CPU, which multiplies a tensor of any device without a transfer.
Shapes: all other tensors (batch, F, node). Units: standardized.
"""

import torch
from torch import Tensor


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
