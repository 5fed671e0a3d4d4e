"""Noise schedules: the variance of the noise that each diffusion step adds."""

import torch
from torch import Tensor


def linear_beta(steps: int, first: float = 1e-4, last: float = 0.5) -> Tensor:
    """Variances (N,) that grow linearly. Source: the CoST paper's setting."""
    return torch.linspace(first, last, steps, dtype=torch.float64)


def quadratic_beta(steps: int, first: float = 1e-4, last: float = 0.5) -> Tensor:
    """Variances (N,) whose square roots grow linearly. Source: the authors' release ("quad"), after CSDI."""
    return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2


def alpha_bar_of(beta: Tensor) -> Tensor:
    """Share of the clean variance that is left at each step n: (1 - beta[0]) * ... * (1 - beta[n]), (N,).

    float64, so that products over many steps keep their digits.
    Source: Ho et al. 2020 (arXiv:2006.11239), section 2.
    """
    return (1 - beta.double()).cumprod(0)


NOISE_SCHEDULES = {"quadratic": quadratic_beta, "linear": linear_beta}
