"""Stage 2: freeze stage 1, fit the diffusion model on top of it, draw ensembles and score them.

    python main_train.py --data_name SST --device auto --batch_size 8 --history_len 12 --predict_len 12
"""

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from data.fluctuation import STATISTICS
from data.registry import sha256_of
from data.summary import FieldSummary
from data.windows import Batch, WindowedField
from main_pretrain import check_shares, open_windows, statistics_batches, training_batches
from models import DENOISERS, PROCESSES, build_forecaster, build_mean_model, ensemble_drawer
from models.diffusion import NOISE_SCHEDULES, SAMPLERS
from models.draws import own_rows
from utils import checkpoint
from utils.config import (
    DATA_FLAGS,
    PretrainConfig,
    TrainConfig,
    as_flags,
    known_settings,
    parse_config,
    preset,
    run_main,
)
from utils.device import autocast, choose_device
from utils.distributed import ALONE, Processes, join
from utils.evaluation import cross_check, evaluate_ensemble, mean_over_windows, own_windows, rows_at_once
from utils.plots import draw_forecast
from utils.reproducibility import key, keyed_normal, seed_step
from utils.runlog import describe_run, print_scores
from utils.runs import open_run
from utils.training import fit

CHOICES = {"process": PROCESSES, "eps_model": DENOISERS, "sampler": SAMPLERS, "noise_schedule": NOISE_SCHEDULES,
           "scale_statistic": STATISTICS}
GOLDEN_RATIO = (5**0.5 - 1) / 2
PREPARED_BYTES = 1 << 29  # of what stage 1 says of the windows of a split, at most, that is kept for all epochs


def load_mean_model(config, data) -> tuple[torch.nn.Module, dict, Path]:
    """The stage-1 model that a stage-2 run builds on: model, its settings, its checkpoint.

    A dry run without one takes an untrained model of the dataset's preset.
    Raises: ValueError when there is none, or one for other data or lengths: what differs, and the command to run.
    """
    folder = Path(config.mean_run or checkpoint.run_folder(config.save_dir, "mean", config)).expanduser()
    path = folder / checkpoint.CHECKPOINT
    task = {name: getattr(config, name) for name in ("data_name", "history_len", "predict_len")}
    usual = replace(PretrainConfig(), **preset(config.data_name, PretrainConfig))
    if config.dry_run and not path.exists():
        print(f"note: {path}: there is no stage-1 model yet")
        settings = checkpoint.settings(replace(usual, **task))
        return build_mean_model(settings, data.facts()), settings, path
    given = {name: getattr(config, name) for name in (*DATA_FLAGS, "save_dir", "run_name")}
    told = {name: value for name, value in given.items() if name in task or value != getattr(usual, name)}
    command = f"python main_pretrain.py {as_flags(told)}"
    if not path.exists():
        raise ValueError(f"{path}: there is no stage-1 model; run first: {command} (or give --mean_run FOLDER)")
    content = checkpoint.load_checkpoint(path)
    if content.get("stage") != "mean":
        raise ValueError(f"{folder}: not a stage-1 run; run first: {command}")
    if not (folder / checkpoint.METRICS).exists():
        raise ValueError(f"{folder}: stage 1 has not ended; the same command goes on with it: {command}")
    with checkpoint.built_from(path):
        settings = known_settings(content["config"], PretrainConfig, {}, path)
        found = {"lag_steps": [], **settings, **content["data"], **content["fingerprint"]}
        differing = checkpoint.differences(found, {**data.facts(), **task, **data.fingerprint})
    if differing:
        others = as_flags({name: settings[name] for name in DATA_FLAGS
                           if name in settings and name not in task and settings[name] != given[name]})
        raise ValueError(f"{path}: the stage-1 model does not fit: {', '.join(differing)}; "
                         + (f"it was trained with {others}: give this stage the same, or " if others else "")
                         + f"run: {command}")
    with checkpoint.built_from(path):
        model = build_mean_model(settings, data.facts())
        model.load_state_dict(content["weights"])
    return model, settings, path


