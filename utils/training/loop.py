"""The only training loop."""

import itertools
import math
import sys
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from utils.training.checkpoint import built_from
from utils.training.distributed import ALONE, Processes
from utils.training.reproducibility import key, seed_step
from utils.training.signals import Stopped, deferred

DECAY_AT = 0.4  # share of the epochs after which the learning rate falls once


@dataclass(frozen=True)
class Plan:
    """How a fit descends and how long: flags of the stage, by their names without its prefix."""

    epochs: int
    lr: float
    ema: float
    patience: int
    lr_decay: float
    weight_decay: float
    save_minutes: float
    seed: int

    @classmethod
    def of(cls, config, epochs: int, lr: float, ema: float) -> "Plan":
        """The plan of a stage: the flags that both stages share, beside those of its own."""
        return cls(epochs, lr, ema, config.patience, config.lr_decay, config.weight_decay, config.save_minutes,
                   config.seed)


@dataclass(frozen=True)
class FitResult:
    """How a fit went: the best validation score, its epoch, epochs run, and seconds spent."""

    best_score: float
    best_epoch: int
    epochs: int
    seconds: float


@dataclass
class Progress:
    """Where a fit stands. With weights, their average and the optimiser it decides all that follows.

    step is the next one of the epoch, loss the sum over those before it; unlogged are lines that could not be written.
    """

    epoch: int
    step: int = 0
    loss: float = 0.0
    best_score: float = float("inf")
    best_epoch: int = 0
    best_weights: dict | None = None
    done: bool = False
    seconds: float = 0.0
    unlogged: list = field(default_factory=list)


