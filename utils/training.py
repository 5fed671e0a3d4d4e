"""The only training loop."""

import sys
import time
from dataclasses import dataclass

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from .reproducibility import key, seed_step

DECAY_AT = 0.4  # share of the epochs after which the learning rate falls once


@dataclass(frozen=True)
class FitResult:
    """How a fit went: the best validation score, its epoch, epochs run, and seconds spent."""

    best_score: float
    best_epoch: int
    epochs: int
    seconds: float


def fit(model, loss, batches, validate, config, keep, log, score_first: bool = False) -> FitResult:
    """Train `model`, keep its best weights, stop early.

    loss(batch) -> scalar tensor to descend; the parameters that require a gradient are trained
    batches(generator) -> iterable of shuffled training batches, with a length
    validate(model) -> score, lower is better; called after each epoch in eval mode without gradients
    keep(state_dict, epoch, score) is called at each new best; log(dict) once per epoch
    score_first: the weights before the first step, epoch 0, are a candidate too

    The weights of the best epoch stand in `model` at the end. With `--ema` the averaged weights are the ones
    scored and kept. Order, dropout and noise follow from (seed, epoch, step). No step waits for the device.
    Raises: FloatingPointError when the loss of an epoch is not finite.
    """
    device = next(model.parameters()).device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [max(1, round(DECAY_AT * config.epochs))], gamma=config.lr_decay
    )
    averaged = AveragedModel(model) if config.ema else None
    scored = averaged.module if averaged else model
    averaged_weights = [weight for weight in scored.parameters() if weight.requires_grad]
    average = get_ema_multi_avg_fn(config.ema)
    best_score, best_epoch, best_weights, start = float("inf"), 0, None, time.perf_counter()
    generator = torch.Generator()
    bar = tqdm(total=None, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty())

    def train_epoch(epoch: int) -> float:
        generator.manual_seed(int(key(config.seed, epoch)) & ((1 << 63) - 1))
        epoch_batches = batches(generator)
        bar.total = bar.total or config.epochs * len(epoch_batches)
        model.train()
        total = torch.zeros((), device=device)
        for step, batch in enumerate(epoch_batches):
            seed_step(config.seed, epoch, step)
            optimizer.zero_grad(set_to_none=True)
            value = loss(batch)
            value.backward()
            optimizer.step()
            if averaged and epoch == 1 and step == 0:
                averaged.update_parameters(model)  # copies; later on it would wait for the device
            elif averaged:
                average(averaged_weights, trained, None)
            total += value.detach()
            bar.update()
        train_loss = float(total) / len(epoch_batches)
        if train_loss - train_loss != 0:
            raise FloatingPointError(f"the training loss of epoch {epoch} is {train_loss}; try a smaller --lr")
        return train_loss

    for epoch in range(0 if score_first else 1, config.epochs + 1):
        epoch_start = time.perf_counter()
        train_loss = train_epoch(epoch) if epoch else None
        train_end = time.perf_counter()
        scored.eval()
        with torch.no_grad():
            score = float(validate(scored))
        if score < best_score:
            best_score, best_epoch = score, epoch
            best_weights = {name: value.detach().clone() for name, value in scored.state_dict().items()}
            keep(best_weights, epoch, score)
        now = time.perf_counter()
        log(dict(epoch=epoch, loss=train_loss, score=score, lr=optimizer.param_groups[0]["lr"],
                 seconds_train=round(train_end - epoch_start, 3), seconds_validation=round(now - train_end, 3)))
        note = f"epoch {epoch}/{config.epochs}  score {score:.4f}  best {best_score:.4f}"
        if epoch:
            schedule.step()
            note += f"  loss {train_loss:.4f}"
        if bar.disable and epoch:
            left = (now - start) / epoch * (config.epochs - epoch)
            note += f"  {now - start:.0f} s, at most {left:.0f} s left"
        if bar.disable:
            print(note, flush=True)
        bar.set_description_str(note)
        if epoch - best_epoch >= config.patience:
            break
    bar.close()
    if best_weights is None:
        raise FloatingPointError("no validation score was finite; try a smaller --lr")
    model.load_state_dict(best_weights)
    model.eval()
    return FitResult(best_score, best_epoch, epoch, now - start)
