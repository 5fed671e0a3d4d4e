"""What a run prints: settings and sizes before training, scores after it."""

import json
from pathlib import Path

import torch

from data.lags import as_text
from data.stamps import stamps_as_text
from utils.config import PretrainConfig
from utils.training.checkpoint import settings

FAR_COVERAGE = 0.05  # distance from the coverage of a calibrated ensemble that gives a note


def describe_run(config, data, model: torch.nn.Module, folder: Path, device: torch.device) -> None:
    """Print data, sizes, device and folder of a run; with `--dry_run` all settings and the expected memory."""
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    windows = ", ".join(f"{len(starts)} {split}" for split, starts in data.starts.items())
    values = data.field.values
    calendar = data.field.calendar
    spans = " and ".join("from {} to {}".format(*stamps_as_text(calendar.times[[first, end - 1]], calendar.zone))
                         for first, end in data.field.segments)
    lags = f"; lags: {', '.join(as_text(data.lags)) or 'none'}" if config.lags != "none" else ""
    missing = f"{data.field.missing_share:.3%} of the values missing, " if data.field.masked else ""
    bounded = data.metadata()["support"] is not None
    support = "of some nodes none negative" if bounded else "any"
    if data.field.spec.nonnegative or data.scaler.least:
        support = "none negative"
    print(f"{config.data_name}: {len(values)} steps {spans}, {data.num_nodes} nodes, {missing}"
          f"unit: {data.field.spec.unit}; values: {support}, scaled by mean and spread of {data.scaler.basis}; "
          f"windows: {windows}{lags}")
    print(f"{trained:,} trained weights on {device}; run folder {folder}", flush=True)
    if config.dry_run:
        print(json.dumps(settings(config), indent=1))
        width = max((weight.shape[-1] for weight in model.parameters() if weight.requires_grad), default=1)
        layers = config.mean_layers if isinstance(config, PretrainConfig) else config.diffusion_layers
        activations = 4 * layers * config.batch_size * data.num_nodes * width * 4  # four a block are kept
        print(f"memory: field {values.numel() * values.element_size() / 2**20:.1f} MiB; weights, gradients, Adam, "
              f"average and best weights {trained * 24 / 2**20:.1f} MiB; activations of a training step about "
              f"{activations / 2**20:.0f} MiB")


def print_scores(metrics: dict, unit: str) -> None:
    """Print the scores of a run, one a line, with the values of a calibrated ensemble of as many members."""
    floors = {"QICE_ties": "QICE_floor", "coverage90": "coverage90_floor"}
    in_unit = ("IS", "MAE", "MAE_median", "RMSE", "energy_score", "CRPS_fair_physical")
    shown = ("CRPS", "CRPS_nodes", "CRPS_fair", "CRPS_sum", "QICE", "QICE_ties", "IS", "coverage90", "MAE",
             "MAE_median", "RMSE", "energy_score", "variogram_score", "spread_skill")
    members = f", {metrics['members']} members" if "members" in metrics else ""
    members += f" ({metrics['ensemble']})" if "ensemble" in metrics else ""
    print(f"{metrics['split']} split: {metrics['windows']} windows{members}")
    for name in shown:
        if metrics.get(name) is not None:
            note = f"  (a calibrated ensemble: {metrics[floors[name]]:.4g})" if name in floors else ""
            note = f"  {unit}" if name in in_unit else note
            print(f"  {name:18} {metrics[name]:<9.4g}{note}")
    if metrics.get("Brier") is not None:
        skill = metrics["Brier_skill"]
        print(f"  Brier score of values above {metrics['threshold']:g} {unit}: {metrics['Brier']:.4g}; skill against "
              f"their share, {metrics['event_rate']:.2%}: {'undefined' if skill is None else format(skill, '.3g')}")
    if metrics.get("coverage90") is not None and metrics["coverage90"] < metrics["coverage90_floor"] - FAR_COVERAGE:
        print(f"  note: the 90 % intervals hold {metrics['coverage90']:.0%} of the observations, those of a calibrated "
              f"ensemble {metrics['coverage90_floor']:.0%}: this ensemble is too narrow")
    for name, score in metrics.get("joint", {}).items():
        if name.startswith("CRPS_") and name not in shown and score is not None:
            control = metrics["joint"]["control"][name]
            print(f"  {name:20}{score:.4g}  (the same members without dependence: {control:.4g})")
    if check := metrics.get("cross_check"):
        print(f"  fair CRPS of {check['windows']} windows: {check['ours']:.6g}, by properscoring "
              f"{check['properscoring']:.6g}; largest difference {check['largest_difference']:.1e}")
    seconds = {"training": metrics.get("seconds_train"), "forecasting": metrics["seconds_sample"]}
    print("seconds: " + ", ".join(f"{value:.0f} {what}" for what, value in seconds.items() if value is not None))
