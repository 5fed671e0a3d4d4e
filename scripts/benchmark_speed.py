"""Measure what training and sampling cost on this machine, and how near they come to its matrix-multiply peak.

    python -m scripts.benchmark_speed --data_name MobileNJ --json speed.json
    python -m scripts.benchmark_speed --data_name MobileNJ --compare denoisers   # what each costs beside the first
    python -m scripts.benchmark_speed --data_name MobileNJ --compare recipes

The networks are untrained, which costs the same. Where the dataset's array is absent, values of its shape are
generated. Everything is measured in one run, because a time means little without the peak of the same machine.
"""

import contextlib
import io
import os
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from data.registry import DATASETS, get_spec
from data.windows import WindowedField
from models import DENOISERS, build_forecaster, build_mean_model, ensemble_drawer
from utils import checkpoint
from utils.config import RECIPES, FlagParser, PretrainConfig, TrainConfig, output_path, resolve, run_main
from utils.device import choose_device
from utils.evaluation import rows_at_once
from utils.pipeline import CHOICES, mean_loss, neighbours_of, open_windows, prepare_windows, training_loss
from utils.reproducibility import seed_step
from utils.training import fit

FORECASTS = (("dpm2m", 10), ("dpm2m", 20), ("ddim", 20), ("ancestral", 50))
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
TRAINING_STEPS, MOST_REPEATS = 4, 5
ROUNDS = {"denoisers": 10, "recipes": 3}  # in which all that are compared take their turns


def open_or_generate(config: TrainConfig, device: torch.device) -> tuple[WindowedField, str]:
    """The dataset and "dataset"; or, where its files are absent, random values of its shape and "generated"."""
    settings = checkpoint.settings(config)
    try:
        return open_windows(settings, config.data_dir, device), "dataset"
    except FileNotFoundError:
        spec, random = get_spec(config.data_name), np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as folder:
            for name, shape in zip(spec.files, spec.shape, strict=True):
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    np.save(file, random.random(shape, dtype=np.float32))
            return open_windows(settings, folder, device), "generated"


def measure(call, device: torch.device, budget: float) -> list[float]:
    """Seconds of each of a few calls: at least one, then more while the `budget` in seconds lasts."""
    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    times = []
    while not times or (len(times) < MOST_REPEATS and sum(times) < budget):
        start = clock()
        call()
        times.append(clock() - start)
    return times


def seconds_of(call) -> float:
    """Processor seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def count_gflop(call) -> float:
    """Arithmetic of the matrix products in one call, forward and backward, a multiply-add being two operations."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def gemm_peak(rows: int, width: int, device: torch.device, precision: str, budget: float) -> float:
    """GFLOP/s of the fastest matrix product: (rows, width) by (width, width), as in the network, or square ones."""
    calls = 1 if device.type == "cpu" else 10  # one product is too short to time on a GPU
    squares = (1024, 2048) if device.type == "cpu" else (4096, 8192)
    best = 0.0
    for m, n in ((rows, width), *((side, side) for side in squares)):
        left, right = (torch.randn(size, n, device=device, dtype=getattr(torch, PRECISIONS[precision]))
                       for size in (m, n))
        F.linear(left, right)
        times = measure(lambda a=left, b=right: [F.linear(a, b) for _ in range(calls)], device, budget)
        best = max(best, 2e-9 * m * n * n * calls / min(times))
    return best


def training_step(model, loss, data: WindowedField, config, budget: float) -> float:
    """Seconds per training step of `utils.training.fit`: median over short epochs, the first one left out."""
    marks, steps = [], []

    def batches(generator):
        chosen = data.batches("train", config.batch_size, generator, limit=TRAINING_STEPS * config.batch_size)
        steps.append(len(chosen))
        marks.append(time.perf_counter())
        return chosen

    def validate(_) -> float:  # called right after the training part of an epoch, when the device is done
        marks.append(time.perf_counter())
        return 0.0

    def run(epochs: int) -> list[float]:
        marks.clear()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            fit(model, loss, batches, validate, replace(config, epochs=epochs, patience=epochs),
                keep=lambda *_: None, log=lambda _: None)
        return [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)]

    warm_up, = run(1)
    epochs = min(MOST_REPEATS, 1 + int(budget / warm_up))
    return statistics.median(run(epochs)) / steps[0]


def mean_model_of(config: TrainConfig, data: WindowedField, device: torch.device):
    """An untrained stage 1 for a stage-2 configuration, and its own configuration."""
    shared = {name: getattr(config, name) for name in ("recipe", "data_name", "history_len", "predict_len")}
    mean_config = resolve(PretrainConfig, shared)
    return build_mean_model(checkpoint.settings(mean_config), data.facts()).to(device), mean_config