def fit(model, loss, batches, validate, plan: Plan, keep, log, save=None, state=None, score_first: bool = False,
        processes: Processes = ALONE) -> FitResult:
    """Train `model`, keep its best weights, stop early.

    loss(batch) -> scalar tensor to descend; the parameters that require a gradient are trained
    batches(generator) -> iterable of shuffled training batches, with a length
    validate(model) -> score, lower is better; called after each epoch in eval mode without gradients
    keep(state_dict, epoch, score) is called at each new best; log(lines) once per epoch, with its line and those that
    could not be written before
    save(state) after every epoch, every `--save_minutes` and when a signal stops the run; given back as `state`, it
    continues the fit to the same bits
    score_first: the weights before the first step, epoch 0, are a candidate too
    processes: those that share the batches; `loss` sees the rows of this one, all take the same steps

    The weights of the best epoch stand in `model` at the end. With `--ema` the averaged weights are the ones
    scored and kept. Order, dropout and noise follow from (seed, epoch, step). No step waits for the device.
    Raises: FloatingPointError at the step whose loss or gradient is not finite; Stopped after a signal.
    """
    device = next(model.parameters()).device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    shared_loss = processes.parallel(_Loss(model, loss))  # from here on all have the weights of the first one
    optimizer = torch.optim.Adam(trained, lr=plan.lr, weight_decay=plan.weight_decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [max(1, round(DECAY_AT * plan.epochs))], gamma=plan.lr_decay
    )
    averaged = AveragedModel(model) if plan.ema else None
    scored = averaged.module if averaged else model
    averaged_weights = [weight for weight in scored.parameters() if weight.requires_grad]
    average = get_ema_multi_avg_fn(plan.ema)
    parts = {"model": model, "scored": scored, "optimizer": optimizer, "schedule": schedule}
    at = Progress(epoch=0 if score_first else 1)
    if state:
        with built_from("--resume: the saved state"):
            for name, part in parts.items():
                part.load_state_dict(state[name])
            at = Progress(**state["progress"])
    generator = torch.Generator()
    bar = tqdm(total=None, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty())
    clock, saved, unkept = time.perf_counter(), time.perf_counter(), state is not None

    def seconds() -> float:
        return at.seconds + time.perf_counter() - clock

    def save_progress(total=0.0) -> None:
        """Save, with the loss `total` of this process in the epoch."""
        nonlocal saved
        saved, summed = time.perf_counter(), float(processes.add(torch.as_tensor(total)))
        if save is not None:
            content = {name: part.state_dict() for name, part in parts.items()}
            _attempt(save, content | {"progress": vars(replace(at, loss=summed, seconds=seconds()))})

    def train_epoch(request) -> float:
        generator.manual_seed(int(key(plan.seed, at.epoch)) & ((1 << 63) - 1))
        epoch_batches = batches(generator)
        bar.total = bar.total or plan.epochs * len(epoch_batches)
        model.train()
        total = torch.tensor(at.loss if processes.first else 0.0, dtype=torch.float64, device=device)
        before = taken = _Step()
        for batch in itertools.islice(epoch_batches, at.step, None):
            seed_step(plan.seed, at.epoch, at.step)
            optimizer.zero_grad(set_to_none=True)
            value = shared_loss(batch)
            if processes.count > 1:
                value = value * batch.weight
            value.backward()
            finite = value.isfinite() & torch.nn.utils.get_total_norm(
                [weight.grad for weight in trained if weight.grad is not None]).isfinite()
            optimizer.step()
            if averaged and at.epoch == 1 and at.step == 0:
                averaged.update_parameters(model)  # copies; later on it would wait for the device
            elif averaged:
                average(averaged_weights, trained, None)
            total += value.detach() / processes.count
            before, taken = taken, _Step(finite, value.detach(), batch, f"epoch {at.epoch}, step {at.step}")
            at.step += 1
            bar.update()
            due = time.perf_counter() - saved > 60 * plan.save_minutes
            number, due, wrong = processes.largest(request.number, int(due), int(not before.finite))
            before.stop_if(wrong, processes)
            if number or due:
                taken.stop_unless_finite(processes)
                save_progress(total)
            if number:
                raise Stopped(number)
        taken.stop_unless_finite(processes)
        return float(processes.add(total)) / len(epoch_batches)

    with deferred() as request:
        while not at.done:
            epoch_start = time.perf_counter()
            train_loss = train_epoch(request) if at.epoch else None
            train_end, rate = time.perf_counter(), optimizer.param_groups[0]["lr"]
            scored.eval()
            with torch.no_grad():
                score = float(validate(scored))
            if score < at.best_score:
                at.best_score, at.best_epoch = score, at.epoch
                at.best_weights = {name: value.detach().clone() for name, value in scored.state_dict().items()}
                unkept = not _attempt(keep, at.best_weights, at.epoch, score)
            now = time.perf_counter()
            at.unlogged.append(dict(
                epoch=at.epoch, loss=train_loss, score=score, lr=rate, seconds_train=round(train_end - epoch_start, 3),
                seconds_validation=round(now - train_end, 3)))
            if _attempt(log, at.unlogged):
                at.unlogged = []
            note = f"epoch {at.epoch}/{plan.epochs}  score {score:.4f}  best {at.best_score:.4f}"
            if at.epoch:
                schedule.step()
                note += f"  loss {train_loss:.4f}"
            if bar.disable and at.epoch:
                left = seconds() / at.epoch * (plan.epochs - at.epoch)
                note += f"  {seconds():.0f} s, at most {left:.0f} s left"
            if bar.disable:
                print(note, flush=True)
            bar.set_description_str(note)
            at.done = at.epoch - at.best_epoch >= plan.patience or at.epoch == plan.epochs
            at.epoch, at.step, at.loss = at.epoch + (not at.done), 0, 0.0
            save_progress()
            number, = processes.largest(request.number)
            if number:
                raise Stopped(number)
    bar.close()
    if at.best_weights is None:
        raise FloatingPointError("no validation score was finite; try a smaller learning rate")
    if at.unlogged:
        log(at.unlogged)
    if unkept:
        keep(at.best_weights, at.best_epoch, at.best_score)
    model.load_state_dict(at.best_weights)
    model.eval()
    return FitResult(at.best_score, at.best_epoch, at.epoch, seconds())


class _Loss(nn.Module):
    """A loss and the module whose weights it trains, as one module."""

    def __init__(self, model: nn.Module, loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch):
        return self.loss(batch)


@dataclass(frozen=True)
class _Step:
    """A step that was taken. It is looked at one step later, while the device is busy with the next one.

    finite: whether the loss of this process and all gradients were, as a tensor on the device.
    """

    finite: Tensor | bool = True
    value: Tensor | None = None
    batch: object = None
    where: str = ""

    def stop_unless_finite(self, processes: Processes) -> None:
        wrong, = processes.largest(int(not self.finite))
        self.stop_if(wrong, processes)

    def stop_if(self, wrong: int, processes: Processes) -> None:
        """Raises: FloatingPointError that names the batch, where the step was `wrong` in one of the processes."""
        if not wrong:
            return
        windows = processes.join_rows(self.batch.start).tolist()
        value = float(processes.add(self.value)) / processes.count
        raise FloatingPointError(
            f"{self.where}: the loss is {value:g}" + (", a gradient is not finite" if math.isfinite(value) else "") +
            f"; its batch holds the windows that begin at time steps {', '.join(map(str, windows))}. Look at the data "
            "there, or try a smaller learning rate; the best weights so far are kept"
        )


def _attempt(write, *content) -> bool:
    """Write a file that training can do without for now; whether it went well."""
    try:
        write(*content)
    except OSError as error:
        print(f"warning: could not save: {error}; training goes on and tries again", file=sys.stderr)
        return False
    return True
