"""Dependence between nodes and steps as a linear map: a few modes shared by all nodes, and what is left of each."""

import torch
from torch import Tensor, nn

from .modes import leading_axes

RIDGE = 1e-3  # share of the mean variance added to each covariance before it is factorised
SMALLEST_REST = 0.05  # of a node's variance, that the modes leave at least where a score is drawn
POOLED = 0.5  # share of the covariance over steps that a node takes from all nodes


class FactorModel(nn.Module):
    """Turn normal scores of a field into coordinates that are white, and back.

        scores / spread = modes @ axes.T + rest
        white = [node_root^-1 rest,  mode_root^-1 modes]

    The axes are the leading principal axes over the nodes. Each mode and each node's rest is a path over the
    horizon with a covariance of its own, whose Cholesky factor is its root. `colour` of independent standard normal
    numbers is the Gaussian copula of the training data, and that is where the diffusion starts from; since it takes
    what the rests have along the axes out of them, the roots of the rests are larger by as much. White
    coordinates of data have variance 1, those of the rests a share modes / nodes less. Memory, and the cost of
    both maps, are linear in the nodes.

    Where scores are missing, moments are taken over the pairs that are observed, and a mode counts where most of it is.
    Shapes: scores (..., F, node), white (..., F, node + mode).
    Source: principal components after Tipping and Bishop 1999, applied to normal scores.
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
    def fit(self, scores: Tensor, histories: Tensor, observed: Tensor | None = None) -> None:
        """Estimate everything from training windows: normal scores (window, F, node), histories (window, H, node).

        observed (window, H + F, node): which values of both are not missing; None: all.
        """
        known = None if observed is None else observed[:, -scores.shape[1]:]
        self.spread.copy_(_mean_square(scores, known, 0).sqrt().clamp_min(1e-2))
        scaled = scores / self.spread if known is None else scores / self.spread * known  # gaps: the mean, 0
        if self.modes:
            self.axes.copy_(leading_axes(scaled.flatten(0, 1), self.modes))
        self.mode_spread.copy_((scaled @ self.axes).square().mean((0, 1)).sqrt().clamp_min(1e-3))
        if known is not None:
            for _ in range(2):  # the first time the modes are still those of fields with gaps
                scaled = self.impute(scores, known, torch.randn_like(scores)) / self.spread
                self.mode_spread.copy_((scaled @ self.axes).square().mean((0, 1)).sqrt().clamp_min(1e-3))
            known = self.counted(known).to(scaled.dtype)
        paths, sizes = self._split(scaled), [self.num_nodes, self.modes]
        covariance = torch.einsum("npv,nqv->vpq", paths, paths) / len(paths) if known is None else torch.cat([
            _pairwise_covariance(*part) for part in zip(paths.split(sizes, -1), known.split(sizes, -1), strict=True)])
        nodes, modes = covariance.split(sizes)
        variance = nodes.diagonal(dim1=-2, dim2=-1).mean(-1).view(-1, 1, 1)
        nodes = torch.lerp(nodes, nodes.mean(0) / variance.mean().clamp_min(1e-6) * variance, POOLED)
        covariance = torch.cat([nodes, modes]).double()
        variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-6).view(-1, 1, 1)
        ridge = RIDGE * variance * torch.eye(covariance.shape[-1], dtype=torch.float64, device=covariance.device)
        kept = 1 - self.axes.square().sum(1).clamp_max(0.95)  # share of independent rests that the axes leave
        covariance[:self.num_nodes] /= kept.view(-1, 1, 1)
        root = torch.linalg.cholesky((covariance if known is None else _without_negative_part(covariance)) + ridge)
        self.root.copy_(root)
        self.inverse_root.copy_(torch.linalg.inv(root))
        known = None if observed is None else self.counted(observed[:, :histories.shape[1]])
        self.history_spread.copy_(_mean_square(self._project(histories), known, (0, 1)).sqrt().clamp_min(1e-3))

    def whiten(self, scores: Tensor) -> Tensor:
        return torch.einsum("vpq,bqv->bpv", self.inverse_root, self._split(scores / self.spread))

    def colour(self, white: Tensor) -> Tensor:
        """The scores (batch, F, node) of white coordinates: the inverse of `whiten`."""
        rest, modes = torch.einsum("vpq,bqv->bpv", self.root, white).split([self.num_nodes, self.modes], dim=-1)
        return self.spread * (rest + (modes - rest @ self.axes) @ self.axes.T)

    def coordinates(self, scores: Tensor) -> Tensor:
        """Scores of nodes and modes, each with a spread of about 1: (batch, F, node + mode)."""
        scaled = scores / self.spread
        return torch.cat([scaled, scaled @ self.axes / self.mode_spread], dim=-1)

    def history(self, history: Tensor) -> Tensor:
        """A history (batch, H, node) in the coordinates of `white`, each with spread 1: (batch, H, node + mode)."""
        return self._project(history) / self.history_spread

    def impute(self, scores: Tensor, observed: Tensor, noise: Tensor) -> Tensor:
        """Scores with a draw in place of each missing one, by the law that the step's observed nodes leave it.

            scaled | observed ~ N(axes @ modes, rest + axes covariance axes^T),    rest = 1 - share of the modes
            covariance = (mode_spread^-2 + axes^T rest^-1 axes)^-1,    sums over observed nodes

        The steps of a window are drawn apart, as are the nodes but for their common modes: what is drawn has the right
        margins, and less dependence than data. Shapes: scores, observed, standard normal `noise` (batch, F, node).
        """
        weights = self.axes.square()
        rest = (1 - weights @ self.mode_spread.square()).clamp_min(SMALLEST_REST)
        inverse_rest = observed / rest
        squares = (self.axes.unsqueeze(2) * self.axes.unsqueeze(1)).flatten(1)  # of each node: (node, mode * mode)
        precision = (inverse_rest @ squares).unflatten(-1, (self.modes, self.modes)) + self.mode_spread.pow(-2).diag()
        covariance = torch.linalg.inv(precision)
        modes = covariance @ (inverse_rest * scores / self.spread @ self.axes).unsqueeze(-1)
        variance = rest + covariance.flatten(-2) @ squares.T
        drawn = modes.squeeze(-1) @ self.axes.T + variance.sqrt() * noise
        return torch.where(observed, scores, self.spread * drawn)

    def counted(self, observed: Tensor) -> Tensor:
        """Which coordinates a mask of nodes leaves: those observed, and modes that have most of their weight there."""
        return self.extra(observed.float()) > 0.5

    def extra(self, values: Tensor | None) -> Tensor | None:
        """What is given for each node, for each coordinate: a mode has the mean by the nodes' weights in it.

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
