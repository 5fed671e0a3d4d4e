"""Several processes give what one gives, stop together, and start again together."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ON_ANY_STAGE_1, ROOT, random_values
from test_runs import STAGES, TINY, assert_same, call_at, folder_of, outcome, send

from models.mean import CorrectedMean
from scripts import evaluate, forecast
from tests.tools.children import in_child, in_children
from utils.config import RECIPES, FlagParser, output_path
from utils.training import loop
from utils.training.distributed import STARTED_BY_TORCHRUN
from utils.training.runs import newest_state

UNEVEN = ["--batch_size", "15", "--test_windows", "23"]  # 7 and 8 windows of a batch; the last one has 1: none and 1
STEPS = 8  # of an epoch
KILLS_ITSELF = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
import main_pretrain
from test_distributed import STEPS
from test_runs import call_at, kill
from utils.training import loop
from utils.program import run_main
if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
    call_at(loop, "seed_step", STEPS + 4, kill)
run_main(main_pretrain.main)
"""


def work(stage, save_dir, *extra, before=lambda: None):
    """What a process of a stage does."""
    def call():
        before()
        program, flags = STAGES[stage]
        return program.main([*TINY, *flags, *UNEVEN, "--save_dir", str(save_dir), *extra])

    return call


def rank() -> int:
    return int(os.environ.get("RANK", 0))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Both stages by one process."""
    save_dir = tmp_path_factory.mktemp("alone")
    for stage in STAGES:
        assert in_child(work(stage, save_dir)) == 0
    return save_dir


def assert_close(one, other):
    """The same run up to the rounding of float32 sums."""
    for each, its in zip(one["log"], other["log"], strict=True):
        assert {**each, "training_loss": each["training_loss"] or 0} == pytest.approx(
            {**its, "training_loss": its["training_loss"] or 0}, rel=1e-5)
    for name, value in one["metrics"].items():
        if isinstance(value, float):
            assert value == pytest.approx(other["metrics"][name], rel=1e-5, abs=1e-7), name
    for name, value in one["weights"].items():
        assert torch.allclose(value.double(), other["weights"][name].double(), rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_learn_and_forecast_what_one_does(alone, tmp_path, stage):
    """faults 50, 51, 55"""
    (tmp_path / "mean").symlink_to(alone / "mean") if stage == "diffusion" else None
    assert in_children(work(stage, tmp_path), 2) == [0, 0]
    assert_close(outcome(folder_of(tmp_path, stage)), outcome(folder_of(alone, stage)))
    if stage == "diffusion":
        ours, theirs = outcome(folder_of(tmp_path, stage))["windows"], outcome(folder_of(alone, stage))["windows"]
        assert [row["start"] for row in ours] == [row["start"] for row in theirs] and len(ours) == 23
        for one, other in zip(ours, theirs, strict=True):
            assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


def test_two_processes_learn_what_one_does_by_every_recipe_where_values_are_missing(tmp_path):
    """faults 9, 50"""
    values = random_values(200, 4)
    values[np.random.default_rng(1).random(values.shape) < 0.4] = np.nan
    np.save(tmp_path / "gaps.npy", values)
    flags = ["--data_path", str(tmp_path / "gaps.npy"), "--freq", "1h", "--start", "2020-01-06", "--missing", "mask",
             "--data_name", "Gaps"]
    for count in (1, 2):
        save_dir = tmp_path / str(count)
        assert in_children(work("mean", save_dir, *flags), count) == [0] * count
        for recipe in RECIPES:
            extra = "--recipe", recipe, "--mean_run", f"{save_dir}/mean/Gaps_12_12", *ON_ANY_STAGE_1
            assert in_children(work("diffusion", save_dir, *flags, *extra), count) == [0] * count
    for folder in ("mean/Gaps_12_12", *(f"diffusion/Gaps_12_12{end}" for end in ("", "_published", "_copula"))):
        one, two = (outcome(tmp_path / str(count) / folder) for count in (1, 2))
        del one["metrics"]["best_epoch"], two["metrics"]["best_epoch"]  # two epochs may score alike up to rounding
        assert_close({**one, "weights": {}, "metrics": {}}, {**two, "weights": {}, "metrics": {}})


def test_an_infinite_loss_with_finite_gradients_in_one_process_stops_all(tmp_path, capfd):
    """faults 54"""
    def one_is_wrong():
        right = CorrectedMean.loss
        if rank() == 1:
            CorrectedMean.loss = lambda self, *given: right(self, *given) + float("inf")

    assert in_children(work("mean", tmp_path, before=one_is_wrong), 2) == [2, 2]
    assert "error: epoch 1, step 0: the loss is inf; its batch holds the windows" in capfd.readouterr().err


def test_processes_that_could_not_all_get_a_window_are_refused_before_training(alone, tmp_path, capfd):
    (tmp_path / "mean").symlink_to(alone / "mean")
    assert in_children(work("diffusion", tmp_path, "--test_windows", "1"), 2) == [2, 2]
    assert "2 processes cannot share 1 windows: start fewer processes" in capfd.readouterr().err
    assert not (tmp_path / "diffusion").exists()


def test_two_processes_score_a_run_again_as_one_does(alone, tmp_path):
    run = folder_of(alone, "diffusion")
    for count in (1, 2):
        in_children(lambda count=count: evaluate.main([str(run), "--device", "cpu", "--json",
                                                       str(tmp_path / f"{count}.json")]), count)
    one, two = (json.loads((tmp_path / f"{count}.json").read_text()) for count in (1, 2))
    assert one["windows"] == two["windows"] and one["CRPS"] == pytest.approx(two["CRPS"], rel=1e-7)  # sums in float32


def test_two_processes_write_the_forecasts_that_one_writes(alone, tmp_path):
    """faults 50"""
    files = []
    for count, rolling in ((1, 9), (2, 9), (1, 0), (2, 0)):  # nine windows, and the one unseen future
        files.append(tmp_path / f"{count}_{rolling}.npz")
        assert in_children(lambda rolling=rolling: forecast.main([
            str(folder_of(alone, "diffusion")), "--rolling", str(rolling), "--device", "cpu", "--sample_batch", "5",
            "--output", str(files[-1])]), count) == [0] * count
    for one, two in (files[:2], files[2:]):
        with np.load(one) as one, np.load(two) as two:
            assert sorted(one) == sorted(two) and len(one["issued"]) == len(two["issued"])
            for name in ("issued", "times"):
                assert np.array_equal(one[name], two[name])
            np.testing.assert_allclose(one["members"], two["members"], rtol=1e-5)


def test_a_file_that_the_first_process_has_written_does_not_stop_the_second(tmp_path, monkeypatch):
    (tmp_path / "there.npz").touch()
    parser = FlagParser("")
    parser.add_argument("--output", type=output_path)
    for name in STARTED_BY_TORCHRUN:
        monkeypatch.setenv(name, "1")
    assert parser.parse_args(["--output", str(tmp_path / "there.npz")])
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="it exists"):
        parser.parse_args(["--output", str(tmp_path / "there.npz")])


@pytest.mark.parametrize("first, then", [(1, 2), (2, 1)])
def test_a_run_resumes_with_another_number_of_processes(alone, tmp_path, first, then):
    """faults 53"""
    stopped = work("mean", tmp_path, before=lambda: call_at(loop, "seed_step", STEPS + 6, send(signal.SIGTERM)))
    assert in_children(stopped, first) == [143] * first
    assert in_children(work("mean", tmp_path), then) == [0] * then
    assert_close(outcome(folder_of(tmp_path, "mean")), outcome(folder_of(alone, "mean")))


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    """faults 54"""
    def one_is_told():
        if rank() == 1:
            call_at(loop, "seed_step", STEPS + 4, send(signal.SIGTERM))

    assert in_children(work("mean", tmp_path, before=one_is_told), 2) == [143, 143]
    progress = newest_state(folder_of(tmp_path, "mean")).progress
    assert (progress["epoch"], progress["step"]) == (2, 4)


def test_a_loss_that_is_not_finite_in_one_process_stops_all(tmp_path, capfd):
    """faults 54"""
    def one_is_wrong():
        right = CorrectedMean.loss
        if rank() == 1:
            CorrectedMean.loss = lambda self, *given: right(self, *given) * float("nan")

    assert in_children(work("mean", tmp_path, before=one_is_wrong), 2) == [2, 2]
    errors = capfd.readouterr().err
    assert "error: epoch 1, step 0: the loss is nan; its batch holds the windows" in errors
    assert "process 1: error: epoch 1, step 0" in errors


def test_a_users_mistake_reaches_all_processes_and_none_waits(alone, tmp_path, capfd):
    """faults 55"""
    assert in_children(work("mean", alone, "--lr", "0.5"), 2) == [2, 2]
    assert capfd.readouterr().err.count("holds a finished run with mean_lr 0.003 (wanted 0.5)") == 2
    assert in_children(work("mean", alone), 2) == [0, 0]


def torchrun(script, *arguments, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *options.pop(
        "flags", []), str(script), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)


def test_torchrun_starts_a_killed_process_again_and_the_run_ends_as_if_undisturbed(tmp_path):
    """faults 52, 55"""
    assert in_children(work("mean", tmp_path / "undisturbed"), 2) == [0, 0]
    script = tmp_path / "kills_itself.py"
    script.write_text(KILLS_ITSELF.format(root=str(ROOT), tests=str(ROOT / "tests")))
    done = torchrun(script, *TINY, *UNEVEN, "--save_dir", tmp_path, "--save_minutes", "1e-9",
                    flags=["--max-restarts", "1"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resuming ") == 1 and done.stdout.count("epoch 3/3") == 1
    assert_same(outcome(folder_of(tmp_path, "mean")), outcome(folder_of(tmp_path / "undisturbed", "mean")))
