"""Files of a run, written completely or not at all, and checkpoints that hold numbers, never code."""

import contextlib
import dataclasses
import io
import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

FORMAT_VERSION = 10  # 10: the noise has classes of the fluctuation scale
CHECKPOINT, CONFIG, LOG, METRICS, PICTURE = "model.pt", "config.json", "log.jsonl", "metrics.json", "forecast.png"
WINDOWS, REPORT, PICTURES = "windows.csv", "report.html", "pictures"
STATES = "last_a.pt", "last_b.pt"  # the two newest states of a fit, written alternately
FORMULA = "=", "+", "-", "@", "\t", "\r", "\n"  # a spreadsheet reads a cell with such a start as a formula
TEMPORARY = ".tmp"  # suffix of files being written
FOLDER = 0x10  # attribute in a zip archive; torch reads nothing from a part that has it
RUN_FILES = CHECKPOINT, CONFIG, LOG, METRICS, PICTURE, WINDOWS, *STATES
PARTS = "config", "mean_config", "data", "fingerprint", "field", "built_on", "weights", "state"  # each a dict


def run_folder(save_dir: str, stage: str, config) -> Path:
    """Folder of a run: save/<stage>/<data>_<H>_<F>; a recipe other than the default and `--run_name` are suffixes."""
    recipe = "" if config.recipe == type(config).recipe else config.recipe
    parts = config.data_name, config.history_len, config.predict_len, recipe, config.run_name
    return Path(save_dir).expanduser() / stage / "_".join(str(part) for part in parts if part)


def differences(found: dict, wanted: dict) -> list[str]:
    """Differences from the wanted values, as text; floats are equal within a relative difference of 1e-6."""
    tiny = 1e-12 * min(1.0, wanted.get("scaler_std", 1.0))  # a mean of 0 differs by rounding

    def same(one, other):
        if isinstance(one, list) and isinstance(other, list):
            return len(one) == len(other) and all(map(same, one, other))
        if isinstance(one, float) and isinstance(other, float):
            return math.isclose(one, other, rel_tol=1e-6, abs_tol=tiny)
        return one == other

    texts = []
    for name, value in wanted.items():
        own = found.get(name)
        if isinstance(own, dict) and isinstance(value, dict):
            texts += [f"{name} {text}" for text in differences(own, dict.fromkeys(own) | value)]
        elif not same(own, value):
            texts.append(f"{name} {own} (wanted {value})")
    return texts


def settings(config) -> dict:
    """The flags that decide what a run computes, without those that say where and whether it does."""
    aside = "data_dir", "save_dir", "device", "overwrite", "dry_run", "resume", "save_minutes", "keep_states"
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in aside}


@contextlib.contextmanager
def naming(path: Path, temporary: Path | None = None):
    """Context in which system errors without a file name (full disk), or with that of `temporary`, name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)) and error.filename2 is None:
            error.filename = str(path)
        raise


def write_atomically(path: Path, write) -> None:
    """Write a temporary file beside `path` by `write(file)`, then rename it: `path` is the old file or the new one."""
    temporary = _temporary(path)
    try:
        with naming(path, temporary), temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")


def check_writable(path: Path) -> None:
    """Raises: ValueError or OSError, before the work, where a file could not be written after it."""
    folder, temporary = path.parent, _temporary(path)
    devices = folder.resolve() == Path("/dev") or folder.resolve().is_relative_to("/proc")  # files, if redirected
    if not folder.is_dir():
        raise ValueError(f"{path}: there is no folder {folder}")
    if path.is_dir():
        raise ValueError(f"{path}: it is a folder; give the name of a file")
    if devices or os.path.lexists(path) and not path.is_file():
        raise ValueError(f"{path}: it is no file but a device, a pipe or a broken link; give the name of a file")
    if path.is_file() and not (path.stat().st_mode & 0o222 and os.access(path, os.W_OK)):
        raise ValueError(f"{path}: it is read-only; choose another name")
    if path.name in RUN_FILES and any((folder / name).exists() for name in (CONFIG, CHECKPOINT)):
        raise ValueError(f"{path}: a file of the run in that folder, never replaced; choose another name")
    with naming(path, temporary):
        temporary.touch()
        temporary.unlink()


def read_json(path: Path) -> dict:
    """Raises: ValueError for a damaged file."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from error


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_table(path: Path, columns: dict) -> None:
    """Write columns of equal length as CSV with all their digits."""
    write_text(path, csv_text(pd.DataFrame({name: np.asarray(column) for name, column in columns.items()})))


def csv_text(frame: pd.DataFrame, **options) -> str:
    """A table as CSV without its index. Text that a spreadsheet would run as a formula (FORMULA) gets a leading `'`."""
    def harmless(text):
        return f"'{text}" if isinstance(text, str) and text.startswith(FORMULA) else text

    texts = {name: column.map(harmless) for name, column in frame.items() if column.dtype.kind not in "biufcMm"}
    return frame.assign(**texts).rename(columns=harmless).to_csv(index=False, **options)


def save_checkpoint(path: Path, content: dict) -> None:
    """Write a checkpoint as torch does: a zip archive, which holds a checksum of each of its parts."""
    data = io.BytesIO()
    torch.save({"format": FORMAT_VERSION, **content}, data)
    write_atomically(path, lambda file: file.write(data.getbuffer()))


def damage(path: Path) -> str | None:
    """The damage of a checkpoint by the checksums of its zip archive, which torch ignores; None where it is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None and not any(part.external_attr & FOLDER for part in archive.infolist())
    except (FileNotFoundError, PermissionError):
        raise
    except Exception:  # of many kinds for a damaged archive
        whole = False
    return None if whole else f"{path}: damaged, or not a readable checkpoint"


@contextlib.contextmanager
def built_from(source: Path | str):
    """Context in which something is built from a checkpoint. Raises: ValueError that begins with `source`."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{source}: does not fit this program ({type(error).__name__}: {reason}); train it again, or "
                         "use the version that wrote it") from error


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint on the CPU, without running code in it. Raises: ValueError if damaged or of another format."""
    if damaged := damage(path):
        raise ValueError(f"{damaged}; run its training again, with --overwrite if it had finished")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"{path}: not a readable checkpoint ({type(error).__name__}); train it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise ValueError(f"{path}: not a checkpoint of this project")
    if content["format"] != FORMAT_VERSION:
        raise ValueError(f"{path}: format version {content['format']}, of another version of this program; this one "
                         f"reads {FORMAT_VERSION}: train it again, with --overwrite")
    if wrong := [name for name in PARTS if not isinstance(content.get(name, {}), dict)]:
        raise ValueError(f"{path}: not a checkpoint of this project: {', '.join(wrong)} of another kind")
    if "weights" in content:  # of a wrapped model: without its prefixes
        content["weights"] = {name.removeprefix("module.").replace("_orig_mod.", ""): value
                              for name, value in content["weights"].items()}
    return content