def forecaster_of(config: TrainConfig, data: WindowedField, mean_model, device: torch.device):
    """An untrained forecaster on top of a stage 1, its statistics fitted."""
    model = build_forecaster(checkpoint.settings(config), mean_model, data.facts(), neighbours_of(data, config))
    model.to(device).fit_statistics(data.batches("train", config.val_batch_size, limit=100), data.calibration(8), lambda:
                                    data.fluctuation_scale(config.scale_threshold, config.scale_statistic))
    return model


def variants(config: TrainConfig, what: str) -> dict[str, TrainConfig]:
    """The configurations that are compared, by name: all "denoisers" of one recipe, or all "recipes"."""
    if what == "denoisers":
        return {name: replace(config, denoiser=name) for name in DENOISERS}
    return {name: resolve(TrainConfig, {"data_name": config.data_name, "data_dir": config.data_dir, "recipe": name})
            for name in RECIPES}


def compare(configs: dict[str, TrainConfig], device: torch.device, rounds: int) -> dict:
    """What a training step and a forecast cost with each configuration, in seconds and over the first one's.

    All take their turns in every round, so that what disturbs one disturbs the others too; medians over the rounds. On
    a CPU seconds are the processor's: other programs do not count.
    """
    config = next(iter(configs.values()))

    def calls(chosen: TrainConfig) -> dict:
        """The pieces of work of a configuration, each on an untrained stage 1 of its recipe."""
        seed_step(chosen.seed)
        data, values = open_or_generate(chosen, device)
        trained, window = (next(iter(data.batches(split, size)))
                           for split, size in (("train", config.batch_size), ("test", 1)))
        model = forecaster_of(chosen, data, mean_model_of(chosen, data, device)[0], device)
        optimizer = torch.optim.Adam(model.denoiser.parameters(), lr=chosen.lr)
        prepared = model.prepare(trained.future, trained.context)

        def train():
            model.train()
            optimizer.zero_grad()
            model.loss(trained.future, trained.context, prepared=prepared).backward()
            optimizer.step()

        def forecast(precision: str):
            draw = ensemble_drawer(model.eval(), {**checkpoint.settings(chosen), "sample_precision": precision}, device)
            return lambda: model.eval() and draw(window)

        found.update(values=values, nodes=data.num_nodes)
        return {"training step": train, **{f"forecast, {name}": forecast(PRECISIONS[name]) for name in precisions}}

    found = {}
    precisions = [name for name in PRECISIONS if len({one.recipe for one in configs.values()}) == 1 or name == "fp32"]
    work = {name: calls(chosen) for name, chosen in configs.items()}
    first = next(iter(work))
    seconds = {what: {name: [] for name in work} for what in work[first]}
    for number in range(rounds + 1):
        for what, of in seconds.items():
            for name, times in of.items():
                call = work[name][what]
                time_of = seconds_of(call) if device.type == "cpu" else measure(call, device, 0)[0]
                times += [time_of] * (number > 0)  # the first round warms up
    return {
        "data_name": config.data_name, "recipe": config.recipe, **found, "members": config.nsample,
        "batch_size": config.batch_size, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", "rounds": rounds,
        "seconds": {what: {name: statistics.median(times) for name, times in of.items()}
                    for what, of in seconds.items()},
        "ratio": {what: {name: statistics.median(one / other for one, other in zip(times, of[first], strict=True))
                         for name, times in of.items()} for what, of in seconds.items()},
    }


