"""Soak test: kill a small training at random times, give fuzzed inputs to every reader, count the failures.

    python -m tests.tools.soak --json docs/results/soak.json

A killed training is started again by the same command; its results must equal those of an undisturbed run bit by bit.
Fuzzed inputs (`tests.tools.bad_inputs`) have to end in a clean error or a correct result.
"""

import json
import os
import platform
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import main_pretrain
import main_train
from models import ensemble_sampler, load_forecaster
from tests.tools.bad_inputs import RUN, TINY, bad_array, bad_checkpoint, fault, files_below
from tests.tools.children import end_of, start_child, start_children
from utils.config import FlagParser, output_path
from utils.pipeline import open_run_data
from utils.program import run_main
from utils.training import checkpoint

STAGES = {"mean": (main_pretrain, []),
          "diffusion": (main_train, ["--nsample", "4", "--sample_steps", "3", "--test_windows", "8"])}
MOST_KILLS = 3  # of a stage, before it may run to its end
SECONDS, MEMORY = 60, 4 << 30  # that a program may take for a bad input, and bytes beyond what it has
KINDS = {"array": bad_array, "checkpoint": bad_checkpoint}


def report(tried: Counter, lost: list[dict]) -> dict:
    """Figures by kind, from the numbers tried and the list of what was lost."""
    kinds = {}
    for kind, count in sorted(tried.items()):
        bad = sum(each["faults"] for each in lost if each["kind"] == kind)
        kinds[kind] = {"tried": count, "survived": count - bad, "lost": bad}
    total = {name: sum(each[name] for each in kinds.values()) for name in ("tried", "survived", "lost")}
    return {**total, "by_kind": kinds, "what_was_lost": lost}


# Kills

def outcome(folder: Path) -> dict:
    """The results of a finished run, without the seconds."""
    content = checkpoint.load_checkpoint(folder / checkpoint.CHECKPOINT)
    lines = [json.loads(line) for line in (folder / checkpoint.LOG).read_text().splitlines()]

    def kept(values: dict) -> dict:
        return {name: value for name, value in values.items() if not name.startswith(("seconds", "mean_run"))}

    return {
        **{name: content[name] for name in ("weights", "config", "data", "epoch", "validation_loss")},
        "metrics": kept(checkpoint.read_json(folder / checkpoint.METRICS)), "log": [kept(line) for line in lines],
        "windows": pd.read_csv(table).to_dict("records") if (table := folder / checkpoint.WINDOWS).exists() else [],
    }


def whole_outcome(save_dir: Path) -> dict:
    """The results of both stages, and members of a few test windows."""
    trained = load_forecaster(save_dir / "diffusion" / RUN)
    data = open_run_data(trained.checkpoint, "", "cpu")
    sample = ensemble_sampler(trained.model, trained.checkpoint["config"], torch.device("cpu"))
    members = torch.cat([sample(batch) for batch in data.batches("test", 2, limit=4)])
    return {**{stage: outcome(save_dir / stage / RUN) for stage in STAGES}, "forecast": members}


