"""Dependence between nodes and steps as a linear map: a few modes shared by all nodes, and what is left of each."""

import torch
from torch import Tensor, nn

RIDGE = 1e-3  # share of the mean variance added to each covariance before it is factorised
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
    def fit(self, scores: Tensor, histories: Tensor) -> None:
        """Estimate everything from training windows: normal scores (window, F, node), histories (window, H, node)."""
        self.spread.copy_(scores.square().mean(0).sqrt().clamp_min(1e-2))
        scaled = scores / self.spread
        if self.modes:
            fields = scaled.flatten(0, 1)
            if len(fields) < self.num_nodes:
                _, vectors = torch.linalg.eigh(fields @ fields.T)
                axes = fields.T @ vectors[:, -self.modes:]
            else:
                _, vectors = torch.linalg.eigh(fields.T @ fields)
                axes = vectors[:, -self.modes:]
            axes = nn.functional.pad(axes, (0, self.modes - axes.shape[1]))  # fewer fields than modes: any axes
            self.axes.copy_(torch.linalg.qr(axes).Q)
        self.mode_spread.copy_((scaled @ self.axes).square().mean((0, 1)).sqrt().clamp_min(1e-3))
        paths = self._split(scaled)
        covariance = torch.einsum("npv,nqv->vpq", paths, paths) / len(paths)
        nodes, modes = covariance.split([self.num_nodes, self.modes])
        variance = nodes.diagonal(dim1=-2, dim2=-1).mean(-1).view(-1, 1, 1)
        nodes = torch.lerp(nodes, nodes.mean(0) / variance.mean().clamp_min(1e-6) * variance, POOLED)
        covariance = torch.cat([nodes, modes]).double()
        variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-6).view(-1, 1, 1)
        ridge = RIDGE * variance * torch.eye(covariance.shape[-1], dtype=torch.float64, device=covariance.device)
        kept = 1 - self.axes.square().sum(1).clamp_max(0.95)  # share of independent rests that the axes leave
        covariance[:self.num_nodes] /= kept.view(-1, 1, 1)
        root = torch.linalg.cholesky(covariance + ridge)
        self.root.copy_(root)
        self.inverse_root.copy_(torch.linalg.inv(root))
        histories = self._project(histories)
        self.history_spread.copy_(histories.square().mean((0, 1)).sqrt().clamp_min(1e-3))

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

    def _project(self, fields: Tensor) -> Tensor:
        return torch.cat([fields, fields @ self.axes], dim=-1)

    def _split(self, fields: Tensor) -> Tensor:
        modes = fields @ self.axes
        return torch.cat([fields - modes @ self.axes.T, modes], dim=-1)