def benchmark(config: TrainConfig, device: torch.device, budget: float = 10.0) -> dict:
    """Times, arithmetic and shares of the peak, as one flat dict; `budget` bounds the seconds of repeats per time.

    Keys of the forecasts are "sampler-steps/precision".
    """
    load = os.getloadavg()[0]
    seed_step(config.seed)
    data, values = open_or_generate(config, device)
    nodes = data.num_nodes
    mean_model, mean_config = mean_model_of(config, data, device)
    mean_step = training_step(mean_model, mean_loss(mean_model, mean_config, device), data, mean_config, budget)
    settings = checkpoint.settings(config)
    model = forecaster_of(config, data, mean_model, device)
    linear = max((layer for layer in model.denoiser.modules() if isinstance(layer, torch.nn.Linear)),
                 key=lambda layer: layer.weight.numel())
    rows = model.coordinates * min(config.nsample, rows_at_once(nodes, device, config.sample_batch))

    def peaks() -> dict[str, float]:
        return {name: gemm_peak(rows, linear.in_features, device, name, budget / 16) for name in PRECISIONS}

    before = peaks()

    prepared = prepare_windows(model, data.batches("train", config.val_batch_size))
    prepared(next(iter(data.batches("train", 1))))  # stage 1 is done before anything is counted
    loss = {name: training_loss(model, prepared, replace(config, amp=name == "bf16"), device) for name in PRECISIONS}
    train_gflop = count_gflop(lambda: loss["fp32"](next(iter(data.batches("train", config.batch_size)))).backward())
    train_step = {name: training_step(model, loss[name], data, config, budget) for name in PRECISIONS}

    window, forecast, gflop = next(iter(data.batches("test", 1))), {}, {}
    for name, dtype in PRECISIONS.items():
        def drawer(sampler: str, steps: int, dtype=dtype):
            chosen = dict(sampler=sampler, sample_steps=steps, sample_precision=dtype)
            draw = ensemble_drawer(model, {**settings, **chosen}, device)
            return lambda: draw(window)

        one, two = (count_gflop(drawer("ddim", steps)) for steps in (1, 2))  # warm-up; each further step costs the same
        for sampler, steps in FORECASTS:
            key = f"{sampler}-{steps}/{name}"
            forecast[key] = statistics.median(measure(drawer(sampler, steps), device, budget))
            gflop[key] = one + (steps - 1) * (two - one)

    gemm = {name: max(before[name], again) for name, again in peaks().items()}  # another program may have disturbed one
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "data_name": config.data_name, "recipe": config.recipe, "denoiser": config.denoiser, "values": values,
        "nodes": nodes, "members": config.nsample, "batch_size": config.batch_size,
        "mean_batch_size": mean_config.batch_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "load_average": load,
        "mean_train_step_s": mean_step, "train_step_s": train_step["fp32"], "train_step_bf16_s": train_step["bf16"],
        "gflop_per_train_step": train_gflop, "forecast_s": forecast, "gflop_per_forecast": gflop, "gemm_gflops": gemm,
        "train_share_of_peak": train_gflop / train_step["fp32"] / gemm["fp32"],
        "train_bf16_share_of_peak": train_gflop / train_step["bf16"] / gemm["bf16"],
        "forecast_share_of_peak": {key: gflop[key] / seconds / gemm[key.split("/")[1]]
                                   for key, seconds in forecast.items()},
        "peak_rss_mb": memory / 1e6,
        **({"peak_device_mb": torch.cuda.max_memory_allocated(device) / 1e6} if device.type == "cuda" else {}),
    }


def table(result: dict) -> str:
    """A benchmark's result as text."""
    origin = "" if result["values"] == "dataset" else " (array absent: generated values of its shape)"
    lines = [
        f"{result['data_name']}{origin}: {result['nodes']} nodes, {result['members']} members, "
        f"batch {result['batch_size']}; {result['device']}, {result['threads']} threads, torch {result['torch']}",
        f"load average {result['load_average']:.1f} at the start; other programs' load makes the times longer",
        f"{'':32}{'seconds':>10}{'GFLOP':>10}{'GFLOP/s':>10}{'of peak':>9}",
    ]

    def row(text: str, seconds: float, gflop: float, share: float):
        lines.append(f"{text:32}{seconds:10.4f}{gflop:10.2f}{gflop / seconds:10.1f}{share:9.0%}")

    lines += [f"{f'matrix product, {name}':32}{peak:30.1f}" for name, peak in result["gemm_gflops"].items()]
    lines.append(f"{'stage 1, training step, fp32':32}{result['mean_train_step_s']:10.4f}")
    for name, infix in (("fp32", ""), ("bf16", "_bf16")):
        row(f"stage 2, training step, {name}", result[f"train_step{infix}_s"], result["gflop_per_train_step"],
            result[f"train{infix}_share_of_peak"])
    for key, seconds in result["forecast_s"].items():
        row(f"forecast, {key}", seconds, result["gflop_per_forecast"][key], result["forecast_share_of_peak"][key])
    return "\n".join([*lines, f"peak resident memory {result['peak_rss_mb']:.0f} MB"])


def table_of_comparison(result: dict) -> str:
    """The result of `compare` as text."""
    lines = [f"{result['data_name']}: {result['nodes']} nodes, {result['members']} members, batch "
             f"{result['batch_size']}; {result['device']}, {result['threads']} threads, torch {result['torch']}; "
             "processor seconds, and their ratio to those of the first"]
    lines += [f"{what:20}" + "".join(f"{name:>10} {result['seconds'][what][name]:.4f} ({ratio:.2f})"
                                     for name, ratio in of.items()) for what, of in result["ratio"].items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_flags(TrainConfig, CHOICES, ("data_dir", "device", "recipe", "denoiser"))
    parser.add_argument("--data_name", default="MobileNJ", help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--compare", choices=list(ROUNDS), default="", help="compare all denoisers, or all recipes")
    parser.add_argument("--json", type=output_path, default=None, help="write the numbers there")
    given = vars(parser.parse_args(arguments))
    what, target = given.pop("compare"), given.pop("json")
    config = resolve(TrainConfig, given)
    device = choose_device(config.device)
    result = compare(variants(config, what), device, ROUNDS[what]) if what else benchmark(config, device)
    print(table_of_comparison(result) if what else table(result))
    if target:
        checkpoint.write_json(target, result)
    return 0


if __name__ == "__main__":
    run_main(main)
