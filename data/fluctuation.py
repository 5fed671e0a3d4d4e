"""Fluctuation scale: spread of each node around its regular part."""

import torch
from torch import Tensor

from .scaling import Scaler

SPECTRUM_BYTES, LEAST_NODES = 1 << 28, 256  # memory of one block of nodes, and how many are in it at least
FLOOR = 1e-4  # scale of a constant node; standardized units


def fluctuation_scale(training: Tensor, scaler: Scaler, threshold: float = 0.1) -> Tensor:
    """Spread of the weak spectral components of each node's training series.

        amplitude   = |FFT(series)|
        fluctuation = inverse FFT of the components with amplitude < threshold * largest amplitude of the node
        scale       = standard deviation of the fluctuation over time, at least FLOOR

    Shapes: training (time, node) in physical units -> (node,). Units: standardized.
    Gaps (NaN) are filled with the node's mean, and the variance is divided by the share that is observed.
    Source: CoST Eq. 8-10 (arXiv:2502.11013); differs from the paper: the standard deviation, which has the
    residual's units and is what the authors' release computes; Eq. 10 prints the variance.
    """
    time = len(training)
    nodes_at_once = max(LEAST_NODES, SPECTRUM_BYTES // (8 * time))
    parts = []
    for first in range(0, training.shape[1], nodes_at_once):
        nodes = slice(first, first + nodes_at_once)
        series = scaler.of_nodes(nodes).standardize(training[:, nodes]).double()
        missing = series.isnan()
        if gaps := bool(missing.any()):
            series = torch.where(missing, series.nanmean(0).nan_to_num(), series)
        spectrum = torch.fft.rfft(series, dim=0)
        amplitude = spectrum.abs()
        weak = spectrum * (amplitude < threshold * amplitude.amax(0))
        part = torch.fft.irfft(weak, n=time, dim=0).var(0, correction=0)
        parts.append(part * time / (~missing).sum(0).clamp_min(1) if gaps else part)
    return torch.cat(parts).sqrt().clamp_min(FLOOR).float()
