"""Soak test: kill a small training at random times, give fuzzed inputs to every reader, count the failures.

    python -m tests.tools.soak --json docs/results/soak.json

Both stages run as separate processes, are killed with SIGKILL and started again by the same command; their results are
compared bit by bit with those of an undisturbed run. Fuzzed inputs (`tests.tools.bad_inputs`) have to end in a clean
error or a correct result. Everything happens in a temporary folder.
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
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import main_pretrain
import main_train
from models import ensemble_sampler, load_forecaster
from tests.tools.bad_inputs import RUN, TINY, bad_array, bad_checkpoint, bad_command, fault, files_below
from tests.tools.children import at_least_one, end_of, start_child, start_children
from utils.config import FlagParser, output_path
from utils.pipeline import open_run_data
from utils.program import run_main
from utils.training import checkpoint
from utils.training.checkpoint import load_checkpoint
from utils.training.runs import newest_state

STAGES = {"mean": (main_pretrain, []),
          "diffusion": (main_train, ["--nsample", "4", "--sample_steps", "3", "--test_windows", "8"])}
MOST_KILLS = 3  # of a stage, before it may run to its end
SECONDS, MEMORY = 60, 4 << 30  # that a program may take for a bad input, and bytes beyond what it has
KINDS = {"array": bad_array, "checkpoint": bad_checkpoint, "command line": bad_command}
SHARES = 0.45, 0.2, 0.35  # of the kinds among the inputs


@dataclass
class Tally:
    """What was tried by kind, how it ended, and details of each that was lost."""

    tried: Counter = field(default_factory=Counter)
    ended: Counter = field(default_factory=Counter)
    lost: list[dict] = field(default_factory=list)

    def report(self) -> dict:
        lost = Counter()
        for each in self.lost:
            lost[each["kind"]] += each.get("faults", 1)
        kinds = {kind: {"tried": count, "survived": count - lost[kind], "lost": lost[kind]}
                 for kind, count in sorted(self.tried.items())}
        total = {name: sum(each[name] for each in kinds.values()) for name in ("tried", "survived", "lost")}
        return {**total, "by_kind": kinds, **dict(sorted(self.ended.items())), "what_was_lost": self.lost}


# Kills

def outcome(folder: Path) -> dict:
    """The results of a finished run, without the seconds."""
    content = load_checkpoint(folder / checkpoint.CHECKPOINT)
    lines = [json.loads(line) for line in (folder / checkpoint.LOG).read_text().splitlines()]

    def kept(values: dict) -> dict:
        return {name: value for name, value in values.items() if not name.startswith(("seconds", "mean_run"))}

    return {
        **{name: content[name] for name in ("weights", "config", "data", "epoch", "validation_loss")},
        "metrics": kept(checkpoint.read_json(folder / checkpoint.METRICS)), "log": [kept(line) for line in lines],
        "windows": pd.read_csv(table).to_dict("records") if (table := folder / checkpoint.WINDOWS).exists() else [],
    }


def forecast(folder: Path) -> torch.Tensor:
    """Members of a few test windows by a finished run of stage 2."""
    trained = load_forecaster(folder)
    data = open_run_data(trained.checkpoint, "", "cpu")
    sample = ensemble_sampler(trained.model, trained.checkpoint["config"], torch.device("cpu"))
    return torch.cat([sample(batch) for batch in data.batches("test", 2, limit=4)])


def unequal(one, other, exact: bool, where: str = "") -> list[str]:
    """Where two outcomes differ: in any bit, or by more than the rounding of sums in another order."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [place for name in one for place in unequal(one[name], other[name], exact, f"{where}/{name}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [place for k in range(len(one)) for place in unequal(one[k], other[k], exact, f"{where}/{k}")]
    if isinstance(one, torch.Tensor) and not exact:
        same = one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-5)
    elif isinstance(one, torch.Tensor):
        same = torch.equal(one, other)
    elif isinstance(one, float) and not exact:
        same = abs(one - other) <= 1e-4 * abs(other) + 1e-6
    else:
        same = one == other
    return [] if same else [where]


