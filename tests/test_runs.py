"""Runs resume bit-exactly after any interruption, and are never mixed with others."""

import dataclasses
import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from test_checkpoint import CONTENT, files

import main_pretrain
import main_train
from models import load_forecaster
from models.denoiser import MLPDenoiser
from tests.tools import soak
from tests.tools.children import in_child
from utils import pipeline
from utils.config import PretrainConfig, TrainConfig
from utils.training import checkpoint, loop, runs
from utils.training.checkpoint import STATES, damage, load_checkpoint, run_folder, save_checkpoint
from utils.training.runs import LOCK, newest_state, open_run

TINY = ["--data_name", "Oracle", "--oracle_nodes", "4", "--oracle_steps", "200", "--device", "cpu", "--epochs", "3",
        "--batch_size", "16", "--channels", "4", "--layers", "1", "--ema", "0.9", "--networks", "1",
        "--keep_states"]
STAGES = {"mean": (main_pretrain, []), "diffusion": (main_train, ["--nsample", "4", "--sample_steps", "3"])}
STEPS = 7  # of an epoch: 106 training windows


def run(stage: str, save_dir: Path, *extra: str, before=lambda: None) -> int:
    """Exit status of a stage in a process of its own; `before` is called in it first."""
    program, flags = STAGES[stage]

    def work():
        before()
        return program.main([*TINY, *flags, "--save_dir", str(save_dir), *extra])

    return in_child(work)


def folder_of(save_dir: Path, stage: str) -> Path:
    return save_dir / stage / "Oracle_12_12"


def outcome(folder: Path) -> dict:
    """All that a run leaves and its last state, without the seconds."""
    state = newest_state(folder).content["state"]
    return {**soak.outcome(folder), "state": {**state, "progress": {**state["progress"], "seconds": 0, "lines": []}}}


