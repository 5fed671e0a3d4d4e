"""A GPU computes what the CPU does: training, members, resuming, low precision, torch.compile, NCCL.

Skipped where torch sees no GPU. The programs run in processes of their own: tests/conftest.py hides the GPU from all
other tests, whose forked processes could not use it.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import GPU, ROOT

from utils.training.checkpoint import load_checkpoint, read_json

pytestmark = pytest.mark.skipif(not GPU, reason="torch sees no GPU")

SMALL = ["--data_name", "Oracle", "--oracle_nodes", "24", "--oracle_steps", "600", "--mean_epochs", "4",
         "--diffusion_epochs", "4", "--mean_dropout", "0", "--diffusion_dropout", "0", "--nsample", "20",
         "--test_windows", "40"]
STAGES = {"mean": "main_pretrain", "diffusion": "main_train"}
DEVICES = "cpu", "cuda:0"
CALL = """
import importlib, json, sys
for program, flags in json.loads(sys.argv[1]):
    assert importlib.import_module(program).main(flags) == 0
"""
ONE_RANK = """
from dataclasses import replace
import torch
import main_pretrain
from utils.training.distributed import Processes

def join(device):
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=device)
    return Processes(0, 1, torch.distributed.new_group(backend="gloo"))

parallel = Processes.parallel
Processes.parallel = lambda self, module: parallel(replace(self, count=2), module)  # else the module alone
main_pretrain.join = join
"""


def command(code: str, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": GPU}
    return subprocess.Popen([sys.executable, "-u", "-c", code, *arguments], env=environment, cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def call(*calls: tuple[str, list[str]], before: str = "") -> None:
    """Call programs with their flags, one after the other in one process."""
    process = command(before + CALL, json.dumps(calls))
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed


def flags(save_dir: Path, recipe: str, *extra: str) -> list[str]:
    return [*SMALL, "--recipe", recipe, "--save_dir", str(save_dir), *extra]


def both(save_dir: Path, recipe: str, *extra: str) -> list[tuple[str, list[str]]]:
    return [(program, flags(save_dir, recipe, *extra)) for program in STAGES.values()]


def folder_of(save_dir: Path, recipe: str, stage: str = "diffusion") -> Path:
    return save_dir / stage / ("Oracle_12_12" + ("" if recipe == "cost" else f"_{recipe}"))


def score_of(save_dir: Path, recipe: str, stage: str) -> float:
    return read_json(folder_of(save_dir, recipe, stage) / "metrics.json")["MAE" if stage == "mean" else "CRPS"]


@pytest.fixture(scope="module", params=["cost", "published"])
def pair(request, tmp_path_factory):
    """A recipe, and where both stages of it were run on the CPU and on a GPU."""
    folders = {device: tmp_path_factory.mktemp(device.replace(":", "")) for device in DEVICES}
    for device, save_dir in folders.items():
        call(*both(save_dir, request.param, "--device", device))
    return request.param, folders


def test_a_gpu_learns_what_the_cpu_learns(pair):
    """The order of the windows is the same, the noise in training is that of the generator of each device."""
    recipe, folders = pair
    for stage, tolerance in (("mean", 0.02), ("diffusion", 0.03 if recipe == "cost" else 0.2)):
        cpu, gpu = (score_of(folders[device], recipe, stage) for device in DEVICES)
        assert gpu == pytest.approx(cpu, rel=tolerance), stage


def test_a_run_scores_the_same_on_both_devices_whichever_trained_it(pair, tmp_path):
    """Members are a function of seed, window and member on any device, up to the rounding of float32."""
    recipe, folders = pair
    runs = {trained: folder_of(save_dir, recipe) for trained, save_dir in folders.items()}
    call(*(("scripts.evaluate", [str(run), "--split", "test", "--device", device, "--json",
                                 str(tmp_path / f"{trained}_{device}.json")])
           for trained, run in runs.items() for device in DEVICES))
    for trained, run in runs.items():
        stored = read_json(run / "metrics.json")
        for device in DEVICES:
            found = read_json(tmp_path / f"{trained}_{device}.json")
            for name in ("CRPS", "CRPS_sum", "MAE", "RMSE", "energy_score", "variogram_score", "coverage90"):
                assert found[name] == pytest.approx(stored[name], rel=1e-3), (trained, device, name)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_was_stopped_on_a_gpu_resumes_bit_exactly(pair, tmp_path, stage):
    recipe, folders = pair
    if stage == "diffusion":
        (tmp_path / "mean").symlink_to(folders["cuda:0"] / "mean")
    work = STAGES[stage], flags(tmp_path, recipe, "--device", "cuda:0")
    process = command("from utils.program import run_main\nimport importlib, json, sys\n"
                      "program, flags = json.loads(sys.argv[1])\n"
                      "run_main(lambda: importlib.import_module(program).main(flags))", json.dumps(work))
    while not process.stdout.readline().startswith("epoch 1/"):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    call(work)
    resumed, whole = folder_of(tmp_path, recipe, stage), folder_of(folders["cuda:0"], recipe, stage)
    weights = load_checkpoint(resumed / "model.pt")["weights"]
    for name, value in load_checkpoint(whole / "model.pt")["weights"].items():
        assert torch.equal(weights[name], value), name
    one, other = ({name: value for name, value in read_json(folder / "metrics.json").items()
                   if not name.startswith("seconds") and name != "mean_run"} for folder in (resumed, whole))
    assert one == other


@pytest.mark.parametrize("fast", ["--amp --compile", "--sample_precision bfloat16"])
def test_faster_arithmetic_scores_about_the_same(pair, tmp_path, fast):
    recipe, folders = pair
    call(*both(tmp_path, recipe, "--device", "cuda:0", *fast.split()))
    for stage in STAGES:
        plain = score_of(folders["cuda:0"], recipe, stage)
        assert score_of(tmp_path, recipe, stage) == pytest.approx(plain, rel=0.03), stage


def test_gradients_that_nccl_averages_over_one_process_are_those_without_it(pair, tmp_path):
    """All that one GPU can show of NCCL: two processes cannot share a GPU."""
    recipe, folders = pair
    call(("main_pretrain", flags(tmp_path, recipe, "--device", "cuda:0")), before=ONE_RANK)
    one, other = (load_checkpoint(folder_of(save_dir, recipe, "mean") / "model.pt")["weights"]
                  for save_dir in (tmp_path, folders["cuda:0"]))
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=1e-3, atol=1e-4)
