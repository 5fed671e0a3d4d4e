"""Streams forecasts into scores: one chunk of windows at a time, never all members of all windows."""

import sys
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from utils.scores.diagnostics import pair_distances
from utils.scores.joint import NEIGHBOURS, JointScores
from utils.scores.metrics import EnsembleScores, crps_by_properscoring, crps_fair, plain, sort_members
from utils.scores.texture import FAR, TextureScores
from utils.training.distributed import SINGLE_PROCESS, Processes

SMALLEST_SPREAD = 0.1  # of a node, as a share of the root mean square of all
SPREAD_STEPS = 2000  # training steps, at most, that the spread of a node is taken from
LISTED_NODES = 1000  # of which scores are listed: of more, those of the highest CRPS as a share of their mean |truth|
CPU_VALUES_AT_ONCE, GPU_VALUES_AT_ONCE = 6_000, 1_000_000


def rows_at_once(num_nodes: int, device: torch.device, chosen: int = 0) -> int:
    """Members to sample at a time: `--sample_batch`, or so many that activations stay in the cache of a CPU."""
    values = CPU_VALUES_AT_ONCE if device.type == "cpu" else GPU_VALUES_AT_ONCE
    return chosen or max(1, values // num_nodes)


def progress(batches, text: str):
    """A progress bar over batches, on a terminal."""
    return tqdm(batches, desc=text, unit="batch", dynamic_ncols=True, disable=not sys.stderr.isatty())


def evaluate_ensemble(sample, batches, physical, members: int, kind: str = "random",
                      processes: Processes = SINGLE_PROCESS, watch=None, threshold: float | None = None,
                      joint: bool = True) -> tuple[dict, dict[str, Tensor]]:
    """Score an ensemble forecast on batches of windows; every window counts once.

    sample(batch) -> members (batch, member, horizon, node), standardized; physical(values) -> physical units, float64;
    members: their number; kind, threshold: see `EnsembleScores`; watch(members, truth, observed) sees every batch of
    this process too, in physical units. Returns the dict of the scores, `joint` among them unless that is off, and
    those of every window with its `start`, which `utils.scores.comparison` pairs forecasts by.
    """
    data, starts = batches.data, []
    limit = threshold if threshold is None else data.scaler.stored(threshold)
    scores = EnsembleScores(data.predict_len, data.num_nodes, members, limit)
    dependence = (joint_scores(data), texture_scores(data)) if joint else ()
    for batch in progress(batches.share_windows(processes.rank, processes.count), "forecasting"):
        truth = batch.truth.double()
        drawn = data.scaler.tied(physical(sample(batch)), truth.unsqueeze(1))
        if limit is not None:
            drawn = data.scaler.tied(drawn, truth.new_tensor(limit))
        chunk = drawn, truth, batch.target_mask
        scores.update(*chunk)
        for each in dependence:
            each.update(*chunk, batch.start)
        if watch:
            watch(*chunk)
        starts.append(batch.start.cpu())
    for each in (scores, *dependence):
        each.sums = {name: processes.add(value) for name, value in each.sums.items()}
    rows = scores.by_window() | (dependence[0].by_window() if joint else {}) | {"start": torch.cat(starts)}
    windows = {name: processes.join_rows(value) for name, value in rows.items()}
    found = scores.compute(kind)
    found["per_node"] = named_nodes(found["per_node"], data.field.node_names)
    found |= {} if threshold is None else {"threshold": threshold}
    if not joint:
        return found, windows
    together, texture = dependence
    own = {name: found[name] for name in ("energy_score", "variogram_score")}
    features = {name: processes.join_rows(value) for name, value in texture.by_window().items()}
    return {**found, "joint": {**own, **together.compute(), "texture": texture.compute(features)}}, windows


def named_nodes(scores: dict[str, list], names: tuple[str, ...]) -> dict[str, dict]:
    """Scores (node,) by the names of the nodes, with seven digits; of a large field LISTED_NODES nodes."""
    worst = sorted(range(len(names)), key=lambda node: -(scores["CRPS"][node] or 0.0))[:LISTED_NODES]
    return {score: {names[node]: values[node] and float(f"{values[node]:.7g}") for node in sorted(worst)}
            for score, values in scores.items()}


def joint_scores(data) -> JointScores:
    field = data.field
    distances = partial(pair_distances, grid=field.grid, kept=field.kept, coordinates=field.coordinates,
                        graph=field.graph)
    return JointScores(data.num_nodes, data.nearest_nodes(NEIGHBOURS), distances)


def texture_scores(data) -> TextureScores:
    """An empty `TextureScores` of the data's nodes."""
    steps = torch.linspace(0, len(data.measured) - 1, min(len(data.measured), SPREAD_STEPS)).round().long()
    values = data.measured[steps].double()
    spread = (values - values.nanmean(0)).square().nanmean(0).sqrt()
    if data.alike:  # one unit: a node that hardly varied in training does not outweigh the others
        spread = spread.clamp_min(SMALLEST_SPREAD * spread.square().mean().sqrt())
    return TextureScores(spread, data.nearest_nodes(min(FAR.stop, data.num_nodes)))


def cross_check(sample, batches, physical) -> dict:
    """CRPS of some windows, one in each batch, by our estimator and by properscoring, and their largest difference.

    Windows without an observed target are left out; without any other it is empty.
    """
    checks = []
    for batch in batches:
        observed = batch.counts.bool()
        if not observed.any():
            continue
        truth = batch.truth[observed].double().cpu()
        ordered = sort_members(physical(sample(batch)).movedim(1, -1)[observed].double().cpu())
        ours, theirs = crps_fair(ordered, truth), crps_by_properscoring(ordered, truth)
        checks.append(torch.stack([ours.mean(), theirs.mean(), (ours - theirs).abs().max()]))
    if not checks:
        return {}
    ours, theirs, difference = torch.stack(checks, dim=1)
    return {"windows": len(checks), "ours": ours.mean().item(), "properscoring": theirs.mean().item(),
            "largest_difference": difference.max().item()}


@torch.no_grad()
def evaluate_mean(predict, batches, physical, processes: Processes = SINGLE_PROCESS) -> dict:
    """MAE and RMSE of a deterministic forecast, in all and per horizon.

    predict(batch) -> (batch, horizon, node), standardized. Missing targets count in nothing.
    """
    totals, windows = 0, 0
    for batch in batches.share_windows(processes.rank, processes.count):
        error = (physical(predict(batch)) - batch.truth).where(batch.counts.bool(), 0.0)
        totals = totals + torch.stack([each.sum((0, 2), dtype=torch.float64)
                                       for each in (error.abs(), error.square(), batch.counts)])
        windows += len(error)
    absolute, square, targets = processes.add(totals)
    count = targets.sum()
    return {
        **plain({"MAE": absolute.sum() / count, "RMSE": (square.sum() / count).sqrt()}),
        "windows": int(processes.add(torch.as_tensor(windows))),
        "per_horizon": plain({"MAE": absolute / targets, "RMSE": (square / targets).sqrt()}),
    }


@torch.no_grad()
def mean_over_windows(value, batches, processes: Processes = SINGLE_PROCESS) -> Tensor:
    """Mean of `value(batch)` weighted by the windows of each batch; stays on the device."""
    total, windows = 0, 0
    for batch in batches.share_windows(processes.rank, processes.count):
        total = total + value(batch).double() * len(batch.start)
        windows += len(batch.start)
    return processes.add(total) / processes.add(torch.as_tensor(windows))
