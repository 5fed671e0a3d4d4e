"""Streams forecasts into scores: one chunk of windows at a time, never all members of all windows."""

import sys

import torch
from torch import Tensor
from tqdm import tqdm

from .metrics import EnsembleScores, crps_cross_check

CPU_VALUES_AT_ONCE, GPU_VALUES_AT_ONCE = 6_000, 1_000_000


def rows_at_once(num_nodes: int, device: torch.device, chosen: int = 0) -> int:
    """Members to sample at a time: the `--sample_batch` of the user, or what keeps the processor's caches full.

    About 6,000 nodes x members on a CPU (activations then stay in cache), a million on a GPU.
    """
    values = CPU_VALUES_AT_ONCE if device.type == "cpu" else GPU_VALUES_AT_ONCE
    return chosen or max(1, values // num_nodes)


def progress(batches, text: str):
    """A progress bar over batches, where somebody is watching."""
    return tqdm(batches, desc=text, unit="batch", dynamic_ncols=True, disable=not sys.stderr.isatty())


def evaluate_ensemble(draw, batches, physical, shape: tuple[int, int, int],
                      equidistant: bool = False, watch=None) -> tuple[dict, dict[str, Tensor]]:
    """Score an ensemble forecast on batches of windows; every window counts once.

    draw(batch) -> members (batch, member, horizon, node), standardized; physical(values) -> physical units;
    shape (member, horizon, node); equidistant: see `EnsembleScores.compute`; watch(members, truth), where given, sees
    every batch too, in physical units. Returns the dict of the scores, and that of `EnsembleScores.by_window` with the
    `start` of each window, which `utils.comparison` pairs forecasts by.
    """
    members, horizon, node = shape
    scores, starts = EnsembleScores(horizon=horizon, node=node, members=members), []
    for batch in progress(batches, "forecasting"):
        drawn, truth = physical(draw(batch)), physical(batch.future)
        scores.update(drawn, truth)
        if watch:
            watch(drawn, truth)
        starts.append(batch.start.cpu())
    return scores.compute(equidistant), scores.by_window() | {"start": torch.cat(starts)}


def cross_check(draw, batches, physical) -> dict:
    """CRPS of some windows by our estimator and by properscoring, and the largest difference of any target.

    `batches` hold one window each.
    """
    checks = [crps_cross_check(physical(draw(batch)), physical(batch.future)) for batch in batches]
    count = len(checks)
    return {
        "windows": count,
        **{name: sum(check[name] for check in checks) / count for name in ("ours", "properscoring")},
        "largest_difference": max(check["largest_difference"] for check in checks),
    }


@torch.no_grad()
def evaluate_mean(predict, batches, physical) -> dict:
    """MAE and RMSE of a deterministic forecast, in all and per horizon.

    predict(batch) -> (batch, horizon, node), standardized.
    """
    absolute, square, targets, windows = 0, 0, 0, 0
    for batch in batches:
        error = (physical(predict(batch)) - physical(batch.future)).double()
        absolute = absolute + error.abs().sum((0, 2))
        square = square + error.square().sum((0, 2))
        targets += error.shape[0] * error.shape[2]
        windows += len(error)
    mae, mse = absolute / targets, square / targets
    return {
        "MAE": mae.mean().item(), "RMSE": mse.mean().sqrt().item(), "windows": windows,
        "per_horizon": {"MAE": mae.tolist(), "RMSE": mse.sqrt().tolist()},
    }


@torch.no_grad()
def mean_over_windows(value, batches) -> Tensor:
    """Mean of `value(batch)` weighted by the windows of each batch; stays on the device."""
    total, windows = 0, 0
    for batch in batches:
        total = total + value(batch) * len(batch.start)
        windows += len(batch.start)
    return total / windows
