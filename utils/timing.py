"""What a training step costs, measured on networks that are not trained yet."""

import contextlib
import io
import statistics
import time
from dataclasses import replace

import torch

from data.windows import WindowedField
from models import build_forecaster

from . import checkpoint
from .config import TrainConfig
from .pipeline import neighbours_of
from .training import fit

TRAINING_STEPS, MOST_REPEATS = 4, 5


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


def forecaster_of(config: TrainConfig, data: WindowedField, mean_model, device: torch.device):
    """An untrained forecaster on top of a stage 1, its statistics fitted."""
    model = build_forecaster(checkpoint.settings(config), mean_model, data.facts(), neighbours_of(data, config))
    model.to(device).fit_statistics(data.batches("train", config.val_batch_size, limit=100), lambda:
                                    data.fluctuation_scale(config.scale_threshold, config.scale_statistic))
    return model