def open_run_data(content: dict, data_dir: str, device: torch.device | str) -> WindowedField:
    """The data that a checkpoint was trained on.

    Raises: ValueError when the data folder holds other values than those.
    """
    data = open_windows(content["config"], data_dir, device)
    known = content["data"] | content.get("fingerprint", {})
    differing = checkpoint.differences(data.facts() | data.fingerprint, known)
    if differing:
        raise ValueError(f"{data.field.name}: other data than the run was trained on: {', '.join(differing)}")
    return data


def score_ensemble(model: torch.nn.Module, settings: dict, data, split: str, device: torch.device,
                   processes: Processes = ALONE, watch=None) -> tuple[dict, dict]:
    """Forecast the windows of a split and score them: what `metrics.json` says of an ensemble, and each window's.

    watch: see `evaluate_ensemble`.
    """
    start = time.perf_counter()
    windows_at_once = max(1, rows_at_once(data.num_nodes, device, settings["sample_batch"]) // settings["nsample"])
    scores, windows = evaluate_ensemble(
        ensemble_drawer(model, settings, device),
        data.batches(split, windows_at_once, limit=settings["test_windows"]), data.scaler.physical,
        (settings["nsample"], data.predict_len, data.num_nodes), model.equidistant, processes, watch,
    )
    return {
        **{name: settings[name] for name in ("data_name", "history_len", "predict_len", "seed")}, "split": split,
        "method": settings["process"], **model.sampled_by(settings["sampler"], settings["sample_steps"]),
        "precision": settings["sample_precision"], **scores, "seconds_sample": time.perf_counter() - start,
    }, windows


def neighbours_of(data, config) -> torch.Tensor | None:
    """The nodes that each listens to, (node, `--neighbours`), nearest first; None where the denoiser needs none.

    Raises: ValueError where it does, and nothing tells which nodes are near.
    """
    if "nearest" not in DENOISERS[config.eps_model].mixing:
        return None
    nearest = data.nearest_nodes(1 + config.neighbours)
    if nearest is None:
        give = "give --graph or --node_table to both stages, or " if config.data_path else ""
        raise ValueError(f"--eps_model {config.eps_model}: {data.field.name} has no graph, no grid and no places of "
                         f"its nodes: {give}choose --eps_model tokens")
    return nearest[:, 1:].contiguous()


def can_be_kept(said: torch.Tensor, windows: int) -> bool:
    """Whether what stage 1 says of so many windows is kept, by what it `said` of some."""
    return said[0].nbytes * windows <= PREPARED_BYTES


def prepare_windows(model: torch.nn.Module, batches) -> Callable[[Batch], torch.Tensor | None]:
    """The function batch of some of these windows, and of no others -> what the frozen stage 1 says of them.

    It is asked about all of them at the first call. Where that is too much to be kept the function gives None: then
    the loss asks at every step.
    """
    starts = batches.starts.sort().values.to(next(model.parameters()).device)

    @functools.cache
    @torch.no_grad()
    def of_all() -> torch.Tensor | None:
        kept = None
        for batch in batches:
            said = model.prepare(batch.future, *batch.known)
            if kept is None:
                if not can_be_kept(said, len(starts)):
                    return None
                kept = said.new_empty(len(starts), *said.shape[1:])
            kept[torch.searchsorted(starts, batch.start)] = said
        return kept

    def prepared(batch: Batch) -> torch.Tensor | None:
        kept = of_all()
        return None if kept is None else kept[torch.searchsorted(starts, batch.start)]

    return prepared


def validation_batches(data, config):
    return data.batches("validation", config.val_batch_size, limit=config.val_windows)


def validation_loss(model: torch.nn.Module, data, config, processes: Processes = ALONE,
                    prepared=lambda batch: None) -> torch.Tensor:
    """Loss on validation windows, each with a step and noise of its own that never change.

    The steps follow the multiples of the golden ratio: any stretch of windows visits all of them evenly. It costs
    one network call per window, where a sampled score costs members x steps of them. prepared: see `prepare_windows`.
    """
    def loss(batch):
        shape = 3, data.predict_len, model.coordinates
        noise = keyed_normal(key(config.seed, batch.start), shape).transpose(0, 1)
        step = (batch.start * GOLDEN_RATIO % 1 * len(model.schedule)).long()
        return model.loss(batch.future, *batch.known, prepared=prepared(batch), step=step, noise=noise)

    return mean_over_windows(loss, validation_batches(data, config), processes)


def training_loss(model: torch.nn.Module, prepared: Callable[[Batch], torch.Tensor | None], config,
                  device: torch.device):
    """The function training batch -> loss of stage 2, with what `prepare_windows` gave."""
    def loss(batch):
        known = prepared(batch)
        with own_rows(batch.rows):
            return model.loss(batch.future, *batch.known, prepared=known, precision=autocast(device, config.amp))

    return loss


def main(arguments: list[str] | None = None) -> int:
    config = parse_config(TrainConfig, CHOICES, arguments)
    device = choose_device(config.device)
    processes = join(device)
    settings = checkpoint.settings(config)
    data = open_windows(settings, config.data_dir, device)
    mean_model, mean_config, mean_path = load_mean_model(config, data)
    seed_step(config.seed)
    model = build_forecaster(settings, mean_model, data.facts(), neighbours_of(data, config)).to(device)
    folder = checkpoint.run_folder(config.save_dir, "diffusion", config)
    describe_run(config, data, model, folder, device)
    if config.dry_run:
        return 0
    check_shares(data, processes, validation=config.val_windows, test=config.test_windows)
    built_on = {"data": data.facts() | data.fingerprint, "mean_model": sha256_of(mean_path)}
    if not (run := open_run(folder, config, built_on, processes)):
        return 0

    seed_step(config.seed, 0)
    model.fit_statistics(statistics_batches(data, config),
                         lambda: data.fluctuation_scale(config.scale_threshold, config.scale_statistic))
    if config.compile:
        model.denoiser.compile()

    about = {"stage": "diffusion", "config": settings, "mean_config": mean_config, "mean_run": str(mean_path.parent),
             "data": data.facts(), "fingerprint": data.fingerprint, "field": FieldSummary.of(data).state()}

    def keep(weights, epoch, score):
        run.keep({**about, "weights": weights, "epoch": epoch, "score": score})

    training = prepare_windows(model, data.batches("train", config.val_batch_size))
    validation = prepare_windows(model, own_windows(validation_batches(data, config), processes))
    result = fit(model, training_loss(model, training, config, device), training_batches(data, config, processes),
                 lambda scored: validation_loss(scored, data, config, processes, validation), config, keep, run.log,
                 run.save, run.state, score_first=True, processes=processes)
    scores, windows = score_ensemble(model, settings, data, "test", device, processes)
    if not processes.first:
        return 0
    checkpoint.write_table(folder / checkpoint.WINDOWS, windows)
    metrics = {
        **scores, "mean_run": str(mean_path.parent),
        "best_epoch": result.best_epoch, "epochs": result.epochs, "seconds_train": result.seconds,
    }
    draw = ensemble_drawer(model, settings, device)
    try:
        draw_forecast(draw, data, folder / checkpoint.PICTURE)
    except Exception as error:  # whatever goes wrong, a picture is not worth the scores
        print(f"warning: {checkpoint.PICTURE} could not be drawn: {error}", file=sys.stderr)
    if config.cross_check:
        chosen = data.batches("test", 1, torch.Generator().manual_seed(config.seed), limit=config.cross_check)
        metrics["cross_check"] = cross_check(draw, chosen, data.scaler.physical)
    checkpoint.write_json(folder / checkpoint.METRICS, metrics)  # last: a folder that has it is finished
    print_scores(metrics, data.field.spec.unit, folder)
    return 0


if __name__ == "__main__":
    run_main(main)