def assert_same(one, other) -> None:
    """Bitwise, all the way down."""
    assert soak.unequal(one, other) == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Both stages, run in one go."""
    save_dir = tmp_path_factory.mktemp("undisturbed")
    for stage in STAGES:
        assert run(stage, save_dir) == 0
    return save_dir


def call_at(owner, name: str, number: int, action):
    """Let call `number` of a function do `action` first."""
    calls, function = itertools.count(1), getattr(owner, name)

    def counted(*arguments, **options):
        if next(calls) == number:
            action()
        return function(*arguments, **options)

    setattr(owner, name, counted)


def send(number: int):
    return lambda: os.kill(os.getpid(), number)


kill = send(signal.SIGKILL)


# Killed, then run again

POINTS = {
    "in the first epoch": lambda: call_at(loop, "seed_step", 4, kill),
    "in the last epoch": lambda: call_at(loop, "seed_step", 2 * STEPS + 3, kill),
    "after a save in mid-epoch": lambda: call_at(loop, "seed_step", STEPS + 5, kill),
    "in validation": lambda: call_at(torch.Tensor, "double", 9, kill),
    "at the rename of a save": lambda: call_at(Path, "replace", 7, kill),
    "before the rename of a save": lambda: call_at(os, "fsync", 5, kill),
    "before the scores are written": lambda: call_at(checkpoint, "write_json", 2, kill),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_was_killed_ends_as_one_that_was_not(undisturbed, tmp_path, stage, point):
    """faults 38, 39"""
    (tmp_path / "mean").symlink_to(undisturbed / "mean") if stage == "diffusion" else None
    often = ["--save_minutes", "1e-9"] if "mid-epoch" in point else []
    assert run(stage, tmp_path, *often, before=POINTS[point]) == -signal.SIGKILL
    assert not (folder_of(tmp_path, stage) / checkpoint.METRICS).exists()
    assert run(stage, tmp_path) == 0
    assert_same(outcome(folder_of(tmp_path, stage)), outcome(folder_of(undisturbed, stage)))
    assert not list(folder_of(tmp_path, stage).glob(f"*{checkpoint.TEMPORARY}"))


# Told to stop

STOPS = {
    "in training": lambda number: call_at(loop, "seed_step", STEPS + 4, send(number)),
    "in validation": lambda number: call_at(pipeline, "mean_over_windows", 2, send(number)),
    "in the last validation": lambda number: call_at(pipeline, "mean_over_windows", 4, send(number)),
    "while scores are computed": lambda number: call_at(pipeline, "evaluate_ensemble", 1, send(number)),
    "within one chunk of sampling": lambda number: call_at(MLPDenoiser, "forward", 31, send(number)),
}


@pytest.mark.parametrize("point, number", [
    *((point, signal.SIGTERM) for point in STOPS), ("in training", signal.SIGINT),
    ("while scores are computed", signal.SIGHUP)])
@pytest.mark.usefixtures("hang_ups")
def test_a_stopped_run_says_so_and_resumes_bit_exactly(undisturbed, tmp_path, point, number):
    """faults 40"""
    (tmp_path / "mean").symlink_to(undisturbed / "mean")
    assert run("diffusion", tmp_path, before=lambda: STOPS[point](number)) == 128 + number
    folder = folder_of(tmp_path, "diffusion")
    assert not (folder / checkpoint.METRICS).exists() and not list(folder.glob(f"*{checkpoint.TEMPORARY}"))
    expected = {"in training": (2, 4), "in validation": (2, 0)}.get(point, (3, 0))
    progress = newest_state(folder).progress
    assert (progress["epoch"], progress["step"]) == expected
    assert run("diffusion", tmp_path) == 0
    assert_same(outcome(folder), outcome(folder_of(undisturbed, "diffusion")))


def test_a_second_signal_stops_at_once_and_leaves_whole_files(undisturbed, tmp_path):
    """faults 40"""
    def twice():
        call_at(loop, "seed_step", STEPS + 4, lambda: [send(signal.SIGINT)(), send(signal.SIGINT)()])

    assert run("mean", tmp_path, before=twice) == 130
    folder = folder_of(tmp_path, "mean")
    progress = newest_state(folder).progress
    assert (progress["epoch"], progress["step"]) == (2, 0)  # the end of the epoch before: nothing was saved since
    assert damage(folder / checkpoint.CHECKPOINT) is None and not list(folder.glob(f"*{checkpoint.TEMPORARY}"))
    assert run("mean", tmp_path) == 0
    assert_same(outcome(folder), outcome(folder_of(undisturbed, "mean")))


@pytest.mark.usefixtures("hang_ups")
def test_the_second_hang_up_of_a_closed_terminal_does_not_stop_at_once(tmp_path):
    """faults 40: the shell and the system each send one."""
    def twice():
        call_at(loop, "seed_step", STEPS + 4, lambda: [send(signal.SIGHUP)(), send(signal.SIGHUP)()])

    assert run("mean", tmp_path, before=twice) == 129
    progress = newest_state(folder_of(tmp_path, "mean")).progress
    assert (progress["epoch"], progress["step"]) == (2, 4)


def test_a_run_that_was_started_to_ignore_hang_ups_continues(undisturbed, tmp_path):
    """faults 40, as by nohup"""
    def work():
        call_at(loop, "seed_step", STEPS + 4, send(signal.SIGHUP))
        return main_pretrain.main([*TINY, "--save_dir", str(tmp_path)])

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert in_child(work) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert_same(outcome(folder_of(tmp_path, "mean")), outcome(folder_of(undisturbed, "mean")))


# What is printed cannot be written

def printing_to(target: int) -> None:
    for stream in (sys.stdout.fileno(), sys.stderr.fileno(), 2):
        os.dup2(target, stream)


def test_ctrl_c_that_ends_the_reader_of_what_is_printed_too_saves_the_state(undisturbed, tmp_path):
    """faults 40: python main_pretrain.py ... 2>&1 | tee log"""
    def stop():
        reader, writer = os.pipe()
        printing_to(writer)
        os.close(writer)
        call_at(loop, "seed_step", STEPS + 4, lambda: [os.close(reader), send(signal.SIGINT)()])

    assert run("mean", tmp_path, before=stop) == 130
    progress = newest_state(folder_of(tmp_path, "mean")).progress
    assert (progress["epoch"], progress["step"]) == (2, 4)
    assert run("mean", tmp_path) == 0
    assert_same(outcome(folder_of(tmp_path, "mean")), outcome(folder_of(undisturbed, "mean")))


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_continues_when_the_reader_of_its_output_ends(undisturbed, tmp_path, stage):
    """python main_train.py ... 2>&1 | head -1"""
    (tmp_path / "mean").symlink_to(undisturbed / "mean") if stage == "diffusion" else None

    def nobody_reads():
        reader, writer = os.pipe()
        printing_to(writer)
        os.close(writer)
        os.close(reader)

    assert run(stage, tmp_path, before=nobody_reads) == 0
    assert_same(outcome(folder_of(tmp_path, stage)), outcome(folder_of(undisturbed, stage)))


def test_a_run_whose_printed_lines_fill_the_disk_ends_and_then_says_so(undisturbed, tmp_path, capfd):
    """faults 46"""
    def full():
        os.dup2(os.open("/dev/full", os.O_WRONLY), sys.stdout.fileno())

    assert run("mean", tmp_path, before=full) == 2
    assert capfd.readouterr().err.endswith("error: [Errno 28] No space left on device: 'standard output'\n")
    assert_same(outcome(folder_of(tmp_path, "mean")), outcome(folder_of(undisturbed, "mean")))


# Damaged, full, not writable, not finite

def half_way(tmp_path, epochs=1) -> Path:
    """The folder of a stage-1 run that was killed in the epoch after so many."""
    assert run("mean", tmp_path, before=lambda: call_at(loop, "seed_step", epochs * STEPS + 3, kill)) == -9
    return folder_of(tmp_path, "mean")


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":  # one bit of the largest part: between the parts there are bytes without meaning
        with zipfile.ZipFile(path) as parts:
            largest = max(parts.infolist(), key=lambda part: part.file_size)
            content[content.index(parts.read(largest)) + largest.file_size // 2] ^= 1
    path.write_bytes({"empty": b"", "truncated": content[:-100], "flipped": content}[how])


@pytest.mark.parametrize("how", ["empty", "truncated", "flipped"])
def test_a_damaged_state_is_named_and_the_one_before_it_is_taken(undisturbed, tmp_path, how, capfd):
    """faults 41"""
    folder = half_way(tmp_path, epochs=2)
    newest = newest_state(folder).path
    spoil(newest, how)
    assert newest_state(folder).path != newest
    capfd.readouterr()
    assert run("mean", tmp_path) == 0
    assert f"warning: {newest}: damaged, or not a readable checkpoint; run" in capfd.readouterr().err
    assert_same(outcome(folder), outcome(folder_of(undisturbed, "mean")))


def test_a_run_whose_states_are_all_damaged_is_refused_and_not_started_over(tmp_path, capfd):
    """faults 41"""
    folder = half_way(tmp_path, epochs=2)
    for name in STATES:
        spoil(folder / name, "flipped")
    before = files(folder)
    assert run("mean", tmp_path) == 2
    assert "no saved state of this run can be read; give --resume never to start over" in capfd.readouterr().err
    assert files(folder) == before
    assert run("mean", tmp_path, "--resume", "never") == 0


@pytest.mark.parametrize("change", ["no optimizer", "other shapes", "no progress"])
def test_a_state_that_does_not_fit_is_refused_and_stays(undisturbed, tmp_path, change, capfd):
    folder = half_way(tmp_path)
    state = load_checkpoint(folder / STATES[0])
    if change == "other shapes":
        name = next(name for name in state["state"]["model"] if name.endswith("embed.weight"))
        state["state"]["model"][name] = torch.zeros(3)
    else:
        del state["state"][change.split()[1]]
    save_checkpoint(folder / STATES[0], state)
    before = files(folder)[STATES[0]]
    assert run("mean", tmp_path) == 2
    error = capfd.readouterr().err
    assert "does not fit this program" in error and "--resume" in error and "Traceback" not in error
    assert files(folder)[STATES[0]] == before


@pytest.mark.parametrize("part, name, value", [
    ("config", "sampler", "abc"), ("config", "diffusion_channels", -1), ("data", "num_nodes", 9),
    ("mean_config", "mean_layers", None), ("weights", "alpha_bar", torch.ones(2)),
    ("field", "coordinates", torch.zeros(0)),
])
def test_a_checkpoint_whose_parts_do_not_fit_is_refused_with_its_path(undisturbed, tmp_path, part, name, value):
    content = load_checkpoint(folder_of(undisturbed, "diffusion") / checkpoint.CHECKPOINT)
    content[part][name] = value
    save_checkpoint(tmp_path / checkpoint.CHECKPOINT, content)
    with pytest.raises(ValueError, match=f"^{tmp_path / checkpoint.CHECKPOINT}: "):
        load_forecaster(tmp_path)


@pytest.mark.parametrize("stage", STAGES)
def test_the_damaged_checkpoint_of_a_finished_run_is_made_again(undisturbed, tmp_path, stage, capfd):
    """faults 41"""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    folder = folder_of(tmp_path, stage)
    spoil(folder / checkpoint.CHECKPOINT, "flipped")
    assert run(stage, tmp_path, before=lambda: call_at(loop, "seed_step", 1, kill)) == 0  # no step is taken
    assert "restoring it from the last saved state" in capfd.readouterr().err
    assert_same(outcome(folder), outcome(folder_of(undisturbed, stage)))


def test_a_finished_run_deletes_its_states_and_says_what_needs_them(tmp_path, capfd):
    """faults 41"""
    assert run("mean", tmp_path, "--no-keep_states") == 0
    folder = folder_of(tmp_path, "mean")
    assert set(files(folder)) == {checkpoint.CONFIG, LOCK, checkpoint.LOG, checkpoint.METRICS, checkpoint.CHECKPOINT}
    before = files(folder)
    assert run("mean", tmp_path) == 0 and files(folder) == before
    spoil(folder / checkpoint.CHECKPOINT, "flipped")
    assert run("mean", tmp_path) == 2
    assert "the run has no saved state (--keep_states keeps it): --overwrite trains it again" in capfd.readouterr().err
    assert run("mean", tmp_path, "--overwrite") == 0


def test_a_full_disk_during_training_gives_a_warning_and_training_continues(undisturbed, tmp_path, capfd):
    """faults 46"""
    def full():
        fsync, calls = os.fsync, itertools.count(1)

        def no_space(number):
            if 2 <= next(calls) <= 5:  # after config.json: the first checkpoint, log, state, and the next write
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(number)

        os.fsync = no_space

    assert run("mean", tmp_path, before=full) == 0
    said, folder = capfd.readouterr().err, folder_of(tmp_path, "mean")
    for name in (STATES[0], checkpoint.CHECKPOINT, checkpoint.LOG):
        assert f"could not save: [Errno 28] No space left on device: '{folder / name}'; training continues" in said
    assert_same(outcome(folder), outcome(folder_of(undisturbed, "mean")))


def test_a_full_disk_at_the_end_is_an_error_and_the_run_resumes_later(undisturbed, tmp_path, capfd):
    """faults 46"""
    def full():
        call_at(loop, "seed_step", 2 * STEPS + 1, lambda: setattr(os, "fsync", no_space))

    def no_space(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert run("mean", tmp_path, before=full) == 2
    folder = folder_of(tmp_path, "mean")
    assert f"error: [Errno 28] No space left on device: '{folder}/" in capfd.readouterr().err
    assert damage(folder / checkpoint.CHECKPOINT) is None and newest_state(folder)
    assert run("mean", tmp_path) == 0
    assert_same(outcome(folder), outcome(folder_of(undisturbed, "mean")))


def test_weights_that_are_not_finite_are_never_saved(undisturbed, tmp_path, capfd):
    """faults 30"""
    def poison():
        call_at(torch.optim.Adam, "step", STEPS + 3, lambda: call_at(
            torch.nn.utils, "get_total_norm", 1, lambda: setattr(
                torch.nn.utils, "get_total_norm", lambda gradients: torch.tensor(torch.nan))))

    assert run("mean", tmp_path, before=poison) == 2
    error = capfd.readouterr().err
    assert "error: epoch 2, step" in error and "a gradient is not finite; its batch holds the windows that" in error
    assert run("mean", tmp_path) == 0
    assert_same(outcome(folder_of(tmp_path, "mean")), outcome(folder_of(undisturbed, "mean")))


# One program at a time, one configuration to a folder

def test_two_programs_never_run_in_one_folder(tmp_path):
    """faults 28"""
    first = open_run(tmp_path, TrainConfig(), {})
    before = files(tmp_path)
    with pytest.raises(ValueError, match="another program is running in this folder"):
        open_run(tmp_path, TrainConfig(), {})
    assert files(tmp_path) == before
    del first
    assert open_run(tmp_path, TrainConfig(), {})


def test_an_unfinished_run_of_other_settings_is_refused_with_what_differs(tmp_path, capfd):
    folder = half_way(tmp_path)
    before = files(folder)
    assert run("mean", tmp_path, "--lr", "0.5") == 2
    assert "holds an unfinished run with mean_lr 0.003 (wanted 0.5); choose --run_name" in capfd.readouterr().err
    assert files(folder) == before
    assert run("mean", tmp_path, "--lr", "0.5", "--resume", "never") == 0
    assert checkpoint.read_json(folder / checkpoint.CONFIG)["config"]["mean_lr"] == 0.5


CONFIGS = {"mean": PretrainConfig(), "diffusion": TrainConfig()}


def finish(folder, config):
    """What a finished run leaves behind."""
    assert open_run(folder, config, {})
    save_checkpoint(folder / checkpoint.CHECKPOINT, CONTENT)
    checkpoint.write_text(folder / checkpoint.LOG, '{"epoch": 1}\n')
    checkpoint.write_json(folder / checkpoint.METRICS, {"CRPS": 1.0})
    return files(folder)


@pytest.mark.parametrize("stage", CONFIGS)
def test_the_folder_names_stage_dataset_lengths_and_run(stage, tmp_path):
    config = dataclasses.replace(CONFIGS[stage], data_name="SST", history_len=24, predict_len=6)
    assert run_folder(str(tmp_path), stage, config) == tmp_path / stage / "SST_24_6"
    assert run_folder("save", stage, dataclasses.replace(config, run_name="ema")).name == "SST_24_6_ema"
    published = dataclasses.replace(config, recipe="published")
    assert run_folder("save", stage, published).name == "SST_24_6_published"
    assert run_folder("save", stage, dataclasses.replace(published, run_name="ema")).name == "SST_24_6_published_ema"


@pytest.mark.parametrize("stage", CONFIGS)
def test_a_new_run_writes_down_its_settings_and_versions(stage, tmp_path):
    folder = tmp_path / "my sävé" / "run"
    assert open_run(folder, CONFIGS[stage], {})
    written = json.loads((folder / checkpoint.CONFIG).read_text())
    assert written["config"] == dataclasses.asdict(CONFIGS[stage])
    assert written["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"|[0-9a-f]{7,40}(-dirty)?", written["versions"]["cost"])
    assert set(files(folder)) == {checkpoint.CONFIG, LOCK}


def test_the_version_of_a_run_is_the_commit_and_whether_files_differ_from_it(tmp_path, monkeypatch):
    def git(*words):
        return subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words],
                              check=True, capture_output=True, text=True).stdout.strip()

    module = tmp_path / "utils/training/runs.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(runs, "__file__", str(module))
    assert runs.code_version() == ""
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "one")):
        git(*words)
    assert runs.code_version() == git("rev-parse", "--short", "HEAD")
    module.write_text("# changed\n")
    assert runs.code_version() == git("rev-parse", "--short", "HEAD") + "-dirty"


@pytest.mark.parametrize("stage", CONFIGS)
def test_a_finished_run_of_the_same_settings_is_left_alone_and_says_so(stage, tmp_path, capsys):
    before = finish(tmp_path, CONFIGS[stage])
    elsewhere = dataclasses.replace(CONFIGS[stage], device="cpu", data_dir="/other", save_dir="x")
    for config in (CONFIGS[stage], elsewhere):
        assert open_run(tmp_path, config, {}) is None
        assert "nothing to do" in capsys.readouterr().out and files(tmp_path) == before


def test_a_finished_run_of_other_settings_is_refused_with_each_difference(tmp_path):
    before = finish(tmp_path, TrainConfig())
    with pytest.raises(ValueError) as caught:
        open_run(tmp_path, TrainConfig(diffusion_lr=0.5, sampler="ancestral"), {})
    message = str(caught.value)
    assert f"diffusion_lr {TrainConfig.diffusion_lr} (wanted 0.5)" in message
    assert f"sampler {TrainConfig.sampler} (wanted ancestral)" in message
    assert message.count("(wanted ") == 2 and "--run_name" in message and "--overwrite" in message
    assert files(tmp_path) == before


def test_a_setting_that_the_finished_run_did_not_know_counts_as_a_difference(tmp_path):
    finish(tmp_path, TrainConfig())
    written = json.loads((tmp_path / checkpoint.CONFIG).read_text())
    del written["config"]["diffusion_ema"]
    checkpoint.write_json(tmp_path / checkpoint.CONFIG, written)
    with pytest.raises(ValueError, match=rf"diffusion_ema None \(wanted {TrainConfig.diffusion_ema}\)"):
        open_run(tmp_path, TrainConfig(), {})


def test_overwrite_replaces_a_finished_run(tmp_path):
    finish(tmp_path, TrainConfig())
    (tmp_path / f"{checkpoint.CHECKPOINT}.sha256").touch()  # of an earlier version
    config = TrainConfig(diffusion_lr=0.5, overwrite=True)
    assert open_run(tmp_path, config, {})
    assert set(files(tmp_path)) == {checkpoint.CONFIG, LOCK}
    assert json.loads((tmp_path / checkpoint.CONFIG).read_text())["config"]["diffusion_lr"] == 0.5


def test_a_folder_that_cannot_be_made_is_an_error_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        open_run(tmp_path / "file" / "run", TrainConfig(), {})


def test_a_finished_run_on_another_mean_model_or_other_data_is_refused(tmp_path):
    built_on = {"data": {"num_nodes": 3}, "mean_model": "abc"}
    open_run(tmp_path, TrainConfig(), built_on).keep({}, 1, 0.5)
    checkpoint.write_json(tmp_path / checkpoint.METRICS, {})
    assert open_run(tmp_path, TrainConfig(), built_on) is None
    for other in ({**built_on, "mean_model": "xyz"}, {**built_on, "data": {"num_nodes": 4}}):
        with pytest.raises(ValueError, match="holds a finished run with"):
            open_run(tmp_path, TrainConfig(), other)


# Unusual orders of commands

def test_a_run_that_overwrites_another_resumes_too(undisturbed, tmp_path, capfd):
    shutil.copytree(undisturbed / "mean", tmp_path / "mean")
    assert run("mean", tmp_path, "--overwrite", before=lambda: call_at(loop, "seed_step", STEPS + 3, kill)) == -9
    began = newest_state(folder_of(tmp_path, "mean")).reached
    assert began == (False, 2, 0)
    counted = tmp_path / "steps"
    assert run("mean", tmp_path, "--overwrite", before=lambda: call_at(
        loop, "seed_step", 2 * STEPS + 1, counted.touch)) == 0
    assert not counted.exists()  # two epochs were left
    assert_same(outcome(folder_of(tmp_path, "mean")), outcome(folder_of(undisturbed, "mean")))


def test_stage_2_waits_for_the_end_of_stage_1(tmp_path, capfd):
    """faults 26"""
    half_way(tmp_path)
    assert run("diffusion", tmp_path) == 2
    assert "stage 1 has not finished; the command that began it resumes it" in capfd.readouterr().err
    assert not (tmp_path / "diffusion").exists()


def test_chunks_may_change_between_two_parts_of_a_run(undisturbed, tmp_path):
    (tmp_path / "mean").symlink_to(undisturbed / "mean")
    assert run("diffusion", tmp_path, before=lambda: call_at(pipeline, "evaluate_ensemble", 1, kill)) == -9
    assert run("diffusion", tmp_path, "--sample_batch", "3") == 0
    mine, theirs = outcome(folder_of(tmp_path, "diffusion")), outcome(folder_of(undisturbed, "diffusion"))
    assert mine["metrics"]["CRPS"] == pytest.approx(theirs["metrics"]["CRPS"], rel=1e-6)


def test_a_log_that_could_not_be_written_is_whole_at_the_end(undisturbed, tmp_path, capfd):
    """faults 46, 49"""
    def no_log():
        write, calls = checkpoint.write_text, itertools.count(1)

        def failing(path, text):
            if path.name == checkpoint.LOG and next(calls) in (1, 3):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(path, text)

        checkpoint.write_text = failing

    assert run("mean", tmp_path, before=no_log) == 0
    assert capfd.readouterr().err.count("warning: could not save") == 2
    assert_same(outcome(folder_of(tmp_path, "mean"))["log"], outcome(folder_of(undisturbed, "mean"))["log"])


def test_a_damaged_log_stops_no_resume_and_is_whole_at_the_end(tmp_path):
    folder = half_way(tmp_path)
    (folder / checkpoint.LOG).write_text("garbage")
    assert run("mean", tmp_path) == 0
    assert [line["epoch"] for line in outcome(folder)["log"]] == [1, 2, 3]
