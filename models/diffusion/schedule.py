"""Noise schedules: the variance of the noise that each diffusion step adds."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """Variances of the forward diffusion at the steps n = 0..N-1.

        alpha_bar[n] = (1 - beta[0]) * ... * (1 - beta[n])

    Shapes: (N,) each; float64, so that products over many steps keep their digits.
    Source: Ho et al. 2020 (arXiv:2006.11239), section 2.
    """

    beta: Tensor
    alpha_bar: Tensor

    @classmethod
    def from_beta(cls, beta: Tensor) -> "NoiseSchedule":
        return cls(beta, (1 - beta).cumprod(0))

    def __len__(self) -> int:
        return len(self.beta)


def linear_beta(steps: int, first: float = 1e-4, last: float = 0.5) -> Tensor:
    """Variances (N,) that grow linearly. Source: the CoST paper's setting."""
    return torch.linspace(first, last, steps, dtype=torch.float64)


def quadratic_beta(steps: int, first: float = 1e-4, last: float = 0.5) -> Tensor:
    """Variances (N,) whose square roots grow linearly. Source: the authors' release ("quad"), after CSDI."""
    return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2


def cosine_beta(steps: int, first: float = 0.0, last: float = 0.999) -> Tensor:
    """Variances (N,) whose alpha_bar falls like a squared cosine, clamped to `first` .. `last`.

    Source: Nichol and Dhariwal 2021 (arXiv:2102.09672), Eq. 17, with their offset 0.008.
    """
    time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(first, last)


NOISE_SCHEDULES = {"quadratic": quadratic_beta, "linear": linear_beta, "cosine": cosine_beta}
