"""The only training loop."""

import copy
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from utils.config import CommonConfig
from utils.program import Stopped, deferred
from utils.training.checkpoint import built_from
from utils.training.distributed import SINGLE_PROCESS, Processes
from utils.training.reproducibility import seed_of, seed_step
from utils.training.runs import Run

DECAY_AT = 0.4  # share of the epochs after which the learning rate falls once


@dataclass(frozen=True)
class Goal:
    """What a fit minimises, what its epochs are compared by, and the flags of its stage alone.

    loss(batch) -> scalar tensor; the parameters that require a gradient are trained
    batches(generator) -> iterable of shuffled training batches, with a length; a process loads its rows of each
    validate(model) -> validation loss; called after each epoch in eval mode without gradients
    epochs, lr, ema: at most so many epochs, the learning rate of Adam, decay of the averaged weights (0: off)
    least_gain: where given, the weights before the first step, epoch 0, are a candidate too; they are kept unless the
                validation loss falls by more than this share of it
    """

    loss: Callable
    batches: Callable
    validate: Callable
    epochs: int
    lr: float
    ema: float
    least_gain: float | None = None


@dataclass
class Progress:
    """Where a fit stands: next `step` of the epoch, sum of the `loss` before it, `lines` of the log.

    best: the weights that are kept; lowest: the lowest validation loss, from which patience counts.
    """

    epoch: int
    step: int = 0
    loss: float = 0.0
    best_loss: float = float("inf")
    best_epoch: int = 0
    best_weights: dict | None = None
    lowest_loss: float = float("inf")
    lowest_epoch: int = 0
    done: bool = False
    seconds: float = 0.0
    lines: list = field(default_factory=list)


def fit(model: nn.Module, goal: Goal, config: CommonConfig, run: Run,
        processes: Processes = SINGLE_PROCESS) -> Progress:
    """Train `model`, keep its best weights in `run`, stop early; resume bit-exactly from the state of `run`.

    The weights of the best epoch are in `model` at the end. With `ema` the averaged weights are scored and kept.
    Order, dropout and noise follow from (seed, epoch, step). config: the flags that both stages share; processes: those
    that share the batches.
    Raises: FloatingPointError at the step whose loss or gradient is not finite; Stopped after a signal.
    """
    fitting = _Fit(model, goal, config, run, processes)
    with deferred() as request:
        while not fitting.at.done:
            fitting.run_epoch(request)
    return fitting.finish()


