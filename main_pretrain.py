"""Stage 1: fit what is expected of the future: its conditional quantiles, or its mean.

    python main_pretrain.py --data_name SST --device auto --batch_size 8 --history_len 12 --predict_len 12
"""

import dataclasses
import sys
import time

import torch

from data.fields import OwnFile
from data.registry import data_dir_from
from data.windows import WindowedField, open_data
from models import MEAN_MODELS, build_mean_model
from models.draws import own_rows
from utils import checkpoint
from utils.config import PretrainConfig, parse_config, run_main
from utils.device import autocast, choose_device
from utils.distributed import Processes, join
from utils.evaluation import evaluate_mean, mean_over_windows, own_windows
from utils.reproducibility import seed_step
from utils.runlog import describe_run, print_scores
from utils.runs import open_run
from utils.training import fit

STATISTICS_WINDOWS, STATISTICS_VALUES = 1000, 40_000_000  # at most, that linear models are estimated from


def own_file(settings: dict) -> OwnFile | None:
    """The user's own file of a configuration, None for a dataset of the registry."""
    if not settings["data_path"]:
        return None
    return OwnFile(settings["data_path"], settings["freq"], settings["start"], settings["variable"],
                   settings["node_table"], settings["graph"], settings["unit"])


def open_windows(settings: dict, data_dir: str, device: torch.device | str) -> WindowedField:
    """The dataset of a configuration (as a dict: also that of a checkpoint), as windows on the device."""
    settings = {**dataclasses.asdict(PretrainConfig()), **settings}  # a checkpoint may be older than a flag
    data = open_data(settings["data_name"], data_dir_from(data_dir), settings["history_len"], settings["predict_len"],
                     device, settings["oracle_nodes"], settings["oracle_steps"], settings["oracle_length_scale"],
                     own_file(settings), settings["split"], settings["support"], settings["missing"],
                     settings["null_value"], settings["covariates"], settings["lags"])
    for note in data.field.notes:
        print(f"note: {data.field.name}: {note}", file=sys.stderr)
    return data


def training_batches(data: WindowedField, config, processes: Processes):
    """The function generator -> shuffled training batches of `--batch_size` windows, shared by the processes."""
    def batches(generator):
        whole = data.batches("train", config.batch_size, generator)
        return whole.share_batches(processes.rank, processes.count) if processes.count > 1 else whole

    return batches


def statistics_batches(data: WindowedField, config):
    """Batches of the training windows that linear models are estimated from: fewer of a larger field."""
    values = (data.history_len + data.predict_len) * data.num_nodes
    enough = min(STATISTICS_WINDOWS, max(1, STATISTICS_VALUES // values))
    return data.batches("train", config.val_batch_size, limit=enough)


def check_shares(data: WindowedField, processes: Processes, **limits: int) -> None:
    """Refuse before the work processes that could not all get a window to score: at most so many of each split."""
    for split, limit in limits.items():
        own_windows(data.batches(split, 1, limit=limit), processes)


def main(arguments: list[str] | None = None) -> int:
    config = parse_config(PretrainConfig, {"mean_model": MEAN_MODELS}, arguments)
    device = choose_device(config.device)
    processes = join(device)
    settings = checkpoint.settings(config)
    data = open_windows(settings, config.data_dir, device)
    seed_step(config.seed)
    model = build_mean_model(settings, data.facts()).to(device)
    folder = checkpoint.run_folder(config.save_dir, "mean", config)
    describe_run(config, data, model, folder, device)
    if config.dry_run:
        return 0
    check_shares(data, processes, validation=0, test=0)
    if not (run := open_run(folder, config, {"data": data.facts() | data.fingerprint}, processes)):
        return 0

    if config.compile:
        for network in getattr(model, "networks", [model]):
            network.blocks.compile()

    def loss(batch):
        with own_rows(batch.rows), autocast(device, config.amp):
            return model.loss(batch.future, *batch.known)

    def validate(scored):
        batches = data.batches("validation", config.val_batch_size)
        return mean_over_windows(lambda b: scored.loss(b.future, *b.known), batches, processes)

    def keep(weights, epoch, score):
        run.keep({"stage": "mean", "config": settings, "data": data.facts(), "fingerprint": data.fingerprint,
                  "weights": weights, "epoch": epoch, "score": score})

    result = fit(model, loss, training_batches(data, config, processes), validate, config, keep, run.log, run.save,
                 run.state, processes=processes)
    if hasattr(model, "recalibrate"):  # what is fitted after training belongs to the checkpoint too
        calibration = data.calibration(config.val_batch_size)
        seed_step(config.seed, 0)
        if config.linear_modes and hasattr(model, "combine"):
            model.combine(statistics_batches(data, config), calibration)
        if config.recalibrate:
            model.recalibrate(calibration, data.support)
        keep(model.state_dict(), result.best_epoch, result.best_score)
    start = time.perf_counter()
    scores = evaluate_mean(lambda b: model(*b.known), data.batches("test", config.val_batch_size),
                           data.scaler.physical, processes)
    metrics = {
        **{name: settings[name] for name in ("data_name", "history_len", "predict_len", "seed")}, "split": "test",
        "method": config.mean_model, **scores, "best_epoch": result.best_epoch, "epochs": result.epochs,
        "seconds_train": result.seconds, "seconds_sample": time.perf_counter() - start,
    }
    if processes.first:
        checkpoint.write_json(folder / checkpoint.METRICS, metrics)
        print_scores(metrics, data.field.spec.unit, folder)
    return 0


if __name__ == "__main__":
    run_main(main)
