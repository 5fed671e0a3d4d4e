"""Noise of the diffusion: the coordinates in which it is white, for independent values or a covariance of fields.

Both classes have one interface: `fit` to training windows, `whiten` and `unwhiten`, and how the inputs of a window look
in their coordinates (`history`, `project`, `share`). Shapes: z (..., F, node), white (..., F, coordinate).
"""

import torch
from torch import Tensor, nn

from data.context import Context

from .modes import leading_axes

RIDGE = 1e-3  # share of the mean variance added to each covariance before it is factorised
SMALLEST_IDIOSYNCRATIC = 0.05  # of a node's variance, that the modes leave at least where a value is imputed
SMALLEST_SPREAD = 0.25  # of z at a node and step, as a share of the root mean square of all: rarely varying nodes
POOLED = 0.5  # share of the covariance over steps that a node takes from all nodes


class IndependentNoise(nn.Module):
    """Every value for itself, as published: the coordinates are the nodes, and white = z."""

    def __init__(self, num_nodes: int):
        super().__init__()
        self.num_nodes = self.width = num_nodes

    def fit(self, z: Tensor, context: Context) -> None:
        """Nothing to estimate."""

    def whiten(self, z: Tensor) -> Tensor:
        return z

    def unwhiten(self, white: Tensor) -> Tensor:
        return white

    def history(self, context: Context) -> Tensor:
        return context.history

    def project(self, anomaly: Tensor) -> Tensor:
        return anomaly

    def share(self, values: Tensor | None) -> Tensor | None:
        return values

    def impute(self, z: Tensor, observed: Tensor, noise: Tensor) -> Tensor:
        """z with its expectation, 0, in place of each missing value."""
        return torch.where(observed, z, 0.0)

    def target_mask(self, observed: Tensor) -> Tensor:
        return observed


