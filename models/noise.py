"""Noise of the diffusion: the coordinates in which z is white, for independent values or a covariance of fields.

Both classes have one interface: `fit`, `whiten`, `unwhiten`, `impute`; `learned`, the used part of a prediction;
`inputs`, a window's history and anomalies of its horizon in the units of the denoiser's inputs.
Shapes: z and white (batch, F, node); log_scale (batch, node), see `margins.Margin.log_scale`.
"""

import torch
from torch import Tensor, nn

from data.context import Context

from .modes import leading_axes

RIDGE = 1e-4  # share of a mode's variance, and variance, added to the covariance of each mode; and to correlations
SMALLEST_SPREAD = 0.25  # of z at a node and step, as a share of the root mean square of all: rarely varying nodes
NEIGHBOURING = 0.3  # modes whose numbers differ by at most this share have a covariance in common
LEADING, LEADING_SHARE = 16, 4  # number of leading modes, at most one for LEADING_SHARE nodes
SMALLEST_OWN = 0.05  # of a node's variance, that these modes leave at least where a value is imputed
SMALLEST_EIGENVALUE = 1e-3  # of the correlation over the steps by which missing values are imputed
PATH_ELEMENTS = 2**24  # of the systems of equations for paths with missing values, at once
CLASSES = 8  # of the fluctuation scale, of equal size

Part = tuple[Tensor, Context, Tensor]  # z of windows, their contexts and log_scale


class IndependentNoise(nn.Module):
    """Independent values, as published: white = z."""

    def fit(self, training: Part, validation: Part) -> None:
        """Nothing to estimate."""

    def whiten(self, z: Tensor, log_scale: Tensor) -> Tensor:
        return z

    unwhiten = whiten  # nothing to change

    def learned(self, predicted: Tensor) -> Tensor:
        return predicted

    def inputs(self, context: Context, anomalies: list[Tensor]) -> list[Tensor]:
        return [context.history, *anomalies]

    def impute(self, z: Tensor, observed: Tensor, noise: Tensor) -> Tensor:
        """z with its expectation, 0, in place of each missing value."""
        return torch.where(observed, z, 0.0)


