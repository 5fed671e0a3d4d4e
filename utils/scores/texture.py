"""Texture: roughness of members from node to node and from step to step, beside that of the errors of the mean.

    error = truth - mean of members,    error of a member = member - mean of the other members

The two have the same distribution for a calibrated ensemble. All errors are divided by the spread of their node;
variances cancel, so that only shape counts.
"""

import torch

from utils.scores.metrics import plain

MEMBERS = 6  # of each window that are looked at
NEAR, FAR = slice(1, 5), slice(13, 25)  # among the nearest nodes of each, which begin with itself
QUARTERS = 4
SPECTRAL_NODES = 1024  # fields of more nodes have no spectrum here: its axes take time in the cube of their number
PENALTY = 1e-2  # of the squared weights of the classifier


def laplacian_axes(nearest):
    """Eigenvectors of the graph of nearest nodes, smooth ones first: (node, node); for grids these are waves.

    The graph joins each node and its four nearest. Shapes: nearest (node, count), each row beginning with its node.
    """
    nodes = len(nearest)
    joined = torch.zeros(nodes, nodes, dtype=torch.float64)
    joined.scatter_(1, nearest[:, NEAR].cpu(), 1.0)
    joined = torch.maximum(joined, joined.T).fill_diagonal_(0)
    return torch.linalg.eigh(joined.sum(0).diag() - joined).eigenvectors


def two_sample_auc(observed, members):
    """AUC of a logistic classifier of members against observations, on windows that it was not fitted to.

    It is fitted to the first half of the windows and tested on the second, without four windows between them; .5: it
    finds no difference. Its inputs are each feature and its square, standardized.
    Shapes: features observed (window, feature), members (window, member, feature). None for fewer than 20 windows.
    """
    windows = len(observed)
    if windows < 20:
        return None
    first, second = slice(0, windows // 2 - 2), slice(windows // 2 + 2, windows)
    both = torch.cat([observed[first], members[first].flatten(0, 1)])
    mean, spread = both.mean(0), both.std(0) + 1e-9

    def inputs(features):
        scaled = (features - mean) / spread
        return torch.cat([scaled, scaled.square(), torch.ones_like(scaled[:, :1])], dim=1)

    weights = torch.zeros(2 * observed.shape[1] + 1, dtype=both.dtype, requires_grad=True)
    fit = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")
    softplus, real, drawn = torch.nn.functional.softplus, inputs(observed[first]), inputs(members[first].flatten(0, 1))

    def loss():
        fit.zero_grad()
        value = softplus(-real @ weights).mean() + softplus(drawn @ weights).mean()
        value = value + PENALTY * weights[:-1].square().sum()
        value.backward()
        return value

    fit.step(loss)
    with torch.no_grad():
        real, drawn = inputs(observed[second]) @ weights, inputs(members[second].flatten(0, 1)) @ weights
    ordered = drawn.sort().values
    lower, upper = (torch.searchsorted(ordered, real, right=right) for right in (False, True))  # ties count half
    return float((lower + upper).double().mean() / (2 * len(drawn)))


class TextureScores:
    """Ratios of members to observations, streamed over chunks of windows; `sums` of several processes may be added.

    spread (node,): unit of each node, a node without any is left out; nearest (node, 25 or fewer), see
    `WindowedField.nearest_nodes`, or None: then only steps are compared.
    """

    def __init__(self, spread, nearest=None):
        self.spread = spread.double().where(spread > 0, torch.inf)  # NaN: never observed
        self.nearest = nearest if nearest is not None and nearest.shape[1] >= NEAR.stop else None
        spectral = self.nearest is not None and len(spread) <= SPECTRAL_NODES
        self.axes = laplacian_axes(self.nearest) if spectral else None
        self.sums, self._windows = {}, []

    @torch.no_grad()
    def update(self, members, truth, observed, start):
        """Add a chunk of windows, see `metrics.EnsembleScores.update`; start (batch,)."""
        count, spread = members.shape[1], self.spread.to(members.device)
        total = members.sum(1, keepdim=True)
        some = members[:, :MEMBERS]
        errors = torch.cat([truth.unsqueeze(1) - total / count, some - (total - some) / (count - 1)], 1)
        errors = errors.double() / spread
        if observed is not None:
            errors = errors.where(observed.unsqueeze(1), 0.0)
        size = errors.square().mean((2, 3))
        found = {"size": size}
        if errors.shape[2] > 1:
            found["step"] = errors.diff(dim=2).square().mean((2, 3))
        found["sum"] = errors.mean(3).square().mean(2)
        if self.nearest is not None:
            nearest = self.nearest.to(members.device)
            found["near"] = _roughness(errors, nearest[:, NEAR])
            if nearest.shape[1] >= FAR.stop:
                found["far"] = _roughness(errors, nearest[:, FAR])
        features = torch.stack([((values + 1e-6 * size) / size.clamp_min(1e-12)).log()
                                for name, values in found.items() if name != "size"], dim=-1)
        sums = {name: torch.stack([values[:, 0].sum(), values[:, 1:].mean(1).sum()]) for name, values in found.items()}
        if self.axes is not None:
            power = (errors @ self.axes.to(members.device)).square().mean(2)
            quarters = torch.stack([part.sum(-1) for part in power[..., 1:].tensor_split(QUARTERS, -1)], -1)
            sums["spectrum"] = torch.stack([quarters[:, 0].sum(0), quarters[:, 1:].mean(1).sum(0)])
        self.sums = {name: self.sums.get(name, 0) + value for name, value in sums.items()}
        self._windows.append((start.cpu(), features.cpu()))

    def by_window(self):
        """Features of every window, of the observation and of members: (windows, 1 + members, feature), and `start`."""
        start, features = (torch.cat(each) for each in zip(*self._windows, strict=True))
        return {"features": features, "start": start}

    def compute(self, windows):
        """All of it, from `sums` and `by_window`, as plain numbers; None for what does not exist.

        near, step: squared difference to the four nearest nodes, to the next step, over the variance, members /
        observed; spectrum: share of the variance by quarter of the graph's eigenvectors, smooth ones first, members /
        observed; AUC: see `two_sample_auc`, of the logarithms of four such shares.
        """
        found, sums = {}, {name: value.cpu() for name, value in self.sums.items()}
        for name in sums.keys() & {"near", "step", "spectrum"}:
            total = sums["size"] if name != "spectrum" else sums[name].sum(1, keepdim=True)
            shares = sums[name] / total
            found[name] = shares[1] / shares[0]
        features = windows["features"][windows["start"].argsort()]
        features = features[features.isfinite().flatten(1).all(1)]  # windows with an observation
        return {**dict.fromkeys(("near", "step", "spectrum")), **plain(found),
                "AUC": two_sample_auc(features[:, 0], features[:, 1:])}


def _roughness(errors, nodes):
    """Mean squared difference to some other nodes of each: (batch, row)."""
    return sum((errors - errors[..., one]).square().mean((2, 3)) for one in nodes.T) / nodes.shape[1]
