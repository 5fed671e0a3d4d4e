"""Run folders: written by one program at a time, resumed after any interruption, finished once."""

import dataclasses
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from data.registry import sha256_of
from utils.config import PATHS
from utils.training import checkpoint
from utils.training.checkpoint import settings
from utils.training.distributed import SINGLE_PROCESS, Processes

FINISHED, LOCK = "finished", ".lock"
WITHOUT_INFLUENCE = "sample_batch", "val_batch_size", "mean_run"  # settings that bound memory, or say where files are


class SavedState:
    """A saved state of a fit: its file and content, and how far the fit had come."""

    def __init__(self, path: Path):
        self.path, self.content = path, checkpoint.load_checkpoint(path)
        self.progress = self.content["state"]["progress"]
        self.reached = self.progress["done"], self.progress["epoch"], self.progress["step"]


class Run:
    """An open run folder: best weights, log, and states to resume from.

    state: the newest state of an unfinished run of the same settings, or None; about: content of the checkpoint beside
    weights. Of several processes the first one, which has the lock, writes.
    """

    def __init__(self, folder: Path, made_by: dict, saved: SavedState | None, lock, keep_states: bool):
        self.folder, self._made_by, self._lock, self._keep_states, self.about = folder, made_by, lock, keep_states, {}
        self.state = saved.content["state"] if saved else None
        self._saves = int(saved is not None and saved.path.name == checkpoint.STATES[0])

    def keep(self, weights: dict, epoch: int, validation_loss: float) -> None:
        """Replace the checkpoint by one with the best weights so far."""
        if self._lock:
            content = {**self.about, "weights": weights, "epoch": epoch, "validation_loss": validation_loss}
            checkpoint.save_checkpoint(self.folder / checkpoint.CHECKPOINT, content)

    def log(self, lines: list[dict]) -> None:
        """Replace the log by these lines, one of each epoch."""
        if self._lock:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            checkpoint.write_text(self.folder / checkpoint.LOG, text)

    def save(self, state: dict) -> None:
        """Save all that the rest of a fit depends on; the state before it is kept too."""
        if self._lock:
            path = self.folder / checkpoint.STATES[self._saves % 2]
            checkpoint.save_checkpoint(path, {**self._made_by, "state": state})
            self._saves += 1

    def finish(self, metrics: dict) -> None:
        """Write the scores, last: a folder that has them is finished. Delete the states unless `--keep_states`."""
        if self._lock:
            checkpoint.write_json(self.folder / checkpoint.METRICS, metrics)
            _delete(self.folder, () if self._keep_states else checkpoint.STATES)


def open_run(folder: Path, config, built_on: dict, processes: Processes = SINGLE_PROCESS) -> Run | None:
    """The run folder, ready to be written; None when it holds this very run, finished.

    built_on: what the run depends on beside its settings and files (metadata of the data, digest of the stage-1
    model). A finished run whose checkpoint is damaged is finished again.
    Raises: ValueError when the folder holds another run (with the differences), when a program uses it, or when no
    saved state can be read; OSError when it cannot be written.
    """
    files = {name: sha256_of(path) for name in ("node_table", "graph") if (path := getattr(config, name))}
    made_by = {"config": _without_paths(settings(config)), "built_on": built_on | ({"files": files} if files else {})}
    lock, saved = None, None

    def prepare() -> str:
        nonlocal lock, saved
        if _is_finished(folder, config, made_by):
            return FINISHED
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        if _is_finished(folder, config, made_by):  # by the program that held the lock until now
            return FINISHED
        saved = _state_to_resume(folder, config, made_by)
        _tidy(folder, saved)
        versions = {"python": platform.python_version(), "torch": torch.__version__, "cost": code_version()}
        checkpoint.write_json(folder / checkpoint.CONFIG, {
            "config": dataclasses.asdict(config), "built_on": made_by["built_on"], "versions": versions})
        return str(saved.path) if saved else ""

    source = processes.first_decides(prepare)
    if source == FINISHED:
        return None
    if source and not saved:
        saved = SavedState(Path(source))
    return Run(folder, made_by, saved, lock, config.keep_states)


