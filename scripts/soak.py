"""Kill a small training again and again, throw bad inputs at all that reads, and count what is lost.

    python -m scripts.soak --json docs/results/soak.json

Both stages run as processes of their own that are killed with SIGKILL at random times and started again by the same
command; what they leave at the end is compared, bit by bit, with what an undisturbed run leaves. Then generated bad
inputs (`scripts.bad_inputs`): each has to end in a clean error or a correct result. All of it in a temporary folder.
"""

import argparse
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
import torch

import main_pretrain
import main_train
from models import ensemble_drawer, load_forecaster
from scripts.bad_inputs import RUN, TINY, bad_array, bad_checkpoint, bad_command, fault, files_below
from scripts.children import end_of, start_child, start_children
from utils import checkpoint
from utils.checkpoint import load_checkpoint
from utils.config import FlagParser, output_path, run_main
from utils.runs import newest_state

STAGES = {"mean": (main_pretrain, []),
          "diffusion": (main_train, ["--nsample", "4", "--sample_steps", "3", "--test_windows", "8"])}
MOST_KILLS = 3  # of a stage, before it may run to its end
SECONDS, MEMORY = 60, 4 << 30  # that a program may take for a bad input, and bytes beyond what it has
KINDS = {"array": bad_array, "checkpoint": bad_checkpoint, "command line": bad_command}


@dataclass
class Tally:
    """What was tried and what was lost, by kind; `lost` says of each what happened."""

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
    """All that a finished run leaves, without the seconds."""
    content = load_checkpoint(folder / checkpoint.CHECKPOINT)
    lines = [json.loads(line) for line in (folder / checkpoint.LOG).read_text().splitlines()]
    windows = folder / checkpoint.WINDOWS

    def kept(values: dict) -> dict:
        return {name: value for name, value in values.items() if not name.startswith(("seconds", "mean_run"))}

    return {
        **{name: content[name] for name in ("weights", "config", "data", "epoch", "score")},
        "metrics": kept(checkpoint.read_json(folder / checkpoint.METRICS)), "log": [kept(line) for line in lines],
        "windows": windows.read_text() if windows.exists() else None,
    }


def forecast(folder: Path) -> torch.Tensor:
    """Members of a few test windows by a finished run of stage 2."""
    trained = load_forecaster(folder)
    data = main_train.open_run_data(trained.checkpoint, "", "cpu")
    draw = ensemble_drawer(trained.model, trained.checkpoint["config"], torch.device("cpu"))
    return torch.cat([draw(batch) for batch in data.batches("test", 2, limit=4)])


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
        same = one == other or (where == "/windows" and not exact)
    return [] if same else [where]


def start_stage(stage: str, save_dir: Path, processes: int, often: bool) -> list[int]:
    """Start the processes of a stage; `often`: it saves after every step, not only after an epoch."""
    program, flags = STAGES[stage]
    arguments = [*TINY, *flags, "--save_dir", str(save_dir), *(["--save_minutes", "1e-9"] if often else [])]
    return start_children(lambda: program.main(arguments), processes, save_dir / f"{stage}.out")


def kill_one(random: np.random.Generator, children: list[int]) -> bool:
    """Kill one of the processes, then the others, as torchrun does; whether it was still at work."""
    victims, statuses = random.permutation(children).tolist(), {}
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
        statuses[victim] = os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1])
        time.sleep(random.uniform(0, 0.1) if victim != victims[-1] else 0)
    return statuses[victims[0]] == -signal.SIGKILL


def phase(folder: Path) -> str:
    """What a run was doing when it was killed, by what it left."""
    if not (folder / checkpoint.CONFIG).exists():
        return "start-up"
    if any(folder.glob(f".*{checkpoint.TEMPORARY}")):
        return "within a save"
    if not (newest := newest_state(folder)):
        return "before the first save"
    return "scoring" if load_checkpoint(newest)["state"]["progress"]["done"] else "training or validation"