class CovarianceNoise(nn.Module):
    """The covariance of z over nodes and steps: for each mode of the nodes a covariance over the steps.

        z / spread = gain[class] * (filter[class] @ y),    class: of the fluctuation scale of the node in this window
        y = modes @ axes.T + idiosyncratic,    modes = y @ axes
        white = (root^-1 modes) @ axes.T + idiosyncratic_root^-1 idiosyncratic
        root @ root = covariance of a mode over the steps, root symmetric
        filter = root of the correlation over the steps in a class @ (root of the correlation in all classes)^-1

    The axes are the `modes` leading principal axes of training fields over the nodes. The idiosyncratic residual has no
    correlation between nodes. White coordinates belong to nodes: of all whitening maps the symmetric one changes each
    node least; they have variance 1 on average over nodes. Errors persist longer where the scale is large: on a
    congested road for an hour, on a free road for a step. Hence the classes of the scale. The gain gives each node the
    variance 1 under this model, at each step and in each class. Covariances and correlations are the mean of those of
    training fields and of validation fields, which stage 1 has not fitted; in training mode `whiten` uses those of
    training fields alone. Neighbouring modes share theirs, see NEIGHBOURING. Missing values are imputed first. Memory
    and cost are linear in the nodes.
    Source: principal components after Tipping and Bishop 1999; symmetric whitening: Kessy et al. 2018
    (arXiv:1512.00809).
    """

    def __init__(self, num_nodes: int, predict_len: int, modes: int):
        super().__init__()
        self.modes = min(modes, num_nodes)
        self.register_buffer("spread", torch.ones(predict_len, num_nodes))
        self.register_buffer("class_edges", torch.zeros(CLASSES - 1))  # of log_scale
        self.register_buffer("axes", torch.eye(num_nodes, self.modes))
        self.register_buffer("mode_variance", torch.ones(min(LEADING, self.modes, num_nodes // LEADING_SHARE)))
        self.register_buffer("root", torch.eye(predict_len).repeat(self.modes + 1, 1, 1))  # the last: idiosyncratic
        self.register_buffer("path_correlation", torch.eye(predict_len))
        self.register_buffer("history_spread", torch.ones(num_nodes))
        self.of_all, self.of_training = (Whitening(num_nodes, predict_len, self.modes) for _ in range(2))

    def fit(self, training: Part, validation: Part) -> None:
        """Estimate everything: size and axes from training windows, the covariances from validation windows too."""
        (z, context, log_scale), (later, later_context, later_log_scale) = training, validation
        mask, later_mask = context.target_mask, later_context.target_mask
        square = _mean_square(z, mask, 0)
        self.spread.copy_(square.sqrt().clamp_min(SMALLEST_SPREAD * square.mean().sqrt().clamp_min(1e-2)))
        size = _mean_square(later, later_mask, (0, 1)).sqrt()  # used for their shape, not for their size
        size.clamp_min_(SMALLEST_SPREAD * size.square().mean().sqrt().clamp_min(1e-2))
        scaled, later = z / self.spread, later / size
        if later_mask is not None:
            mask = torch.ones_like(later_mask[:1]).expand_as(scaled) if mask is None else mask
            scaled, later = scaled * mask, later * later_mask
            for _ in range(2):  # the first modes are those of fields with gaps
                self._fit_axes(scaled)
                self._fit_paths(scaled, mask)
                scaled = self._complete(scaled, mask)
            self._fit_axes(scaled)
            later = self._complete(later, later_mask)
        self.class_edges.copy_(_edges(log_scale))
        parts = (scaled, self._classes(log_scale)), (later, self._classes(later_log_scale))
        share = _independent_share(scaled.flatten(0, 1))
        correlations = [_class_correlations(*part, share) for part in parts]
        for whitening, used in ((self.of_training, 1), (self.of_all, 2)):
            whitening.fit_filters(sum(correlations[:used]) / used)
            y = [_by_class(whitening.inverse_filters, *part) for part in parts[:used]]
            if used == 1:
                self._fit_axes(y[0])
            self.root.copy_(whitening.fit_modes(sum(map(self._covariance, y)) / used, self.axes))
        self.history_spread.copy_(_mean_square(context.anomaly, context.observed, (0, 1)).sqrt().clamp_min(1e-3))

    def whiten(self, z: Tensor, log_scale: Tensor) -> Tensor:
        """White coordinates; in training mode by the covariance of training fields alone."""
        whitening, classes = self.of_training if self.training else self.of_all, self._classes(log_scale)
        y = _by_class(whitening.inverse_filters, z / self.spread / whitening.gain_of(classes), classes)
        return self._transform(y, whitening.inverse_root)

    def unwhiten(self, white: Tensor, log_scale: Tensor) -> Tensor:
        """z of white coordinates: the inverse of `whiten` in eval mode. log_scale may be that of one window for all."""
        classes = self._classes(log_scale)
        filtered = _by_class(self.of_all.filters, self._transform(white, self.root), classes)
        return self.spread * (self.of_all.gain_of(classes) * filtered)

    def learned(self, predicted: Tensor) -> Tensor:
        """A prediction in white coordinates without its components along the leading modes.

        These stay Gaussian: few training windows are independent of each other, and a network overfits their modes.
        """
        leading = self.axes[:, :len(self.mode_variance)].to(predicted.dtype)
        return predicted - predicted @ leading @ leading.T

    def inputs(self, context: Context, anomalies: list[Tensor]) -> list[Tensor]:
        """Anomalies (batch, step, node) of the history and of `anomalies` in units of the history's spread."""
        return [anomaly / self.history_spread for anomaly in (context.anomaly, *anomalies)]

    def impute(self, z: Tensor, observed: Tensor, noise: Tensor) -> Tensor:
        """z with a random value in place of each missing one, given the other nodes and the other steps.

            scaled = mean + size * u,    mean, size: by the observed nodes of the step, see `_given_nodes`
            u ~ N(0, path_correlation) over the steps of a node, given u at its observed steps

        Nodes are imputed independently but for their leading modes.
        Shapes: z, observed, standard normal `noise` (batch, F, node).
        """
        scaled = z / self.spread
        mean, size = self._given_nodes(scaled, observed)
        u = _conditional_paths((scaled - mean) / size, observed, self.path_correlation, noise)
        return torch.where(observed, z, self.spread * (mean + size * u))

    def _given_nodes(self, scaled: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of missing values given the observed nodes of the step: (batch, F, node) each.

            scaled | observed ~ N(axes @ modes, own + axes covariance axes^T),    own = 1 - share of the modes
            covariance = (mode_variance^-1 + axes^T own^-1 axes)^-1,    sums over observed nodes
        """
        axes = self.axes[:, :len(self.mode_variance)]
        own = (1 - axes.square() @ self.mode_variance).clamp_min(SMALLEST_OWN)
        inverse = observed / own
        squares = (axes.unsqueeze(2) * axes.unsqueeze(1)).flatten(1)  # of each node: (node, mode * mode)
        precision = (inverse @ squares).unflatten(-1, (axes.shape[1], axes.shape[1])) + (1 / self.mode_variance).diag()
        covariance = torch.linalg.inv(precision)
        modes = covariance @ (inverse * scaled @ axes).unsqueeze(-1)
        return modes.squeeze(-1) @ axes.T, (own + covariance.flatten(-2) @ squares.T).sqrt()

    def _fit_paths(self, scaled: Tensor, observed: Tensor) -> None:
        """Estimate `path_correlation` from pairs of steps that are both observed."""
        mean, size = self._given_nodes(scaled, observed)
        u = (scaled - mean) / size * observed
        pairs = torch.einsum("bpv,bqv->pq", observed.to(u), observed.to(u)).clamp_min(1)
        correlation = _correlation(torch.einsum("bpv,bqv->pq", u, u) / pairs)
        values, vectors = torch.linalg.eigh(correlation.double())
        self.path_correlation.copy_((vectors * values.clamp_min(SMALLEST_EIGENVALUE)) @ vectors.T)

    def _complete(self, scaled: Tensor, observed: Tensor) -> Tensor:
        """Fields in units of their spread, with missing values imputed."""
        return self.impute(scaled * self.spread, observed, torch.randn_like(scaled)) / self.spread

    def _classes(self, log_scale: Tensor) -> Tensor:
        return torch.searchsorted(self.class_edges, log_scale.contiguous())

    def _transform(self, values: Tensor, root: Tensor) -> Tensor:
        """`root` applied to the steps of each mode and of the idiosyncratic residual."""
        modes = values @ self.axes
        changed = torch.einsum("kpq,bqk->bpk", root[:-1], modes)
        if self.modes == len(self.axes):
            return changed @ self.axes.T
        return root[-1] @ (values - modes @ self.axes.T) + changed @ self.axes.T

    def _covariance(self, scaled: Tensor) -> Tensor:
        """Covariance over the steps of each mode, and of each dimension of the residual: (mode + 1, F, F)."""
        modes = scaled @ self.axes
        idiosyncratic = scaled - modes @ self.axes.T
        covariance = torch.einsum("npk,nqk->kpq", modes, modes) / len(modes)
        number = torch.arange(self.modes, device=modes.device)
        reach = (number * NEIGHBOURING).long()
        first, last = number - reach, (number + reach).clamp_max(self.modes - 1)
        total = nn.functional.pad(covariance.double().cumsum(0), (0, 0, 0, 0, 1, 0))
        pooled = (total[last + 1] - total[first]) / (last + 1 - first).view(-1, 1, 1)
        others = torch.einsum("npv,nqv->pq", idiosyncratic, idiosyncratic) / (
            len(idiosyncratic) * max(1, len(self.axes) - self.modes))
        if self.modes == len(self.axes):
            others = torch.eye(len(others), device=modes.device)
        found = torch.cat([pooled.float(), others.unsqueeze(0)])
        variance = found.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1)
        return found + RIDGE * (1 + variance) * torch.eye(found.shape[1], device=modes.device)

    def _fit_axes(self, scaled: Tensor) -> None:
        self.axes.copy_(leading_axes(scaled.flatten(0, 1), self.modes))
        leading = scaled @ self.axes[:, :len(self.mode_variance)]
        self.mode_variance.copy_(leading.square().mean((0, 1)).clamp_min(1e-6))


class Whitening(nn.Module):
    """Filters and gain of the classes, and inverse roots of the covariances of modes, see `CovarianceNoise`."""

    def __init__(self, num_nodes: int, predict_len: int, modes: int):
        super().__init__()
        self.register_buffer("filters", torch.eye(predict_len).repeat(CLASSES, 1, 1))
        self.register_buffer("inverse_filters", self.filters.clone())
        self.register_buffer("gain", torch.ones(CLASSES, predict_len, num_nodes))
        self.register_buffer("inverse_root", torch.eye(predict_len).repeat(modes + 1, 1, 1))

    def fit_filters(self, correlations: Tensor) -> None:
        """From correlations over the steps in each class and, the last, in all of them: (class + 1, F, F)."""
        root, inverse = _roots(correlations)
        self.filters.copy_(root[:-1] @ inverse[-1])
        self.inverse_filters.copy_(root[-1] @ inverse[:-1])

    def fit_modes(self, covariance: Tensor, axes: Tensor) -> Tensor:
        """From the covariances of modes (mode + 1, F, F) and their axes (node, mode): the roots of the covariances."""
        root, inverse_root = _roots(covariance)
        self.inverse_root.copy_(inverse_root)
        weights = axes.square()
        weights = torch.cat([weights, 1 - weights.sum(1, keepdim=True)], dim=1)
        for matrix, gain in zip(self.filters, self.gain, strict=True):
            variance = (matrix @ covariance * matrix).sum(-1)  # the diagonal of matrix @ covariance @ matrix.T
            gain.copy_((weights @ variance).T.clamp_min(1e-6).rsqrt())
        return root

    def gain_of(self, classes: Tensor) -> Tensor:
        """The gain of each node and step by the classes (batch, node): (batch, F, node)."""
        return self.gain.gather(0, classes.unsqueeze(1).expand(-1, self.gain.shape[1], -1))


def _by_class(matrices: Tensor, values: Tensor, classes: Tensor) -> Tensor:
    """The matrix (F, F) of its class applied to the steps of each node."""
    classes = classes.unsqueeze(1)
    return sum((classes == number) * (matrix @ values) for number, matrix in enumerate(matrices))


def _edges(log_scale: Tensor) -> Tensor:
    """The edges between classes of equal size, each midway between two values; none is above the largest."""
    ordered = log_scale.flatten().sort().values
    last = ordered[(torch.arange(1, CLASSES, device=ordered.device) * len(ordered) - 1) // CLASSES]
    ordered = nn.functional.pad(ordered, (0, 1), value=torch.finfo(ordered.dtype).max)  # finite, and never reached
    return (last + ordered[torch.searchsorted(ordered, last, right=True)]) / 2


def _independent_share(fields: Tensor) -> float:
    """Effective number of independent nodes of (field, node), over their number: trace(C)^2 / trace(C^2) / nodes."""
    nodes = fields.shape[1]
    gram = fields.T @ fields if len(fields) > nodes else fields @ fields.T
    return max(1.0, float(gram.trace().square() / gram.square().sum().clamp_min(1e-12))) / nodes


def _class_correlations(scaled: Tensor, classes: Tensor, independent_share: float) -> Tensor:
    """Correlations over the steps in each class and, the last, in all of them: (class + 1, F, F).

    They are those of the covariances

        (n * covariance of the class + F * covariance of all) / (n + F)

    n: independent paths in the class, if `independent_share` of the nodes are, and one of F windows one step apart.
    """
    length, paths = scaled.shape[1], scaled.movedim(1, -1)
    own = [paths[classes == number] for number in range(CLASSES)]
    count = torch.tensor([len(each) for each in own]).to(scaled).view(-1, 1, 1)
    products = torch.stack([each.T @ each for each in own])
    every = products.sum(0, keepdim=True) / count.sum()
    prior = length**2 / independent_share
    covariance = torch.cat([(products + prior * every) / (count + prior), every])
    return _correlation(covariance) + RIDGE * torch.eye(length).to(scaled)


def _correlation(covariance: Tensor) -> Tensor:
    """Correlations of covariances (..., F, F)."""
    size = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(1e-6).sqrt()
    return covariance / (size.unsqueeze(-1) * size.unsqueeze(-2))


def _conditional_paths(values: Tensor, observed: Tensor, correlation: Tensor, noise: Tensor) -> Tensor:
    """Values (batch, F, node), the missing ones drawn from N(0, correlation) over the steps given the observed ones.

        draw + correlation[:, o] @ correlation[o, o]^-1 @ (values - draw)[o],    draw ~ N(0, correlation), o: observed

    Source: conditional simulation, Hoffman and Ribak 1991.
    """
    found, seen = values.movedim(1, -1).clone(), observed.movedim(1, -1)
    some = ~seen.all(-1)
    seen, drawn = seen[some], noise.movedim(1, -1)[some] @ torch.linalg.cholesky(correlation).T
    error = torch.where(seen, found[some] - drawn, 0.0)
    size = max(1, PATH_ELEMENTS // correlation.numel())
    for own, part in zip(seen.split(size), error.split(size), strict=True):  # views: `error` becomes the solution
        system = correlation * (own.unsqueeze(1) & own.unsqueeze(2)) + (~own).to(part).diag_embed()
        part.copy_(torch.linalg.solve(system, part))
    found[some] = drawn + error @ correlation
    return found.movedim(-1, 1)


def _roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric roots of covariances (..., F, F), and their inverses."""
    values, vectors = torch.linalg.eigh(covariance.double())
    values = values.clamp_min(1e-6).sqrt().unsqueeze(-2)
    return ((vectors * values) @ vectors.mT).to(covariance), ((vectors / values) @ vectors.mT).to(covariance)


def _mean_square(values: Tensor, observed: Tensor | None, dims) -> Tensor:
    """Mean square over `dims` where `observed`; 1 where nothing is."""
    if observed is None:
        return values.square().mean(dims)
    count = observed.sum(dims)
    return torch.where(count > 0, (values.square() * observed).sum(dims) / count.clamp_min(1), 1.0)
