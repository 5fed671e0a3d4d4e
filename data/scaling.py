"""The one place where physical units become standardized ones and back."""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1024  # time steps read at once, so that a memory map stays on disk
WHOLE_WITHIN = 1e-3, 1e-6  # absolute, and as a share of the value


@dataclass(frozen=True)
class Scaler:
    """One mean and one standard deviation for the whole field, as published.

        standardized = (physical - mean) / std

    Missing values (NaN) count in none of it.
    whole: all training values are whole numbers (counts); then a physical value that misses one by the rounding
    of float32 is given back as exactly that, so that equal counts stay equal.
    """

    mean: float
    std: float
    whole: bool = False

    @classmethod
    def fit(cls, training: Tensor) -> "Scaler":
        """Fit to training values (time, node). A constant field has no spread: its std is taken as 1."""
        count = sum(block.numel() - int(block.isnan().sum()) for block in training.split(BLOCK))
        mean = sum(float(block.double().nansum()) for block in training.split(BLOCK)) / count
        square = sum(float((block.double() - mean).square().nansum()) for block in training.split(BLOCK))
        std = (square / count) ** 0.5
        whole = all(bool(((block == block.round()) | block.isnan()).all()) for block in training.split(BLOCK))
        return cls(mean, std if std > 1e-12 * max(abs(mean), 1e-300) else 1.0, whole)

    def standardize(self, physical: Tensor) -> Tensor:
        return (physical.float() - self.mean) * (1 / self.std)  # CUDA divides so too: the same bits everywhere

    def physical(self, standardized: Tensor) -> Tensor:
        physical = standardized * self.std + self.mean
        if not self.whole:
            return physical
        nearest = physical.round()
        absolute, relative = WHOLE_WITHIN
        return torch.where((physical - nearest).abs() < absolute + relative * nearest.abs(), nearest, physical)
