"""The one place where physical units become standardized ones and back."""

from dataclasses import dataclass

from torch import Tensor

BLOCK = 1024  # time steps read at once, so that a memory map stays on disk


@dataclass(frozen=True)
class Scaler:
    """One mean and one standard deviation for the whole field, as published.

        standardized = (physical - mean) / std
    """

    mean: float
    std: float

    @classmethod
    def fit(cls, training: Tensor) -> "Scaler":
        """Fit to training values (time, node). A constant field has no spread: its std is taken as 1."""
        mean = sum(float(block.double().sum()) for block in training.split(BLOCK)) / training.numel()
        square = sum(float((block.double() - mean).square().sum()) for block in training.split(BLOCK))
        std = (square / training.numel()) ** 0.5
        return cls(mean, std if std > 1e-12 * max(abs(mean), 1e-300) else 1.0)

    def standardize(self, physical: Tensor) -> Tensor:
        return (physical.float() - self.mean) / self.std

    def physical(self, standardized: Tensor) -> Tensor:
        return standardized * self.std + self.mean