class _Fit:
    """A fit in progress: networks, optimiser, `at` where it stands, and the clocks of what is printed and saved."""

    def __init__(self, model: nn.Module, goal: Goal, config: CommonConfig, run: Run, processes: Processes):
        self.model, self.goal, self.config, self.run, self.processes = model, goal, config, run, processes
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.loss = processes.parallel(_Loss(model, goal.loss))  # from here on all have the weights of the first one
        self.optimizer = torch.optim.Adam(self.trained, lr=goal.lr, weight_decay=config.weight_decay)
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(
            self.optimizer, [max(1, round(DECAY_AT * goal.epochs))], gamma=config.lr_decay)
        self.scored = copy.deepcopy(model) if goal.ema else model  # with the averaged weights
        self.averaged = [weight for weight in self.scored.parameters() if weight.requires_grad]
        self.parts = {"model": model, "scored": self.scored, "optimizer": self.optimizer, "schedule": self.schedule}
        self.at = Progress(epoch=1 if goal.least_gain is None else 0)
        if run.state:
            with built_from("--resume: the saved state"):
                for name, part in self.parts.items():
                    part.load_state_dict(run.state[name])
                self.at = Progress(**run.state["progress"])
        self.unkept = run.state is not None
        self.bar = tqdm(unit="step", dynamic_ncols=True, leave=False, disable=not sys.stderr.isatty())
        self.started = self.saved = time.perf_counter()
        self.epoch_seconds = []  # of the epochs of this program

    def seconds(self) -> float:
        return self.at.seconds + time.perf_counter() - self.started

    def run_epoch(self, request) -> None:
        """Train for an epoch (none in epoch 0), validate, keep, log, print and save. Raises: Stopped."""
        at, start = self.at, time.perf_counter()
        training_loss = self.train_epoch(request) if at.epoch else None
        train_end, rate = time.perf_counter(), self.optimizer.param_groups[0]["lr"]
        validation_loss = self.validate()
        now = time.perf_counter()
        at.lines.append(dict(
            epoch=at.epoch, training_loss=training_loss, validation_loss=validation_loss, lr=rate,
            seconds_train=round(train_end - start, 3), seconds_validation=round(now - train_end, 3)))
        _attempt(self.run.log, at.lines)
        if at.epoch:
            self.schedule.step()
            self.epoch_seconds.append(now - start)
        self.print_epoch(training_loss, validation_loss)
        at.done = at.epoch - at.lowest_epoch >= self.config.patience or at.epoch == self.goal.epochs
        at.epoch, at.step, at.loss = at.epoch + (not at.done), 0, 0.0
        self.save()
        number, = self.processes.largest(request.number)
        if number:
            raise Stopped(number)

    def train_epoch(self, request) -> float:
        """Take the steps of an epoch that are left: its training loss. Raises: Stopped, after saving."""
        at, processes = self.at, self.processes
        batches = self.goal.batches(torch.Generator().manual_seed(seed_of(self.config.seed, at.epoch)))
        self.bar.set_description_str(f"epoch {at.epoch}/{self.goal.epochs}", refresh=False)
        self.bar.reset(len(batches))
        self.bar.update(at.step)
        self.model.train()
        total = torch.tensor(at.loss if processes.first else 0.0, dtype=torch.float64,
                             device=next(self.model.parameters()).device)
        before = taken = _Step()
        for batch in itertools.islice(batches, at.step, None):
            before, taken = taken, self.take_step(batch)
            total += taken.value / processes.count
            at.step += 1
            self.bar.update()
            due = time.perf_counter() - self.saved > 60 * self.config.save_minutes
            number, due, wrong = processes.largest(request.number, int(due), int(not before.finite))
            before.stop_if(wrong, processes)
            if number or due:
                taken.stop_unless_finite(processes)
                self.save(total)
            if number:
                raise Stopped(number)
        taken.stop_unless_finite(processes)
        return float(processes.add(total)) / len(batches)

    def take_step(self, batch) -> "_Step":
        at = self.at
        seed_step(self.config.seed, at.epoch, at.step)
        self.optimizer.zero_grad(set_to_none=True)
        value = self.loss(batch)
        if self.processes.count > 1:
            value = value * batch.weight
        value.backward()
        finite = value.isfinite() & torch.nn.utils.get_total_norm(
            [weight.grad for weight in self.trained if weight.grad is not None]).isfinite()
        self.optimizer.step()
        if self.goal.ema:
            decay = 0.0 if at.epoch == 1 and at.step == 0 else self.goal.ema  # it begins with the first step's weights
            get_ema_multi_avg_fn(decay)(self.averaged, self.trained, None)
        return _Step(finite, value.detach(), batch, f"epoch {at.epoch}, step {at.step}")

    @torch.no_grad()
    def validate(self) -> float:
        """The validation loss; weights that are better than all before are kept, see `Goal.least_gain`."""
        at = self.at
        self.scored.eval()
        loss = float(self.goal.validate(self.scored))
        if loss < at.lowest_loss:
            at.lowest_loss, at.lowest_epoch = loss, at.epoch
        least_gain = self.goal.least_gain if at.best_weights and at.best_epoch == 0 else 0.0
        if loss < at.best_loss * (1 - least_gain):
            at.best_loss, at.best_epoch = loss, at.epoch
            at.best_weights = {name: value.detach().clone() for name, value in self.scored.state_dict().items()}
            self.unkept = not _attempt(self.run.keep, at.best_weights, at.epoch, loss)
        return loss

    def save(self, total: Tensor | float = 0.0) -> None:
        """Save the state, with the loss `total` of this process in the epoch."""
        self.saved, total = time.perf_counter(), float(self.processes.add(torch.as_tensor(total)))
        progress = vars(replace(self.at, loss=total, seconds=self.seconds()))
        _attempt(self.run.save,
                 {name: part.state_dict() for name, part in self.parts.items()} | {"progress": progress})

    def print_epoch(self, training_loss: float | None, validation_loss: float) -> None:
        """Print the line of an epoch; the first one, which starts things up, counts in no estimate."""
        at, goal = self.at, self.goal
        line = f"epoch {at.epoch}/{goal.epochs}  validation loss {validation_loss:.4f}  best {at.best_loss:.4f}"
        if at.epoch:
            left = statistics.median(self.epoch_seconds[1:] or self.epoch_seconds) * (goal.epochs - at.epoch)
            line += f"  training loss {training_loss:.4f}  {self.seconds():.0f} s, at most {left:.0f} s left"
        self.bar.clear()
        print(line, flush=True)
        self.bar.refresh()

    def finish(self) -> Progress:
        """Put the best weights into the model, and write what could not be written before.

        Raises: FloatingPointError where no epoch gave any.
        """
        at = self.at
        self.bar.close()
        if at.best_weights is None:
            raise FloatingPointError("no validation loss was finite; try a smaller learning rate")
        self.run.log(at.lines)
        if self.unkept:
            self.run.keep(at.best_weights, at.best_epoch, at.best_loss)
        self.model.load_state_dict(at.best_weights)
        self.model.eval()
        return replace(at, seconds=self.seconds())


class _Loss(nn.Module):
    """A loss and the module whose weights it trains, as one module."""

    def __init__(self, model: nn.Module, loss: Callable):
        super().__init__()
        self.model, self.forward = model, loss


@dataclass(frozen=True)
class _Step:
    """A step that was taken, and whether all was finite; it is looked at while the device is busy with the next one."""

    finite: Tensor | bool = True
    value: Tensor | None = None
    batch: object = None
    where: str = ""

    def stop_unless_finite(self, processes: Processes) -> None:
        self.stop_if(*processes.largest(int(not self.finite)), processes)

    def stop_if(self, wrong: int, processes: Processes) -> None:
        """Raises: FloatingPointError that names the batch, where the step was `wrong` in one of the processes."""
        if not wrong:
            return
        windows = processes.join_rows(self.batch.start).tolist()
        value = float(processes.add(self.value)) / processes.count
        raise FloatingPointError(
            f"{self.where}: the loss is {value:g}" + (", a gradient is not finite" if math.isfinite(value) else "") +
            f"; its batch holds the windows that begin at time steps {', '.join(map(str, windows))}. Look at the data "
            "there, or try a smaller learning rate; the best weights so far, if any, are kept")


def _attempt(write, *content) -> bool:
    """Write what training can do without for now: whether it went well."""
    try:
        write(*content)
    except OSError as error:
        print(f"warning: could not save: {error}; training continues and tries again", file=sys.stderr)
        return False
    return True