def code_version() -> str:
    """The commit of this program, with "-dirty" where tracked files differ from it; "" where git does not know it."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or not shutil.which("git"):
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _without_paths(settings: dict) -> dict:
    """Settings that decide what a run computes; of paths, whether they are given."""
    settings = {name: value for name, value in settings.items() if name not in WITHOUT_INFLUENCE}
    return settings | {name: "given" for name in PATHS if settings.get(name)}


def newest_state(folder: Path) -> SavedState | None:
    """The saved state that is furthest, None where none was saved. Raises: ValueError when none of them can be read."""
    found, paths = [], [folder / name for name in checkpoint.STATES if (folder / name).exists()]
    for path in paths:
        try:
            with checkpoint.built_from(path):
                found.append(SavedState(path))
        except ValueError as error:
            print(f"warning: {error}; going back to the state before it", file=sys.stderr)
    if paths and not found:
        raise ValueError(f"{folder}: no saved state of this run can be read; give --resume never to start over")
    return max(found, key=lambda state: state.reached, default=None)


def _is_finished(folder: Path, config, made_by: dict) -> bool:
    """Whether the run has scores and a whole checkpoint. Raises: ValueError, also where there is no way back."""
    if config.overwrite or not (folder / checkpoint.METRICS).exists():
        return False
    _refuse_another(folder, "a finished run", checkpoint.read_json(folder / checkpoint.CONFIG), made_by)
    weights = folder / checkpoint.CHECKPOINT
    if not (damaged := checkpoint.damage(weights) if weights.exists() else f"{weights}: not there"):
        print(f"{folder} holds a finished run of these settings: nothing to do (--overwrite runs it again)")
        return True
    if not any((folder / name).exists() for name in checkpoint.STATES):
        raise ValueError(f"{damaged}; the run has no saved state (--keep_states keeps it): --overwrite trains it again")
    print(f"warning: {damaged}; restoring it from the last saved state", file=sys.stderr)
    return False


def _state_to_resume(folder: Path, config, made_by: dict) -> SavedState | None:
    """The furthest state of this run; None to start at the beginning."""
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0  # by torchrun: it always resumes
    replaced = config.overwrite and (folder / checkpoint.METRICS).exists()
    if not restarted and (replaced or config.resume == "never"):
        return None
    try:
        if saved := newest_state(folder):
            _refuse_another(folder, "an unfinished run", saved.content, made_by)
        return saved
    except ValueError:
        if not config.overwrite:
            raise
        return None


def _refuse_another(folder: Path, what: str, found: dict, made_by: dict) -> None:
    """Raises: ValueError with the differences of the run that was found."""
    with checkpoint.built_from(folder):
        differing = [*checkpoint.differences(_without_paths(found["config"]), made_by["config"]),
                     *checkpoint.differences(found["built_on"], made_by["built_on"])]
    if differing:
        raise ValueError(f"{folder} holds {what} with {', '.join(differing)}; choose --run_name NAME to keep both, or "
                         "--overwrite to replace it")


def _lock(folder: Path):
    """Lock the folder for this program, as long as the result exists; the system unlocks it when the program ends."""
    lock = (folder / LOCK).open("a")
    try:
        with checkpoint.naming(folder / LOCK):  # some network drives have no locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{folder}: another program is running in this folder; wait for it, or choose --run_name "
                         "NAME") from None
    return lock


def _tidy(folder: Path, saved: SavedState | None) -> None:
    """Delete the results of an earlier run, and its log and checkpoints unless it is resumed."""
    for left in (*folder.glob(f".*{checkpoint.TEMPORARY}"), *folder.glob("*.pt.sha256")):  # digests of before
        left.unlink()
    shutil.rmtree(folder / checkpoint.PICTURES, ignore_errors=True)
    outcome = checkpoint.METRICS, checkpoint.WINDOWS, checkpoint.PICTURE, checkpoint.REPORT
    _delete(folder, outcome if saved else (*outcome, checkpoint.LOG, checkpoint.CHECKPOINT, *checkpoint.STATES))
    if saved:
        print(f"resuming {folder} at epoch {saved.progress['epoch']}, step {saved.progress['step']}")


def _delete(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
