"""Stage 2: freeze the mean model, train the diffusion model of the residual, draw ensembles and score them.

    python main_train.py --data_name SST --device auto --batch_size 8 --history_len 12 --predict_len 12
"""

import sys

import torch

from data.fluctuation import fluctuation_scale
from data.registry import sha256_of
from data.summary import FieldSummary
from models import build_forecaster, ensemble_sampler
from utils import pipeline
from utils.config import TrainConfig, parse_config
from utils.output.plots import draw_forecast
from utils.program import run_main
from utils.scores.comparison import against_best, compare_simple
from utils.scores.evaluation import cross_check
from utils.training import checkpoint
from utils.training.distributed import choose_device, join
from utils.training.loop import Goal, fit
from utils.training.reproducibility import seed_step
from utils.training.runlog import describe_run, print_scores
from utils.training.runs import open_run

LEAST_GAIN = 0.005  # of the validation loss, for which the network replaces the Gaussian that it starts from


def main(arguments: list[str] | None = None) -> int:
    config = parse_config(TrainConfig, pipeline.CHOICES, arguments)
    device = choose_device(config.device)
    processes = join(device)
    data = pipeline.open_windows(checkpoint.settings(config), config.data_dir, device)
    mean_model, mean_config, mean_path = pipeline.load_mean_model(config, data)
    config = pipeline.choose_margin(config, data, mean_model.objective)
    settings = checkpoint.settings(config)

    seed_step(config.seed)
    model = build_forecaster(settings, mean_model, data.metadata()).to(device)
    folder = checkpoint.run_folder(config.save_dir, "diffusion", config)
    describe_run(config, data, model, folder, device)
    if config.dry_run:
        return 0
    pipeline.check_shares(data, processes, validation=config.val_windows, test=config.test_windows)
    built_on = {"data": data.metadata() | data.fingerprint, "mean_model": sha256_of(mean_path)}
    if not (run := open_run(folder, config, built_on, processes)):
        return 0

    seed_step(config.seed, 0)
    model.fit_statistics(*(pipeline.statistics_batches(data, config, split) for split in ("train", "calibration")),
                         lambda: fluctuation_scale(data.measured, data.scaler, config.scale_threshold))
    if config.compile:
        model.denoiser.compile()
    run.about = {"stage": "diffusion", "config": settings, "mean_config": mean_config,
                 "mean_run": str(mean_path.parent), "data": data.metadata(), "fingerprint": data.fingerprint,
                 "field": FieldSummary.of(data).state()}
    training = pipeline.prepare_windows(model, data.batches("train", config.val_batch_size))
    validation = pipeline.prepare_windows(model, pipeline.validation_batches(data, config).share_windows(
        processes.rank, processes.count))
    goal = Goal(lambda batch: pipeline.training_loss(model, batch, training(batch), config, device),
                lambda generator: pipeline.training_batches(data, config, processes, generator),
                lambda scored: pipeline.validation_loss(scored, data, config, processes, validation),
                config.diffusion_epochs, config.diffusion_lr, config.diffusion_ema, LEAST_GAIN)
    result = fit(model, goal, config, run, processes)

    scores, windows = pipeline.score_ensemble(model, settings, data, "test", device, processes)
    simple = pipeline.score_simple(settings, data, "test", processes, joint=False)
    if not processes.first:
        return 0
    checkpoint.write_table(folder / checkpoint.WINDOWS, windows)
    simple = compare_simple(windows, simple, data.history_len + data.predict_len)
    metrics = {**scores, "simple": simple, "mean_run": str(mean_path.parent), "best_epoch": result.best_epoch,
               "epochs": result.epoch, "seconds_train": result.seconds}
    sample = ensemble_sampler(model, settings, device)
    try:
        draw_forecast(sample, data, folder / checkpoint.PICTURE)
    except Exception as error:  # a picture that fails must not lose the scores
        print(f"warning: {checkpoint.PICTURE} could not be drawn: {error}", file=sys.stderr)
    if config.cross_check:
        chosen = data.batches("test", 1, torch.Generator().manual_seed(config.seed), limit=config.cross_check)
        metrics["cross_check"] = cross_check(sample, chosen, data.scaler.physical)
    run.finish(metrics)
    print_scores(metrics, data.field.spec.unit)
    print(against_best(simple))
    print(f"scores, weights and picture: {folder}")
    return 0


if __name__ == "__main__":
    run_main(main)
