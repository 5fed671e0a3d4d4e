"""Stage 1: fit a deterministic mean model of the field.

    python main_pretrain.py --data_name SST --device auto --batch_size 8 --history_len 12 --predict_len 12
"""

import time

from models import build_mean_model
from utils import pipeline
from utils.config import PretrainConfig, parse_config
from utils.program import run_main
from utils.scores.evaluation import evaluate_mean
from utils.training import checkpoint
from utils.training.distributed import choose_device, join
from utils.training.loop import Goal, fit
from utils.training.reproducibility import seed_step
from utils.training.runlog import describe_run, print_scores
from utils.training.runs import open_run


def main(arguments: list[str] | None = None) -> int:
    config = parse_config(PretrainConfig, pipeline.CHOICES, arguments)
    device = choose_device(config.device)
    processes = join(device)
    settings = checkpoint.settings(config)
    data = pipeline.open_windows(settings, config.data_dir, device)

    seed_step(config.seed)
    model = build_mean_model(settings, data.metadata()).to(device)
    folder = checkpoint.run_folder(config.save_dir, "mean", config)
    describe_run(config, data, model, folder, device)
    if config.dry_run:
        return 0
    pipeline.check_shares(data, processes, validation=0, test=0)
    if not (run := open_run(folder, config, {"data": data.metadata() | data.fingerprint}, processes)):
        return 0
    if config.compile:
        model.compile_networks()

    run.about = {"stage": "mean", "config": settings, "data": data.metadata(), "fingerprint": data.fingerprint}
    goal = Goal(lambda batch: pipeline.mean_loss(model, batch, config, device),
                lambda generator: pipeline.training_batches(data, config, processes, generator),
                lambda scored: pipeline.mean_validation_loss(scored, data, config, processes),
                config.mean_epochs, config.mean_lr, config.mean_ema)
    result = fit(model, goal, config, run, processes)
    seed_step(config.seed, 0)
    model.calibrate(pipeline.statistics_batches(data, config), data.calibration(config.val_batch_size), data.support)
    if config.base != "none":
        pipeline.note_few_windows(data)
    if model.summary and processes.first:
        print(model.summary)
    run.keep(model.state_dict(), result.best_epoch, result.best_loss)

    start = time.perf_counter()
    scores = evaluate_mean(lambda batch: model(batch.context), data.batches("test", config.val_batch_size),
                           data.scaler.physical, processes)
    metrics = {
        **{name: settings[name] for name in (*pipeline.TASK, "seed", "recipe")},
        "split": "test", "method": config.mean_model, **scores, "best_epoch": result.best_epoch,
        "epochs": result.epoch, "seconds_train": result.seconds, "seconds_sample": time.perf_counter() - start,
    }
    run.finish(metrics)
    if processes.first:
        print_scores(metrics, data.field.spec.unit)
        print(f"scores and weights: {folder}")
    return 0


if __name__ == "__main__":
    run_main(main)
