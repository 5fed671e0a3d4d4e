"""Measure what a training step and a forecast cost with each recipe, beside the first one.

    python -m tests.tools.benchmark_speed --data_name MobileNJ --json speed.json
    python -m tests.tools.benchmark_speed --data_path FILE --recipes cost

The networks are untrained, which costs the same. Everything is measured in one run, because a time means little
without another one of the same machine.
"""

import json
import resource
import statistics
import time

import torch

from data.fluctuation import fluctuation_scale
from data.registry import DATASETS
from models import build_forecaster, build_mean_model, ensemble_sampler
from scripts.paper.benchmark import chosen
from utils.config import (
    OF_OWN_FILE,
    RECIPES,
    FlagParser,
    PretrainConfig,
    TrainConfig,
    output_path,
    resolve,
    with_own_data,
)
from utils.pipeline import CHOICES, TASK, open_windows, statistics_batches
from utils.program import run_main
from utils.training import checkpoint
from utils.training.distributed import choose_device
from utils.training.reproducibility import seed_step

ROUNDS = 3  # in which all recipes take their turns


def seconds_of(call, device: torch.device | str = "cpu") -> float:
    """Seconds of a call: the processor's on a CPU, the clock's on a GPU."""
    gpu = torch.device(device).type == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    start = clock()
    call()
    if gpu:
        torch.cuda.synchronize(device)
    return clock() - start


def compare(configs: dict[str, TrainConfig], device: torch.device, rounds: int) -> dict:
    """What a training step and a forecast cost with each configuration, in seconds and over the first one's.

    Medians over the rounds, in each of which all take their turns: what disturbs one disturbs the others too.
    """
    config, found = next(iter(configs.values())), {}

    def calls(chosen: TrainConfig) -> dict:
        """The pieces of work of a configuration, each on an untrained stage 1 of its recipe."""
        seed_step(chosen.seed)
        settings = checkpoint.settings(chosen)
        data = open_windows(settings, chosen.data_dir, device)
        found["nodes"] = data.num_nodes
        trained, window = (next(iter(data.batches(split, size)))
                           for split, size in (("train", config.batch_size), ("test", 1)))
        shared = {name: settings[name] for name in (*TASK, "recipe")}
        mean_model = build_mean_model(checkpoint.settings(resolve(PretrainConfig, shared)), data.metadata())
        model = build_forecaster(settings, mean_model, data.metadata()).to(device)
        model.fit_statistics(*(statistics_batches(data, chosen, split) for split in ("train", "calibration")),
                             lambda: fluctuation_scale(data.measured, data.scaler, chosen.scale_threshold))
        optimizer = torch.optim.Adam(model.denoiser.parameters(), lr=chosen.diffusion_lr)
        prepared = model.prepare(trained.future, trained.context)
        sample = ensemble_sampler(model, settings, device)

        def train():
            model.train()
            optimizer.zero_grad()
            model.loss(trained.future, trained.context, prepared=prepared).backward()
            optimizer.step()

        return {"training step": train, "forecast": lambda: model.eval() and sample(window)}

    work = {name: calls(chosen) for name, chosen in configs.items()}
    first = next(iter(work))
    seconds = {what: {name: [] for name in work} for what in work[first]}
    for number in range(rounds + 1):
        for what, of in seconds.items():
            for name, times in of.items():
                times += [seconds_of(work[name][what], device)] * (number > 0)  # the first round warms up
    return {
        "data_name": config.data_name, "recipe": config.recipe, **found, "members": config.nsample,
        "batch_size": config.batch_size, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", "rounds": rounds,
        "seconds": {what: {name: statistics.median(times) for name, times in of.items()}
                    for what, of in seconds.items()},
        "ratio": {what: {name: statistics.median(one / other for one, other in zip(times, of[first], strict=True))
                         for name, times in of.items()} for what, of in seconds.items()},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,  # Linux counts in KiB
    }


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_flags(TrainConfig, CHOICES, ("data_dir", "device", "data_path", *OF_OWN_FILE))
    parser.add_argument("--data_name", help=f"one of {', '.join(DATASETS)} (default: MobileNJ)")
    parser.add_argument("--recipes", default="", help=f"comma-separated; none named: {', '.join(RECIPES)}")
    parser.add_argument("--json", type=output_path, default=None, help="write the numbers there")
    given = vars(parser.parse_args(arguments))
    recipes, target = chosen(given.pop("recipes"), RECIPES, "recipes") or [*RECIPES], given.pop("json")
    given = {"data_name": "MobileNJ"} | with_own_data({name: value for name, value in given.items() if value})
    configs = {name: resolve(TrainConfig, {**given, "recipe": name}) for name in recipes}
    result = compare(configs, choose_device(configs[recipes[0]].device), ROUNDS)
    print(json.dumps(result, indent=1))
    if target:
        checkpoint.write_json(target, result)
    return 0


if __name__ == "__main__":
    run_main(main)