def soak_kills(kills: int, seed: int, folder: Path, deadline: float) -> dict:
    """Train again and again, killed at random times, until so many kills are spent: the `Tally` of the kills.

    Every third training runs as two processes that meet over gloo, every ninth one changes their number as it goes on.
    """
    undisturbed, seconds, tally, training = {}, {}, Tally(), 0
    for processes in (1, 2):
        save_dir = folder / f"undisturbed_{processes}"
        save_dir.mkdir(parents=True)
        for stage in STAGES:
            start = time.monotonic()
            statuses = [end_of(child, 600) for child in start_stage(stage, save_dir, processes, False)]
            if any(statuses):
                raise ValueError(f"{save_dir}: the undisturbed run ended with {statuses}:\n"
                                 f"{(save_dir / f'{stage}.out').read_text()}")
            seconds[stage, processes] = time.monotonic() - start
        undisturbed[processes] = whole_outcome(save_dir)
    while (tried := sum(tally.tried.values())) < kills and time.monotonic() < deadline:
        random = np.random.default_rng([seed, training])
        save_dir = folder / f"training_{training}"
        save_dir.mkdir()
        counts = (1,) if training % 3 < 2 else (1, 2) if training % 9 == 8 else (2,)
        kind = {(1,): "one process", (2,): "two processes", (1, 2): "one or two processes"}[counts]
        spent, where = 0, None
        for stage in STAGES:
            for _ in range(min(kills - tried - spent, int(random.integers(1, MOST_KILLS + 1)))):
                processes = int(random.choice(counts))
                children = start_stage(stage, save_dir, processes, random.random() < 0.5)
                time.sleep(random.uniform(0, seconds[stage, processes]))
                if not kill_one(random, children):
                    break
                spent += 1
                tally.ended[f"killed in {phase(save_dir / stage / RUN)}"] += 1
            processes = int(random.choice(counts))
            statuses = [end_of(child, 600) for child in start_stage(stage, save_dir, processes, False)]
            if any(statuses):
                where = [f"{stage} ended with {statuses}: {(save_dir / f'{stage}.out').read_text()[-500:]}"]
                break
        where = where or unequal(whole_outcome(save_dir), undisturbed[counts[-1] if len(counts) == 1 else 1],
                                 exact=len(counts) == 1)
        tally.tried[kind] += spent
        if where:
            tally.lost.append({"kind": kind, "faults": spent, "training": training, "differs": where[:5]})
        shutil.rmtree(save_dir)
        end = f"LOST: {where[0]}" if where else "ended as if undisturbed"
        print(f"training {training} by {kind}: killed {spent} times, {end}", flush=True)
        training += 1
    return {"trainings": training, **tally.report()}


def whole_outcome(save_dir: Path) -> dict:
    """What both stages leave, and a forecast by them."""
    return {**{stage: outcome(save_dir / stage / RUN) for stage in STAGES},
            "forecast": forecast(save_dir / "diffusion" / RUN)}


# Bad inputs

def soak_inputs(inputs: int, seed: int, folder: Path, pattern: Path, deadline: float) -> dict:
    """Give so many bad inputs to the programs that read them: the `Tally` of how they end."""
    tally = Tally()
    for number in range(inputs):
        if time.monotonic() > deadline:
            break
        random = np.random.default_rng([seed, number])
        kind = random.choice(list(KINDS), p=(0.45, 0.2, 0.35))
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
    """Both parts, in a temporary folder, within so many minutes: half of them are the kills'."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        killed = soak_kills(kills, seed, Path(folder), start + 30 * minutes)
        given = soak_inputs(inputs, seed, Path(folder), Path(folder, "undisturbed_1"), start + 60 * minutes)
    return {"kills": killed, "inputs": given, "seed": seed, "seconds": round(time.monotonic() - start),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}}


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--kills", type=at_least_one, default=30, help="kills in all (default: 30)")
    parser.add_argument("--inputs", type=at_least_one, default=1000, help="bad inputs (default: 1000)")
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
