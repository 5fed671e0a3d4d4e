"""Run folders: begun once, written by one program at a time, gone on with after any interruption, finished once."""

import dataclasses
import fcntl
import json
import platform
import shutil
import sys
from pathlib import Path

import torch

from .checkpoint import (
    CHECKPOINT,
    CONFIG,
    DIGEST,
    LOG,
    METRICS,
    PICTURE,
    PICTURES,
    REPORT,
    STATES,
    TEMPORARY,
    WINDOWS,
    append_lines,
    damage,
    differences,
    load_checkpoint,
    read_json,
    save_checkpoint,
    settings,
    write_atomically,
    write_json,
)
from .distributed import ALONE, Processes
from .runlog import tensorboard_log

FINISHED, LOCK = "finished", ".lock"


class Run:
    """An open run folder: where a fit leaves its best weights, its log and all that it needs to go on later.

    state: what an unfinished run of the same settings saved last, or None. Of several processes the first one writes.
    """

    def __init__(self, folder: Path, made_by: dict, source: Path | None, lock, show):
        self.folder, self._made_by, self._lock, self._show = folder, made_by, lock, show
        self.state = load_checkpoint(source)["state"] if source else None
        self._lines = []
        self._saves = int(source is not None and source.name == STATES[0])

    def keep(self, content: dict) -> None:
        """Replace the checkpoint: the best weights so far, and what a forecaster is built from."""
        if self._lock:
            save_checkpoint(self.folder / CHECKPOINT, content)

    def log(self, line: dict) -> None:
        """Add a line to the log, after those that could not be written before."""
        self._lines.append(line)
        if self._lock:
            append_lines(self.folder / LOG, self._lines)
            self._show(line)
        self._lines = []

    def save(self, state: dict) -> None:
        """Save all that the rest of a fit depends on; the state before it stays beside it."""
        if self._lock:
            save_checkpoint(self.folder / STATES[self._saves % 2], {**self._made_by, "state": state})
            self._saves += 1


def open_run(folder: Path, config, built_on: dict, processes: Processes = ALONE) -> Run | None:
    """Make the run folder ready; None when it holds this very run, finished, which is then left alone.

    built_on: what the run depends on beside its settings (facts of the data, digest of the stage-1 model). An
    unfinished run of these settings goes on where it stood, or as `--resume` says; a finished one whose checkpoint is
    damaged is finished once more. `--overwrite` runs again in any case.
    Raises: ValueError when the folder holds another run, saying what differs, when a program is at work in it, or
    when there are saved states and none can be read; OSError when it cannot be written.
    """
    made_by, lock = {"config": settings(config), "built_on": built_on}, None
    show = tensorboard_log(folder, config.tensorboard)

    def prepare() -> str:
        nonlocal lock
        if (folder / METRICS).exists() and not config.overwrite and _is_finished(folder, made_by):
            return FINISHED
        origin = _origin(folder, config)
        source = newest_state(origin) if origin else None
        if source:
            _refuse_another(origin, "an unfinished run", load_checkpoint(source), made_by, moved=origin != folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        _tidy(folder, source)
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        write_json(folder / CONFIG, {"config": dataclasses.asdict(config), "built_on": built_on, "versions": versions})
        return str(source or "")

    source = processes.first_decides(prepare)
    if source == FINISHED:
        return None
    return Run(folder, made_by, Path(source) if source else None, lock, show)


def newest_state(folder: Path) -> Path | None:
    """The saved state that is furthest, passing over a damaged one with a warning; None where none was saved.

    Raises: ValueError when there are some and none can be read: a run never starts over unasked.
    """
    found, paths = {}, [folder / name for name in STATES if (folder / name).exists()]
    for path in paths:
        try:
            progress = load_checkpoint(path)["state"]["progress"]
            found[progress["done"], progress["epoch"], progress["step"]] = path
        except ValueError as error:
            print(f"warning: {error}; going back to the state before it", file=sys.stderr)
    if paths and not found:
        raise ValueError(f"{folder}: no saved state of this run can be read; --resume never starts it over")
    return found[max(found)] if found else None


def _is_finished(folder: Path, made_by: dict) -> bool:
    """Whether a folder with scores can be left alone. Raises: ValueError when it is another run's."""
    _refuse_another(folder, "a finished run", read_json(folder / CONFIG), made_by)
    if not (damaged := damage(folder / CHECKPOINT)):
        print(f"{folder} holds a finished run of these settings: nothing to do (--overwrite runs it again)")
        return True
    if not any((folder / name).exists() for name in STATES):
        raise ValueError(f"{damaged}; there is no saved state to make it from: --overwrite trains it again")
    print(f"warning: {damaged}; it is made again from the run's last state", file=sys.stderr)
    return False


def _origin(folder: Path, config) -> Path | None:
    """The folder whose saved state a run goes on from, by `--resume`; None to begin at the beginning."""
    if config.resume in ("auto", "never"):
        return None if config.overwrite or config.resume == "never" else folder
    origin = Path(config.resume).expanduser()
    if not any((origin / name).exists() for name in STATES):
        raise ValueError(f"--resume {config.resume}: no saved state of a run is there ({' or '.join(STATES)}); give "
                         "the folder of a run, auto or never")
    return origin


def _refuse_another(folder: Path, what: str, found: dict, made_by: dict, moved: bool = False) -> None:
    """Raises: ValueError that says how the run that was found differs; its name may, where it moved."""
    found_config = found["config"] | ({"run_name": made_by["config"]["run_name"]} if moved else {})
    differing = differences(found_config, made_by["config"]) + differences(found["built_on"], made_by["built_on"])
    if differing:
        raise ValueError(f"{folder} holds {what} with {', '.join(differing)}; choose --run_name NAME to keep both, or "
                         "--overwrite to replace it")


def _lock(folder: Path):
    """Hold the folder for this program alone, as long as the result lives; the system lets go when it is killed."""
    lock = (folder / LOCK).open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{folder}: another program is running in this folder; wait for it, or choose --run_name "
                         "NAME") from None
    return lock


def _tidy(folder: Path, source: Path | None) -> None:
    """Remove what a run that begins would mix with its own files; of one that goes on, keep the log up to its state."""
    for left in folder.glob(f".*{TEMPORARY}"):
        left.unlink()
    lines = ""
    if source:
        progress = load_checkpoint(source)["state"]["progress"]
        log = source.with_name(LOG)
        logged = log.read_text().splitlines(keepends=True) if log.exists() else []
        lines = "".join(line for line in logged
                        if line.endswith("\n") and json.loads(line)["epoch"] < progress["epoch"] + progress["done"])
        print(f"going on with {source.parent} at epoch {progress['epoch']}, step {progress['step']}")
    here = source and source.parent == folder
    shutil.rmtree(folder / PICTURES, ignore_errors=True)
    outcome = METRICS, WINDOWS, PICTURE, REPORT
    for name in outcome if here else (*outcome, LOG, CHECKPOINT, *STATES):
        (folder / name).unlink(missing_ok=True)
        (folder / f"{name}{DIGEST}").unlink(missing_ok=True)
    if source:
        write_atomically(folder / LOG, lambda file: file.write(lines.encode()))