def start_stage(stage: str, save_dir: Path, processes: int, often: bool) -> list[int]:
    """Start the processes of a stage; `often`: it saves after every step, not only after an epoch."""
    program, flags = STAGES[stage]
    arguments = [*TINY, *flags, "--save_dir", str(save_dir), *(["--save_minutes", "1e-9"] if often else [])]
    return start_children(lambda: program.main(arguments), processes, save_dir / f"{stage}.out")


def kill_one(random: np.random.Generator, children: list[int]) -> int:
    """Kill one of the processes, then the others, as torchrun does: the exit status of the first one."""
    victims, statuses = random.permutation(children).tolist(), []
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]))
        time.sleep(random.uniform(0, 0.1) if victim != victims[-1] else 0)
    return statuses[0]


def phase(folder: Path) -> str:
    """What a run was doing when it was killed, by the files in its folder."""
    if not (folder / checkpoint.CONFIG).exists():
        return "at start-up"
    if any(folder.glob(f".*{checkpoint.TEMPORARY}")):
        return "within a save"
    if not (newest := newest_state(folder)):
        return "before the first save"
    return "while scoring" if newest.progress["done"] else "in training or validation"


def finish_stage(stage: str, save_dir: Path, processes: int) -> float:
    """Run a stage to its end: seconds. Raises: ValueError with its output, when it ends in an error."""
    start = time.monotonic()
    statuses = [end_of(child, 600) for child in start_stage(stage, save_dir, processes, False)]
    if any(statuses):
        output = "\n".join(path.read_text()[-2000:] for path in save_dir.glob(f"{stage}.out*"))
        raise ValueError(f"{stage} ended with {statuses}: {output}")
    return time.monotonic() - start


def train_killed(random: np.random.Generator, save_dir: Path, counts: tuple[int, ...], seconds: dict, kills: int,
                 tally: Tally) -> None:
    """Train both stages by one of `counts` processes, killed at most `kills` times. Raises: ValueError for an error."""
    left = kills
    for stage in STAGES:
        for _ in range(min(left, int(random.integers(1, MOST_KILLS + 1)))):
            processes = int(random.choice(counts))
            children = start_stage(stage, save_dir, processes, random.random() < 0.5)
            time.sleep(random.uniform(0, seconds[max(counts)][stage]))
            status = kill_one(random, children)
            if status == 0:
                break
            if status != -signal.SIGKILL:
                raise ValueError(f"{stage} ended with {status}: {(save_dir / f'{stage}.out').read_text()[-2000:]}")
            left -= 1
            tally.ended[f"killed, {phase(save_dir / stage / RUN)}"] += 1
        finish_stage(stage, save_dir, int(random.choice(counts)))


def soak_kills(kills: int, seed: int, folder: Path, deadline: float) -> dict:
    """Repeat killed trainings until `kills` are used: the `Tally`.

    Every third training has two processes, every ninth one changes their number when it resumes.
    """
    undisturbed, seconds, tally, training = {}, {}, Tally(), 0
    while (left := kills - sum(tally.tried.values())) > 0 and time.monotonic() < deadline:
        counts = (1,) if training % 3 < 2 else (1, 2) if training % 9 == 8 else (2,)
        for count in {counts[0], max(counts)} - set(undisturbed):
            (save_dir := folder / f"undisturbed_{count}").mkdir(parents=True)
            seconds[count] = {stage: finish_stage(stage, save_dir, count) for stage in STAGES}
            undisturbed[count] = whole_outcome(save_dir)
        kind = {(1,): "one process", (2,): "two processes", (1, 2): "one or two processes"}[counts]
        (save_dir := folder / f"training_{training}").mkdir()
        before = sum(tally.ended.values())
        try:
            train_killed(np.random.default_rng([seed, training]), save_dir, counts, seconds, left, tally)
            differs = unequal(whole_outcome(save_dir), undisturbed[counts[0]], exact=len(counts) == 1)
        except ValueError as error:
            differs = [str(error)]
        spent = sum(tally.ended.values()) - before
        tally.tried[kind] += spent
        if differs:
            tally.lost.append({"kind": kind, "faults": spent, "training": training, "differs": differs[:5]})
        end = f"LOST: {differs[0]}" if differs else "ended as if undisturbed"
        print(f"training {training} by {kind}: killed {spent} times, {end}", flush=True)
        shutil.rmtree(save_dir)
        training += 1
    return {"trainings": training, **tally.report()}