def unequal(one, other, where: str = "") -> list[str]:
    """Where two outcomes differ in any bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [place for name in one for place in unequal(one[name], other[name], f"{where}/{name}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [place for k in range(len(one)) for place in unequal(one[k], other[k], f"{where}/{k}")]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [where]


def start_stage(stage: str, save_dir: Path, processes: int, *flags: str) -> list[int]:
    program, own = STAGES[stage]
    arguments = [*TINY, *own, "--save_dir", str(save_dir), *flags]
    return start_children(lambda: program.main(arguments), processes, save_dir / f"{stage}.out")


def finish_stage(stage: str, save_dir: Path, processes: int) -> float:
    """Run a stage to its end: seconds. Raises: ValueError with its output, when it ends in an error."""
    start = time.monotonic()
    statuses = [end_of(child, 600) for child in start_stage(stage, save_dir, processes)]
    if any(statuses):
        output = "\n".join(path.read_text()[-2000:] for path in save_dir.glob(f"{stage}.out*"))
        raise ValueError(f"{stage} ended with {statuses}: {output}")
    return time.monotonic() - start


def kill_all(random: np.random.Generator, children: list[int]) -> int:
    """Kill the processes one after the other, in any order: the exit status of the first one killed."""
    statuses = []
    for victim in random.permutation(children).tolist():
        os.kill(victim, signal.SIGKILL)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]))
        time.sleep(random.uniform(0, 0.1))
    return statuses[0]


def train_killed(random: np.random.Generator, save_dir: Path, processes: int, seconds: dict, most: int) -> int:
    """Train both stages, killed at most so many times: how many. Raises: ValueError for an error."""
    kills = 0
    for stage in STAGES:
        for _ in range(min(most - kills, int(random.integers(1, MOST_KILLS + 1)))):
            often = ["--save_minutes", "1e-9"] if random.random() < 0.5 else []  # after every step
            children = start_stage(stage, save_dir, processes, *often)
            time.sleep(random.uniform(0, seconds[stage]))
            status = kill_all(random, children)
            if status == 0:
                break
            kills += 1
            if status != -signal.SIGKILL:
                raise ValueError(f"{stage} ended with {status}: {(save_dir / f'{stage}.out').read_text()[-2000:]}")
        finish_stage(stage, save_dir, processes)
    return kills


def soak_kills(kills: int, seed: int, folder: Path) -> dict:
    """Repeat killed trainings, by one and by two processes in turn, until `kills` are used: the `report`."""
    undisturbed, seconds, tried, lost, training = {}, {}, Counter(), [], 0
    while (left := kills - sum(tried.values())) > 0:
        count = 1 + training % 2
        if count not in undisturbed:
            (save_dir := folder / f"undisturbed_{count}").mkdir(parents=True)
            seconds[count] = {stage: finish_stage(stage, save_dir, count) for stage in STAGES}
            undisturbed[count] = whole_outcome(save_dir)
        kind = f"{count} process{'es' * (count > 1)}"
        (save_dir := folder / f"training_{training}").mkdir()
        try:
            spent = train_killed(np.random.default_rng([seed, training]), save_dir, count, seconds[count], left)
            differs = unequal(whole_outcome(save_dir), undisturbed[count])
        except ValueError as error:
            spent, differs = 1, [str(error)]
        tried[kind] += spent
        if differs:
            lost.append({"kind": kind, "faults": spent, "training": training, "differs": differs[:5]})
        end = f"LOST: {differs[0]}" if differs else "ended as if undisturbed"
        print(f"training {training} by {kind}: killed {spent} times, {end}", flush=True)
        shutil.rmtree(save_dir)
        training += 1
    return {"trainings": training, **report(tried, lost)}


# Fuzzed inputs

def soak_inputs(inputs: int, seed: int, folder: Path, pattern: Path) -> dict:
    """Give fuzzed inputs, one kind after the other, to the programs that read them: the `report`."""
    tried, lost, place, output = Counter(), [], folder / "input", folder / "output.txt"
    for number in range(inputs):
        kind = list(KINDS)[number % len(KINDS)]
        place.mkdir()
        bad = KINDS[kind](np.random.default_rng([seed, number]), place, pattern)
        before = files_below(place)

        def work(bad=bad):
            os.chdir(place)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            return bad.work()

        try:
            status = end_of(start_child(work, {"COST_DATA_DIR": str(place)}, output), SECONDS)
            said = output.read_text(errors="replace")
            wrong = fault(bad, status, said, before, files_below(place))
        except TimeoutError:
            said, wrong = "", f"did not end within {SECONDS} s"
        tried[kind] += 1
        if wrong:
            lost.append({"kind": kind, "faults": 1, "number": number, "input": bad.text, "fault": wrong,
                         "said": said[-2000:]})
            print(f"LOST: {kind} {number}, {ascii(bad.text)[1:-1]}: {wrong}\n{said[-2000:]}", flush=True)
        shutil.rmtree(place)
    return report(tried, lost)


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="kills in all (default: 30)")
    parser.add_argument("--inputs", type=int, default=1000, help="fuzzed inputs (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of times and inputs (default: 0)")
    parser.add_argument("--json", type=output_path, default=None, help="write the figures there")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # of the programs too, which are forked from this one
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak") as top:
        folder = Path(top)
        kills = soak_kills(given.kills, given.seed, folder)
        inputs = soak_inputs(given.inputs, given.seed, folder, folder / "undisturbed_1")
    for part, found in (("kills", kills), ("inputs", inputs)):
        print(f"{part}: " + ", ".join(f"{found[name]} {name}" for name in ("tried", "survived", "lost")))
    if given.json:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        checkpoint.write_json(given.json, {"kills": kills, "inputs": inputs, "seed": given.seed,
                                           "seconds": round(time.monotonic() - start), "versions": versions})
    return int(kills["lost"] + inputs["lost"] > 0)


if __name__ == "__main__":
    run_main(main)
