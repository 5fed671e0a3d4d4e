"""What quality costs: every sampler, number of steps and precision of a trained run, scored and timed.

    python -m scripts.sampler_curve save/diffusion/MobileNJ_12_12 --windows 24 --picture samplers.png

Scores are those of 50 members on validation windows, evenly spread; milliseconds the median of one such forecast of
one window, on this machine and under its load of the moment. All of it goes to RUN_FOLDER/samplers.json, from which
`python -m scripts.evaluate RUN_FOLDER --budget_ms N` chooses.
"""

import os
import statistics
from pathlib import Path

import pandas as pd
import torch

from data.registry import sha256_of
from main_train import open_run_data, score_ensemble
from models import ensemble_drawer, load_forecaster
from models.diffusion import SAMPLERS
from scripts.benchmark_speed import PRECISIONS, measure
from scripts.collect_results import number
from utils.checkpoint import CHECKPOINT, check_writable, read_json, write_json, write_table
from utils.config import FlagParser, TrainConfig, output_path, picture_path, run_main
from utils.device import choose_device
from utils.plots import draw_sampler_curves

CURVE = "samplers.json"
STEPS = (1, 2, 3, 5, 10, 20, 50)
MEMBERS = 50
SCORES = ("CRPS", "CRPS_sum", "energy_score", "QICE", "spread_skill")
TIE = 0.005  # energy scores that differ by less, as a share of the best, count as equal


def sampler_curve(model: torch.nn.Module, settings: dict, data, device: torch.device, windows: int,
                  budget: float = 2.0) -> list[dict]:
    """One row per sampler, number of steps and precision: its scores on validation windows, its milliseconds.

    `budget` bounds the seconds of repeats per time.
    """
    settings = {**settings, "nsample": MEMBERS, "test_windows": windows}
    window, rows = next(iter(data.batches("validation", 1))), []
    for precision in PRECISIONS.values():
        ensemble_drawer(model, {**settings, "sample_precision": precision}, device)(window)  # warm-up
        for sampler in SAMPLERS:
            for steps in (steps for steps in STEPS if steps <= settings["diffusion_steps"]):
                chosen = {**settings, "sampler": sampler, "sample_steps": steps, "sample_precision": precision}
                draw = ensemble_drawer(model, chosen, device)
                seconds = measure(lambda draw=draw: draw(window), device, budget)
                scores, _ = score_ensemble(model, chosen, data, "validation", device)
                rows.append({"sampler": sampler, "steps": steps, "precision": precision,
                             **{name: scores[name] for name in SCORES},
                             "milliseconds": 1000 * statistics.median(seconds)})
    return rows


def in_words(row: dict) -> str:
    return (f"{row['sampler']}, {row['steps']} steps, {row['precision']}: {row['milliseconds']:.1f} ms, "
            f"energy score {number(row['energy_score'])}")


def choose(rows: list[dict], budget_ms: float) -> dict:
    """The row with the lowest energy score that costs at most `budget_ms`; among equal ones (TIE) the cheapest.

    Raises: ValueError when nothing is cheap enough: what the cheapest is.
    """
    affordable = [row for row in rows if row["milliseconds"] <= budget_ms]
    if not affordable:
        cheapest = min(rows, key=lambda row: row["milliseconds"])
        raise ValueError(f"--budget_ms {budget_ms:g}: no sampler is that cheap; the cheapest is {in_words(cheapest)}")
    best = min(row["energy_score"] for row in affordable)
    equal = [row for row in affordable if row["energy_score"] <= best * (1 + TIE)]
    return min(equal, key=lambda row: row["milliseconds"])


def read_curve(folder: Path) -> dict:
    """The measured curve of a run. Raises: ValueError when there is none, or that of other weights: the command."""
    command = f"run first: python -m scripts.sampler_curve {folder}"
    if not (folder / CURVE).exists():
        raise ValueError(f"{folder / CURVE}: the samplers of this run have not been measured; {command}")
    curve = read_json(folder / CURVE)
    if curve["model"] != sha256_of(folder / CHECKPOINT):
        raise ValueError(f"{folder / CURVE}: measured with other weights than those of {CHECKPOINT}; {command}")
    return curve


def table(curve: dict) -> str:
    """A curve as text."""
    names = (*SCORES, "milliseconds")
    lines = [
        f"{curve['data_name']}: {curve['windows']} validation windows, {curve['members']} members; {curve['device']}, "
        f"{curve['threads']} threads, load average {curve['load_average']:.1f} at the start",
        f"{'sampler':12}{'steps':>5}  {'precision':10}" + "".join(f"{name:>14}" for name in names),
    ]
    return "\n".join(lines + [f"{row['sampler']:12}{row['steps']:5}  {row['precision']:10}"
                              + "".join(f"{number(row[name]):>14}" for name in names) for row in curve["rows"]])


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("run_folder", type=Path, help="folder of a stage-2 run")
    parser.add_argument("--windows", type=int, default=24, help="validation windows to score, evenly spread; 0: all")
    parser.add_argument("--json", type=output_path, default=None, help=f"write the numbers there beside {CURVE}")
    parser.add_argument("--table", type=output_path, default=None, help="write the rows there as CSV")
    parser.add_argument("--picture", type=picture_path, default=None, help="draw quality against milliseconds as PNG")
    parser.add_flags(TrainConfig, {}, ("data_dir", "device"))
    given = vars(parser.parse_args(arguments))
    if given["windows"] < 0:
        parser.error(f"--windows {given['windows']}: choose a number of windows, or 0 for all")
    folder, device = given["run_folder"], choose_device(given.get("device", TrainConfig.device))
    run = load_forecaster(folder, device)
    check_writable(folder / CURVE)
    settings = run.checkpoint["config"]
    data, load = open_run_data(run.checkpoint, given.get("data_dir", ""), device), os.getloadavg()[0]
    rows = sampler_curve(run.model, settings, data, device, given["windows"])
    found = len(data.starts["validation"])
    curve = {
        "model": sha256_of(folder / CHECKPOINT), "data_name": settings["data_name"], "split": "validation",
        "windows": min(given["windows"] or found, found), "members": MEMBERS,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(), "load_average": load, "rows": rows,
    }
    write_json(folder / CURVE, curve)
    print(table(curve))
    if given["json"]:
        write_json(given["json"], curve)
    if given["table"]:
        write_table(given["table"], pd.DataFrame(rows).to_dict("list"))
    if given["picture"]:
        draw_sampler_curves(rows, MEMBERS, given["picture"])
    return 0


if __name__ == "__main__":
    run_main(main)
