"""Run folders: whole files or none, and checkpoints that hold numbers, never code."""

import dataclasses
import json
import math
import os
import platform
from pathlib import Path

import numpy as np
import pandas as pd
import torch

FORMAT_VERSION = 2  # 2: stage 1 with climatology and recalibration, stage 2 with processes
CHECKPOINT, CONFIG, LOG, METRICS, PICTURE = "model.pt", "config.json", "log.jsonl", "metrics.json", "forecast.png"
WINDOWS = "windows.csv"


def run_folder(save_dir: str, stage: str, config) -> Path:
    """Folder of a run: save/<stage>/<data>_<H>_<F>, with `--run_name` as a suffix."""
    name = f"{config.data_name}_{config.history_len}_{config.predict_len}"
    return Path(save_dir).expanduser() / stage / (f"{name}_{config.run_name}" if config.run_name else name)


def open_run(folder: Path, config, built_on: dict) -> bool:
    """Make the run folder ready; False when it holds this very run, finished, which is then left alone.

    built_on: what the run depends on beside its settings (facts of the data, digest of the stage-1 model). An
    unfinished run's files are replaced. `--overwrite` runs again in any case.
    Raises: ValueError when the finished run was another one, saying how; OSError when it cannot be written.
    """
    if (folder / METRICS).exists() and not config.overwrite:
        finished = read_json(folder / CONFIG)
        differing = differences(finished["config"], settings(config)) + differences(finished["built_on"], built_on)
        if differing:
            raise ValueError(f"{folder} holds a finished run with {', '.join(differing)}; choose --run_name NAME to "
                             "keep both, or --overwrite to replace it")
        print(f"{folder} holds a finished run of these settings: nothing to do (--overwrite runs it again)")
        return False
    folder.mkdir(parents=True, exist_ok=True)
    for name in (METRICS, CHECKPOINT, LOG, PICTURE, WINDOWS):
        (folder / name).unlink(missing_ok=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    write_json(folder / CONFIG, {"config": dataclasses.asdict(config), "built_on": built_on, "versions": versions})
    return True


def differences(found: dict, wanted: dict) -> list[str]:
    """What differs from what is wanted, as text; real numbers are the same within a millionth of their size."""
    def same(one, other):
        if isinstance(one, dict) and isinstance(other, dict):
            return not differences(one, other) and one.keys() == other.keys()
        if isinstance(one, list) and isinstance(other, list):
            return len(one) == len(other) and all(map(same, one, other))
        if isinstance(one, float) and isinstance(other, float):
            return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12)
        return one == other

    return [f"{name} {found.get(name)} (wanted {value})" for name, value in wanted.items()
            if not same(found.get(name), value)]


def settings(config) -> dict:
    """The flags that decide what a run computes, without those that only say where and whether."""
    aside = ("data_dir", "save_dir", "device", "overwrite", "dry_run", "tensorboard")
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in aside}


def write_atomically(path: Path, write) -> None:
    """Let `write(file)` fill a temporary file beside `path`, then rename it: the old file or the new, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    """Raises: ValueError for a damaged file."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from error


def write_json(path: Path, content: dict) -> None:
    write_atomically(path, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))


def write_table(path: Path, columns: dict) -> None:
    """Write columns of equal length as CSV with all their digits."""
    text = pd.DataFrame({name: np.asarray(column) for name, column in columns.items()}).to_csv(index=False)
    write_atomically(path, lambda file: file.write(text.encode()))


def append_line(path: Path, content: dict) -> None:
    """Add one line of JSON in a single write, so that a log never ends in half a line."""
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(content) + "\n").encode())


def save_checkpoint(path: Path, content: dict) -> None:
    write_atomically(path, lambda file: torch.save({"format": FORMAT_VERSION, **content}, file))


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint on the CPU; no code in it is ever run.

    Raises: ValueError for a damaged file or another format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file makes torch raise many kinds
        raise ValueError(f"{path}: not a readable checkpoint ({type(error).__name__}); train it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise ValueError(f"{path}: not a checkpoint of this project")
    if content["format"] > FORMAT_VERSION:
        raise ValueError(f"{path}: format version {content['format']}; this program reads {FORMAT_VERSION}")
    if content["format"] < FORMAT_VERSION:
        raise ValueError(f"{path}: format version {content['format']}, of an earlier version of this program; this one "
                         f"reads {FORMAT_VERSION}: train it again")
    return content