def whole_outcome(save_dir: Path) -> dict:
    """The results of both stages, and a forecast by them."""
    return {**{stage: outcome(save_dir / stage / RUN) for stage in STAGES},
            "forecast": forecast(save_dir / "diffusion" / RUN)}


# Fuzzed inputs

def soak_inputs(inputs: int, seed: int, folder: Path, pattern: Path, deadline: float) -> dict:
    """Give fuzzed inputs to the programs that read them: the `Tally` of how they end."""
    tally = Tally()
    for number in range(inputs):
        if time.monotonic() > deadline:
            break
        random = np.random.default_rng([seed, number])
        kind = list(KINDS)[random.choice(len(KINDS), p=SHARES)]
        place = folder / "input"
        place.mkdir()
        bad = KINDS[kind](random, place, *([pattern] if kind != "array" else []))
        before, output = files_below(place), folder / "output.txt"

        def work(bad=bad, place=place):
            os.chdir(place)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            return bad.work()

        try:
            status = end_of(start_child(work, {"COST_DATA_DIR": str(place)}, output), SECONDS)
            said = output.read_text(errors="replace")
            wrong = fault(bad, status, said, before, files_below(place))
        except TimeoutError:
            status, said, wrong = None, "", f"did not end within {SECONDS} s"
        tally.tried[kind] += 1
        tally.ended["ended in a clean error"] += status == 2 and not wrong
        tally.ended["ended in a correct result"] += status == 0 and not wrong
        if wrong:
            tally.lost.append({"kind": kind, "number": number, "input": bad.text, "fault": wrong, "said": said[-2000:]})
            print(f"LOST: {kind} {number}, {ascii(bad.text)[1:-1]}: {wrong}\n{said[-2000:]}", flush=True)
        shutil.rmtree(place)
    return tally.report()


def soak(kills: int, inputs: int, seed: int, minutes: float) -> dict:
    """Both parts within so many minutes, of which the kills get half."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        killed = soak_kills(kills, seed, Path(folder), start + 30 * minutes)
        given = soak_inputs(inputs, seed, Path(folder), Path(folder, "undisturbed_1"), start + 60 * minutes)
    return {"kills": killed, "inputs": given, "seed": seed, "seconds": round(time.monotonic() - start),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}}


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--kills", type=at_least_one, default=30, help="kills in all (default: 30)")
    parser.add_argument("--inputs", type=at_least_one, default=1000, help="fuzzed inputs (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of times and inputs (default: 0)")
    parser.add_argument("--minutes", type=at_least_one, default=20, help="most minutes that it takes (default: 20)")
    parser.add_argument("--json", type=output_path, default=None, help="write the figures there")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # of the programs too, which are forked from this one
    result = soak(given.kills, given.inputs, given.seed, given.minutes)
    for part, wanted in (("kills", given.kills), ("inputs", given.inputs)):
        print(f"{part}: " + ", ".join(f"{result[part][name]} {name}" for name in ("tried", "survived", "lost")))
        if result[part]["tried"] < wanted:
            print(f"note: {wanted} were asked for; --minutes {given.minutes} were over")
    if given.json:
        checkpoint.write_json(given.json, result)
    return int(result["kills"]["lost"] + result["inputs"]["lost"] > 0)


if __name__ == "__main__":
    run_main(main)
