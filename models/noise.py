"""Noise of the diffusion: the coordinates in which z is white, for independent values or a covariance of fields.

Both classes have one interface: `fit`, `whiten`, `unwhiten`, `impute`; `learned`, the used part of a prediction;
`history` and `project`, a window's history and anomalies in the units of the denoiser's inputs.
Shapes: z, white and `size`, the expected size of the residual (`Margin.size`), (batch, F, node).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.context import Context

from .modes import leading_axes

RIDGE = 1e-4  # share of a mode's variance, and variance, that is added to the covariance of each mode
SMALLEST_SPREAD = 0.25  # of z at a node and step, as a share of the root mean square of all: rarely varying nodes
STATES = 8
ABOVE = 1e-4  # a bound lies so far above a size that many nodes may share, such as the floor of the scale
STATE_PRIOR = 2  # F times as many residuals of all states count in the covariance of each
NEIGHBOURING = 0.3  # modes whose numbers differ by at most this share have a covariance in common
LEADING, LEADING_SHARE = 16, 4  # number of leading modes, at most one for LEADING_SHARE nodes
SMALLEST_OWN = 0.05  # of a node's variance, that these modes leave at least where a value is imputed


class Residuals(NamedTuple):
    """z of some windows, the expected size of their residuals, and the target mask: (window, F, node) each."""

    z: Tensor
    size: Tensor
    mask: Tensor | None


class IndependentNoise(nn.Module):
    """Independent values, as published: white = z."""

    def fit(self, training: Residuals, validation: Residuals, context: Context) -> None:
        """Nothing to estimate."""

    def whiten(self, z: Tensor, size: Tensor) -> Tensor:
        return z

    def unwhiten(self, white: Tensor, size: Tensor) -> Tensor:
        return white

    def learned(self, predicted: Tensor) -> Tensor:
        return predicted

    def history(self, context: Context) -> Tensor:
        return context.history

    def project(self, anomaly: Tensor) -> Tensor:
        return anomaly

    def impute(self, z: Tensor, observed: Tensor, noise: Tensor) -> Tensor:
        """z with its expectation, 0, in place of each missing value."""
        return torch.where(observed, z, 0.0)


class CovarianceNoise(nn.Module):
    """The covariance of z over nodes and steps: over the steps for each state, then over the steps for each mode.

        rescaled = state_root[state]^-1 (z / spread)                                       of each node
        rescaled = modes @ axes.T + idiosyncratic,    modes = rescaled @ axes
        white = (root^-1 modes) @ axes.T + idiosyncratic_root^-1 idiosyncratic

    The state of a node in a window is one of STATES classes of the size of its residual, between bounds that share the
    variance evenly: errors in congestion last longer than those in free flow. `state_root` is the symmetric root of
    the correlation of z / spread over the steps in a state. The axes are the `modes` leading principal axes over the
    nodes. `root` is the symmetric root of the covariance of a mode over the steps; neighbouring modes share it, see
    NEIGHBOURING. The idiosyncratic residual has no correlation between nodes. White coordinates belong to nodes: of
    all whitening maps the symmetric one changes each node least. Missing values are imputed first. Memory and cost are
    linear in the nodes.
    Source: principal components after Tipping and Bishop 1999; symmetric whitening: Kessy et al. 2018
    (arXiv:1512.00809).
    """

    def __init__(self, num_nodes: int, predict_len: int, modes: int):
        super().__init__()
        self.modes = min(modes, num_nodes)
        self.register_buffer("spread", torch.ones(predict_len, num_nodes))
        self.register_buffer("bounds", torch.zeros(STATES - 1))  # between the states, of the mean logarithm of size
        self.register_buffer("state_root", torch.eye(predict_len).repeat(STATES, 1, 1))
        self.register_buffer("inverse_state_root", self.state_root.clone())
        self.register_buffer("axes", torch.eye(num_nodes, self.modes))
        self.register_buffer("root", torch.eye(predict_len).repeat(self.modes + 1, 1, 1))  # the last: idiosyncratic
        self.register_buffer("inverse_root", self.root.clone())
        self.register_buffer("training_spread", self.spread.clone())
        self.register_buffer("training_inverse", self.root.clone())
        self.register_buffer("sizes", torch.ones(2))  # of white fields: of training, of validation
        self.register_buffer("mode_variance", torch.ones(min(LEADING, self.modes, num_nodes // LEADING_SHARE)))
        self.register_buffer("history_spread", torch.ones(num_nodes))

    @torch.no_grad()
    def fit(self, training: Residuals, validation: Residuals, context: Context) -> None:
        """Estimate everything from training windows and, with equal weight, from validation windows.

        Stage 1 has fitted training residuals, which are smoother and smaller than later ones: of validation residuals
        the shape is used, not the size. context: of the training windows.
        """
        windows, times = len(training.z), max(1, round(len(training.z) / len(validation.z)))
        spread = _spread(training.z, training.mask, 0)
        self.spread.copy_(spread)
        self.training_spread.copy_(spread)
        validation_spread = _spread(validation.z, validation.mask, (0, 1))
        fields = torch.cat([training.z / spread] + times * [validation.z / validation_spread])
        size = torch.cat([training.size] + times * [validation.size])
        observed = None
        if training.mask is not None:
            observed = context.observed[:, :context.history_len]
            mask = torch.cat([training.mask] + times * [validation.mask])
            fields = fields * mask
            for _ in range(2):  # the first modes are those of fields with gaps
                self._fit_axes(fields)
                fields = self._complete(fields, mask)
        self._fit_axes(fields)
        self._fit_states(fields, size)
        rescaled = self._by_state(fields, size, self.inverse_state_root)
        self._set(self._covariance(rescaled[:windows]), self.training_spread, None, self.training_inverse)
        self._set(self._covariance(rescaled), self.spread, self.root, self.inverse_root)
        later = fields[windows:windows + len(validation.z)] * validation_spread
        white = (self._white(fields[:windows] * spread, training.size, self.training_spread, self.training_inverse),
                 self._white(later, validation.size, self.spread, self.inverse_root))
        self.sizes.copy_(torch.stack([part.square().mean().sqrt() for part in white]).clamp_min(1e-3))
        self.history_spread.copy_(_mean_square(context.anomaly, observed, (0, 1)).sqrt().clamp_min(1e-3))

    def whiten(self, z: Tensor, size: Tensor) -> Tensor:
        """White coordinates for a loss, in training mode by the modes' covariances of training fields alone.

        Training windows, and in eval mode validation windows, have mean square 1: a loss compares shapes, `Margin` has
        the size.
        """
        if self.training:
            return self._white(z, size, self.training_spread, self.training_inverse) / self.sizes[0]
        return self._white(z, size, self.spread, self.inverse_root) / self.sizes[1]

    def unwhiten(self, white: Tensor, size: Tensor) -> Tensor:
        """z of white coordinates (batch, ..., F, node): the inverse of `whiten` in eval mode, but for the size."""
        rescaled = self._by_mode(white.flatten(0, -3), self.root).view(white.shape)
        return self.spread * self._by_state(rescaled, size, self.state_root)

    def learned(self, predicted: Tensor) -> Tensor:
        """A prediction in white coordinates without its components along the leading modes.

        These stay Gaussian: few training windows are independent of each other, and a network overfits their modes.
        """
        leading = self.axes[:, :len(self.mode_variance)].to(predicted.dtype)
        return predicted - predicted @ leading @ leading.T

    def history(self, context: Context) -> Tensor:
        """The history's anomaly, each node with spread 1: (batch, H, node)."""
        return self.project(context.anomaly)

    def project(self, anomaly: Tensor) -> Tensor:
        """An anomaly of any steps in units of the history's spread."""
        return anomaly / self.history_spread

    def impute(self, z: Tensor, observed: Tensor, noise: Tensor) -> Tensor:
        """z with a random value in place of each missing one, from its law given the observed nodes of the step.

            scaled | observed ~ N(axes @ modes, own + axes covariance axes^T),    own = 1 - share of the modes
            covariance = (mode_variance^-1 + axes^T own^-1 axes)^-1,    sums over observed nodes

        Steps are imputed independently, and so are nodes but for their leading modes: imputed values have the right
        margins, and less dependence than data. Shapes: z, observed, standard normal `noise` (batch, F, node).
        """
        axes = self.axes[:, :len(self.mode_variance)]
        own = (1 - axes.square() @ self.mode_variance).clamp_min(SMALLEST_OWN)
        inverse = observed / own
        squares = (axes.unsqueeze(2) * axes.unsqueeze(1)).flatten(1)  # of each node: (node, mode * mode)
        precision = (inverse @ squares).unflatten(-1, (axes.shape[1], axes.shape[1])) + (1 / self.mode_variance).diag()
        covariance = torch.linalg.inv(precision)
        modes = covariance @ (inverse * z / self.spread @ axes).unsqueeze(-1)
        variance = own + covariance.flatten(-2) @ squares.T
        imputed = modes.squeeze(-1) @ axes.T + variance.sqrt() * noise
        return torch.where(observed, z, self.spread * imputed)

    def _state(self, size: Tensor) -> Tensor:
        """The state of each node in each window: (batch, node)."""
        return torch.bucketize(size.log().mean(1), self.bounds)

    def _by_state(self, values: Tensor, size: Tensor, root: Tensor) -> Tensor:
        """`root` of its state applied to the steps of each node: values (batch, ..., F, node)."""
        found = torch.empty_like(values)
        for window, state in enumerate(self._state(size)):
            found[window] = torch.einsum("vpq,...qv->...pv", root[state], values[window])
        return found

    def _white(self, z: Tensor, size: Tensor, spread: Tensor, inverse_root: Tensor) -> Tensor:
        return self._by_mode(self._by_state(z / spread, size, self.inverse_state_root), inverse_root)

    def _by_mode(self, values: Tensor, root: Tensor) -> Tensor:
        """`root` applied to the steps of each mode and of the idiosyncratic residual."""
        modes = values @ self.axes
        changed = torch.einsum("kpq,bqk->bpk", root[:-1], modes)
        if self.modes == len(self.axes):
            return changed @ self.axes.T
        idiosyncratic = values - modes @ self.axes.T
        return torch.einsum("pq,bqv->bpv", root[-1], idiosyncratic) + changed @ self.axes.T

    def _fit_states(self, fields: Tensor, size: Tensor) -> None:
        """Bounds of the states, and the correlation over the steps in each, which keeps the spread."""
        level, variance = size.log().mean(1).flatten(), size.square().mean(1).flatten()
        order = level.argsort()
        share = variance[order].double().cumsum(0)
        inner = torch.arange(1, STATES).to(share) / STATES * share[-1]
        self.bounds.copy_(level[order][torch.searchsorted(share, inner).clamp_max(len(level) - 1)] + ABOVE)
        steps, state = fields.transpose(1, 2).flatten(0, 1), self._state(size).flatten()
        prior = STATE_PRIOR * fields.shape[1]
        of_all = steps.T @ steps / len(steps)
        found = torch.stack([(own.T @ own + prior * of_all) / (len(own) + prior)
                             for own in (steps[state == number] for number in range(STATES))])
        spread = found.diagonal(dim1=1, dim2=2).clamp_min(1e-6).sqrt()
        found = found / (spread.unsqueeze(1) * spread.unsqueeze(2))
        self.state_root.copy_(_root(found, 0.5))
        self.inverse_state_root.copy_(_root(found, -0.5))

    def _covariance(self, fields: Tensor) -> Tensor:
        """Covariance over the steps of each mode, and of each dimension of the residual: (mode + 1, F, F)."""
        modes = fields @ self.axes
        idiosyncratic = fields - modes @ self.axes.T
        covariance = torch.einsum("npk,nqk->kpq", modes, modes) / len(modes)
        number = torch.arange(self.modes, device=modes.device)
        reach = (number * NEIGHBOURING).long()
        first, last = number - reach, (number + reach).clamp_max(self.modes - 1)
        total = nn.functional.pad(covariance.double().cumsum(0), (0, 0, 0, 0, 1, 0))
        pooled = (total[last + 1] - total[first]) / (last + 1 - first).view(-1, 1, 1)
        others = torch.eye(len(self.spread), device=modes.device)
        if self.modes < len(self.axes):
            others = torch.einsum("npv,nqv->pq", idiosyncratic, idiosyncratic) / (
                len(idiosyncratic) * (len(self.axes) - self.modes))
        return torch.cat([pooled.float(), others.unsqueeze(0)])

    def _set(self, covariance: Tensor, spread: Tensor, root: Tensor | None, inverse_root: Tensor) -> None:
        """Roots of a covariance; the spread is divided by that of the nodes which follows from it."""
        variance, weights = covariance.diagonal(dim1=1, dim2=2), self.axes.square()
        of_node = weights @ variance[:-1] + (1 - weights.sum(1, keepdim=True)) * variance[-1]
        spread.div_(of_node.T.clamp_min(1e-6).sqrt())
        if root is not None:
            root.copy_(_root(covariance, 0.5))
        inverse_root.copy_(_root(covariance, -0.5))

    def _fit_axes(self, scaled: Tensor) -> None:
        self.axes.copy_(leading_axes(scaled.flatten(0, 1), self.modes))
        leading = scaled @ self.axes[:, :len(self.mode_variance)]
        self.mode_variance.copy_(leading.square().mean((0, 1)).clamp_min(1e-6))

    def _complete(self, scaled: Tensor, observed: Tensor) -> Tensor:
        """Fields in units of their spread, with missing values imputed."""
        return self.impute(scaled * self.spread, observed, torch.randn_like(scaled)) / self.spread


def _spread(z: Tensor, mask: Tensor | None, dims) -> Tensor:
    """Root mean square of z over `dims`, not below SMALLEST_SPREAD of that of all."""
    square = _mean_square(z, mask, dims)
    return square.sqrt().clamp_min(SMALLEST_SPREAD * square.mean().sqrt().clamp_min(1e-2))


def _root(covariance: Tensor, power: float) -> Tensor:
    """Symmetric powers of covariances (..., F, F), with RIDGE on their diagonals."""
    variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    ridge = RIDGE * (1 + variance) * torch.eye(covariance.shape[-1], device=covariance.device)
    values, vectors = torch.linalg.eigh((covariance + ridge).double())
    return ((vectors * values.clamp_min(1e-6).pow(power).unsqueeze(-2)) @ vectors.mT).float()


def _mean_square(values: Tensor, observed: Tensor | None, dims) -> Tensor:
    """Mean square over `dims` where `observed`; 1 where nothing is."""
    if observed is None:
        return values.square().mean(dims)
    count = observed.sum(dims)
    return torch.where(count > 0, (values.square() * observed).sum(dims) / count.clamp_min(1), 1.0)