class CovarianceNoise(nn.Module):
    """The covariance of z over nodes and steps: a few modes shared by all nodes, and an idiosyncratic rest of each.

        z / spread = modes @ axes.T + idiosyncratic
        white = [node_root^-1 idiosyncratic,  mode_root^-1 modes]

    The axes are the leading principal axes over the nodes. Each mode and each node's idiosyncratic part is a path over
    the horizon with a covariance of its own, whose Cholesky factor is its root. `unwhiten` of independent standard
    normal numbers is Gaussian with the covariance of the training data; it removes the components of the idiosyncratic
    parts along the axes, so their roots are enlarged to keep the variance. White coordinates of data have variance 1,
    the idiosyncratic ones a share modes / nodes less. Memory and cost of both maps are linear in the nodes.

    Where values are missing, moments are taken over the pairs that are observed, and a mode counts where most of its
    weight is observed. Shapes: z (..., F, node), white (..., F, node + mode).
    Source: principal components after Tipping and Bishop 1999.
    """

    def __init__(self, num_nodes: int, predict_len: int, modes: int):
        super().__init__()
        self.num_nodes, self.modes = num_nodes, min(modes, num_nodes // 2)
        self.register_buffer("spread", torch.ones(predict_len, num_nodes))
        self.register_buffer("axes", torch.zeros(num_nodes, self.modes))
        self.register_buffer("history_spread", torch.ones(num_nodes + self.modes))
        self.register_buffer("mode_spread", torch.ones(self.modes))
        self.register_buffer("root", torch.eye(predict_len).repeat(num_nodes + self.modes, 1, 1))
        self.register_buffer("inverse_root", self.root.clone())

    @property
    def width(self) -> int:
        """Number of coordinates per step: nodes and modes."""
        return self.num_nodes + self.modes

    @torch.no_grad()
    def fit(self, z: Tensor, context: Context) -> None:
        """Estimate everything from training windows: z (window, F, node) of their futures, and their contexts."""
        known = context.target_mask
        square = _mean_square(z, known, 0)
        self.spread.copy_(square.sqrt().clamp_min(SMALLEST_SPREAD * square.mean().sqrt().clamp_min(1e-2)))
        scaled = z / self.spread if known is None else z / self.spread * known  # gaps: the mean, 0
        if self.modes:
            self.axes.copy_(leading_axes(scaled.flatten(0, 1), self.modes))
        self.mode_spread.copy_((scaled @ self.axes).square().mean((0, 1)).sqrt().clamp_min(1e-3))
        if known is not None:
            for _ in range(2):  # the first time the modes are still those of fields with gaps
                scaled = self.impute(z, known, torch.randn_like(z)) / self.spread
                self.mode_spread.copy_((scaled @ self.axes).square().mean((0, 1)).sqrt().clamp_min(1e-3))
            known = self.target_mask(known).to(scaled.dtype)
        paths, sizes = self._split(scaled), [self.num_nodes, self.modes]
        covariance = torch.einsum("npv,nqv->vpq", paths, paths) / len(paths) if known is None else torch.cat([
            _pairwise_covariance(*part) for part in zip(paths.split(sizes, -1), known.split(sizes, -1), strict=True)])
        nodes, modes = covariance.split(sizes)
        variance = nodes.diagonal(dim1=-2, dim2=-1).mean(-1).view(-1, 1, 1)
        nodes = torch.lerp(nodes, nodes.mean(0) / variance.mean().clamp_min(1e-6) * variance, POOLED)
        covariance = torch.cat([nodes, modes]).double()
        variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-6).view(-1, 1, 1)
        diagonal = torch.eye(covariance.shape[-1], dtype=torch.float64, device=covariance.device)
        ridge = torch.maximum(RIDGE * variance, SMALLEST_SPREAD**2 - variance) * diagonal
        kept = 1 - self.axes.square().sum(1).clamp_max(0.95)  # share of independent values that the axes leave
        covariance[:self.num_nodes] /= kept.view(-1, 1, 1)
        root = torch.linalg.cholesky((covariance if known is None else _without_negative_part(covariance)) + ridge)
        self.root.copy_(root)
        self.inverse_root.copy_(torch.linalg.inv(root))
        known = None if known is None else self.target_mask(context.observed[:, :context.history_len])
        self.history_spread.copy_(_mean_square(self._project(context.anomaly), known, (0, 1)).sqrt().clamp_min(1e-3))

    def whiten(self, z: Tensor) -> Tensor:
        return torch.einsum("vpq,bqv->bpv", self.inverse_root, self._split(z / self.spread))

    def unwhiten(self, white: Tensor) -> Tensor:
        """z (batch, F, node) of white coordinates: the inverse of `whiten`."""
        paths = torch.einsum("vpq,bqv->bpv", self.root, white)
        idiosyncratic, modes = paths.split([self.num_nodes, self.modes], dim=-1)
        return self.spread * (idiosyncratic + (modes - idiosyncratic @ self.axes) @ self.axes.T)

    def history(self, context: Context) -> Tensor:
        """The history's anomaly in the coordinates of `white`, each with spread 1: (batch, H, coordinate)."""
        return self.project(context.anomaly)

    def project(self, anomaly: Tensor) -> Tensor:
        """An anomaly of any steps in the coordinates of `white`, in units of the history's spread."""
        return self._project(anomaly) / self.history_spread

    def impute(self, z: Tensor, observed: Tensor, noise: Tensor) -> Tensor:
        """z with a draw in place of each missing value, from its law given the observed nodes of the step.

            scaled | observed ~ N(axes @ modes, own + axes covariance axes^T),    own = 1 - share of the modes
            covariance = (mode_spread^-2 + axes^T own^-1 axes)^-1,    sums over observed nodes

        The steps of a window are drawn apart, as are the nodes but for their common modes: what is drawn has the right
        margins, and less dependence than data. Shapes: z, observed, standard normal `noise` (batch, F, node).
        """
        weights = self.axes.square()
        own = (1 - weights @ self.mode_spread.square()).clamp_min(SMALLEST_IDIOSYNCRATIC)
        inverse = observed / own
        squares = (self.axes.unsqueeze(2) * self.axes.unsqueeze(1)).flatten(1)  # of each node: (node, mode * mode)
        precision = (inverse @ squares).unflatten(-1, (self.modes, self.modes)) + self.mode_spread.pow(-2).diag()
        covariance = torch.linalg.inv(precision)
        modes = covariance @ (inverse * z / self.spread @ self.axes).unsqueeze(-1)
        variance = own + covariance.flatten(-2) @ squares.T
        drawn = modes.squeeze(-1) @ self.axes.T + variance.sqrt() * noise
        return torch.where(observed, z, self.spread * drawn)

    def target_mask(self, observed: Tensor) -> Tensor:
        """Which coordinates a mask of nodes leaves: those observed, and modes that have most of their weight there."""
        return self.share(observed.float()) > 0.5

    def share(self, values: Tensor | None) -> Tensor | None:
        """Values of nodes for each coordinate: a mode has their mean by the nodes' weights in it.

        Shapes: (batch, step, node or 1, ...) -> (batch, step, node + mode or 1, ...); None stays None.
        """
        if values is None or values.shape[2] != self.num_nodes:
            return values
        modes = torch.einsum("bpv...,vm->bpm...", values, self.axes.square())
        return torch.cat([values, modes], dim=2)

    def _project(self, fields: Tensor) -> Tensor:
        return torch.cat([fields, fields @ self.axes], dim=-1)

    def _split(self, fields: Tensor) -> Tensor:
        modes = fields @ self.axes
        return torch.cat([fields - modes @ self.axes.T, modes], dim=-1)


def _mean_square(values: Tensor, observed: Tensor | None, dims) -> Tensor:
    """Mean square over `dims`, where `observed`; 1 where nothing is."""
    if observed is None:
        return values.square().mean(dims)
    count = observed.sum(dims)
    return torch.where(count > 0, (values.square() * observed).sum(dims) / count.clamp_min(1), 1.0)


def _pairwise_covariance(paths: Tensor, observed: Tensor) -> Tensor:
    """Covariance over steps, each entry from the windows that have both steps, plus one window of all nodes' mean.

    Shapes: (window, F, node) -> (node, F, F).
    """
    products = torch.einsum("npv,nqv->vpq", paths * observed, paths * observed)
    pairs = torch.einsum("npv,nqv->vpq", observed, observed)
    pooled = products.sum(0) / pairs.sum(0).clamp_min(1)
    return (products + pooled) / (pairs + 1)


def _without_negative_part(covariance: Tensor) -> Tensor:
    """The nearest matrices without negative eigenvalues, which entries from different windows can have."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).unsqueeze(-2)) @ vectors.mT
