"""The one place where physical units become standardized ones and back."""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1024  # time steps read at once, so that a memory map stays on disk
WHOLE_WITHIN = 1e-3, 1e-6  # absolute, and as a share of the value
LARGEST_WHOLE = 2.0**24  # beyond, every float32 is a whole number


@dataclass(frozen=True)
class Scaler:
    """One mean and one standard deviation for the whole field, as published.

        standardized = (physical - mean) / std

    Missing values (NaN) count in none of it.
    whole: the training values are whole numbers (counts), those that a float32 could hold a fraction of; then a
    physical value that misses a whole number by the rounding of float32 is given back as exactly that, so that equal
    counts stay equal.
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
        return cls(mean, std if std > 1e-12 * max(abs(mean), 1e-300) else 1.0, is_whole(training))

    def standardize(self, physical: Tensor) -> Tensor:
        return (physical.float() - self.mean) * (1 / self.std)  # CUDA divides so too: the same bits everywhere

    def physical(self, standardized: Tensor) -> Tensor:
        """Physical values in float64; zero comes back as zero, so that it equals the zeros of the data."""
        physical = standardized.double().mul_(self.std).add_(self.mean)
        if not self.whole:
            return physical.masked_fill_(standardized == self.standardize(torch.zeros(())).item(), 0.0)
        nearest = physical.round()
        absolute, relative = WHOLE_WITHIN
        return torch.where((physical - nearest).abs_() < relative * nearest.abs() + absolute, nearest, physical)


def is_whole(values: Tensor) -> bool:
    """Whether values (time, node) are whole numbers and not all of them zero, missing or beyond LARGEST_WHOLE."""
    some = False
    for block in map(Tensor.float, values.split(BLOCK)):
        small = block[block.abs() < LARGEST_WHOLE]
        if bool((small != small.round()).any()):
            return False
        some |= bool(small.any())
    return some
