"""The loop finds the solution, keeps the best weights, stops early, and is repeatable bit by bit."""

import dataclasses
import io
import itertools
import math
import sys
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from conftest import random_values, with_gaps

import main_pretrain
from models import MEAN_MODELS
from utils import pipeline
from utils.config import CommonConfig
from utils.training import loop
from utils.training.checkpoint import load_checkpoint
from utils.training.loop import Goal, fit

INPUTS = torch.randn(256, 3, generator=torch.Generator().manual_seed(3))
TRUTH = torch.tensor([1.5, -2.0, 0.5])
TARGETS = INPUTS @ TRUTH + 4
STAGE = {"epochs": 5, "lr": 0.05, "ema": 0.0}
CONFIG = CommonConfig(patience=5, lr_decay=0.4, weight_decay=0.0, save_minutes=10.0, seed=0)


def batches(generator):
    return TensorBatches(torch.randperm(256, generator=generator).split(32))


class TensorBatches(list):
    """Batches of indices as a list: iterable, with a length."""

    def __init__(self, parts):
        super().__init__(Windows(INPUTS[part], TARGETS[part], part) for part in parts)


class Windows(NamedTuple):
    """What the loop knows of a batch is where its windows start."""

    inputs: torch.Tensor
    targets: torch.Tensor
    start: torch.Tensor


class Memory:
    """A run that writes nothing: what it was given to keep, as it was then, and the lines of its log."""

    state = None

    def __init__(self):
        self.kept, self.given, self.lines = [], [], []

    def keep(self, state, epoch, score):
        self.given.append(state)
        self.kept.append((epoch, score, {name: value.clone() for name, value in state.items()}))

    def log(self, lines):
        self.lines = list(lines)

    def save(self, state):
        pass


def fitted(model, loss=None, batches=batches, validate=lambda scored: 1.0, stage=STAGE, **options) -> Memory:
    """What a fit leaves."""
    goal = Goal(loss or squared_error(model), batches, validate, **stage)
    fit(model, goal, CONFIG, run := Memory(), **options)
    return run


def squared_error(model):
    return lambda batch: (model(batch.inputs).squeeze(1) - batch.targets).square().mean()


class Run(Memory):
    """A fit of a linear model. `scores` replace the validation loss."""

    def __init__(self, scores=None, dropout=0.0, least_gain=None, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Dropout(dropout), torch.nn.Linear(3, 1))
        self.modes, self.scored = [], []
        scores = scores and iter(scores)

        def loss(batch):
            self.modes.append(("train", self.model.training, torch.is_grad_enabled()))
            return squared_error(self.model)(batch)

        def validate(scored):
            self.modes.append(("validate", scored.training, torch.is_grad_enabled()))
            self.scored.append(weights(scored))
            error = (scored(INPUTS).squeeze(1) - TARGETS).square().mean()
            return next(scores) if scores else error

        stage = {name: settings.pop(name, default) for name, default in STAGE.items()}
        goal = Goal(loss, batches, validate, **stage, least_gain=least_gain)
        self.result = fit(self.model, goal, dataclasses.replace(CONFIG, **settings), self)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# The solution and the best weights

def test_a_linear_regression_is_solved():
    run = Run(epochs=30, patience=30, lr=0.2, lr_decay=0.2)
    linear = run.model[1]
    assert torch.allclose(linear.weight[0], TRUTH, atol=1e-3) and linear.bias.item() == pytest.approx(4, abs=1e-3)
    assert run.result.best_loss < 1e-5 and run.lines[0]["training_loss"] > 1
    assert run.result.epoch == 30 and run.result.seconds > 0


def test_the_weights_of_the_best_epoch_stand_in_the_model_at_the_end():
    run = Run(scores=[3.0, 1.0, 2.0, 1.5, 1.2])
    assert (run.result.best_epoch, run.result.best_loss, run.result.epoch) == (2, 1.0, 5)
    assert [(epoch, score) for epoch, score, _ in run.kept] == [(1, 3.0), (2, 1.0)]
    assert same(weights(run.model), run.kept[-1][2]) and same(weights(run.model), run.scored[1])
    assert not same(weights(run.model), run.scored[-1])
    assert not run.model.training


def test_what_was_kept_does_not_change_with_later_training():
    scores = itertools.count(1)
    model = torch.nn.Linear(3, 1)
    run = fitted(model, validate=lambda scored: float(next(scores)))
    assert len(run.kept) == 1 and same(run.given[0], run.kept[0][2]) and same(weights(model), run.given[0])


def test_an_equal_score_is_no_better_one():
    assert Run(scores=[1.0] * 5).result.best_epoch == 1


# The weights before the first step

def test_the_untrained_weights_are_a_candidate_when_they_are_scored_first(capsys):
    run = Run(scores=[1.0, 2.0, 3.0, 2.5, 2.0, 1.5], least_gain=0.0)
    assert (run.result.best_epoch, run.result.best_loss, run.result.epoch) == (0, 1.0, 5)
    assert [(epoch, score) for epoch, score, _ in run.kept] == [(0, 1.0)]
    torch.manual_seed(0)
    assert same(weights(run.model), weights(torch.nn.Sequential(torch.nn.Dropout(0.0), torch.nn.Linear(3, 1))))
    assert [line["epoch"] for line in run.lines] == [0, 1, 2, 3, 4, 5]
    assert run.lines[0]["training_loss"] is None and all(line["training_loss"] > 0 for line in run.lines[1:])
    assert capsys.readouterr().out.startswith("epoch 0/5  validation loss 1.0000")


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_scoring_first_changes_nothing_in_training(ema):
    plain, first = Run(dropout=0.3, ema=ema), Run(dropout=0.3, ema=ema, least_gain=0.0)
    assert same(weights(plain.model), weights(first.model)) and plain.result.best_loss == first.result.best_loss
    assert plain.result.best_epoch == first.result.best_epoch
    for one, other in zip(plain.lines, first.lines[1:], strict=True):
        for name in ("training_loss", "validation_loss", "lr"):
            assert one[name] == other[name]


def test_patience_counts_from_the_untrained_weights_when_they_are_the_best():
    run = Run(scores=[1.0, 2.0, 2.0, 0.5], least_gain=0.0, patience=2)
    assert (run.result.epoch, run.result.best_epoch) == (2, 0)


@pytest.mark.parametrize("scores, best, epoch", [
    ([1.0, 0.97, 0.98, 0.96, 0.97], 0, 5), ([1.0, 0.97, 0.94, 0.93, 0.95], 3, 5), ([1.0, 1.1, 0.94, 0.95, 0.96], 2, 4),
    ([1.0, 0.97, 0.98, 0.98, 0.9], 0, 3),
])
def test_small_gains_do_not_replace_the_untrained_weights_but_count_for_patience(scores, best, epoch):
    run = Run(scores=[*scores, 2.0], least_gain=0.05, patience=2)
    assert (run.result.best_epoch, run.result.best_loss, run.result.epoch) == (best, scores[best], epoch)
    assert run.kept[-1][0] == best and same(weights(run.model), run.kept[-1][2])


# Stopping

@pytest.mark.parametrize("scores, patience, epochs, best", [
    ([5, 4, 3, 2, 1], 1, 5, 5), ([1, 2, 3, 4, 5], 1, 2, 1), ([1, 2, 3, 4, 5], 3, 4, 1), ([3, 4, 2, 4, 4], 2, 5, 3),
    ([3, 4, 4, 1, 1], 2, 3, 1), ([2, math.nan, math.nan, 1, 1], 2, 3, 1), ([math.nan, 2, 3, 4, 5], 2, 4, 2),
])
def test_training_stops_after_as_many_epochs_without_a_better_score_as_patience_says(scores, patience, epochs, best):
    run = Run(scores=[float(score) for score in scores], patience=patience)
    assert (run.result.epoch, run.result.best_epoch, len(run.lines)) == (epochs, best, epochs)


def test_scores_that_are_never_finite_end_the_run_with_an_error_and_keep_nothing():
    model, run = torch.nn.Linear(3, 1), Memory()
    with pytest.raises(FloatingPointError, match="no validation loss was finite; try a smaller learning rate"):
        fit(model, Goal(squared_error(model), batches, lambda scored: math.nan, **STAGE), CONFIG, run)
    assert not run.kept


@pytest.mark.parametrize("bad, at", [(math.nan, 3), (math.inf, 3), (math.inf, 7)])
def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_good_weights_stay(bad, at):
    steps = itertools.count()
    orders, run = [], Memory()
    model = torch.nn.Linear(3, 1)

    def recorded(generator):
        orders.append(batches(generator))
        return orders[-1]

    def loss(batch):
        value = model(batch[0]).square().mean()
        return value * bad if next(steps) == 8 + at else value  # 8 steps an epoch: in the second

    with pytest.raises(FloatingPointError, match=f"epoch 2, step {at}: the loss is {bad}; its batch") as caught:
        fit(model, Goal(loss, recorded, lambda scored: 1.0, **STAGE), CONFIG, run)
    assert f"time steps {', '.join(map(str, orders[1][at].start.tolist()))}. Look at" in str(caught.value)
    assert [epoch for epoch, *_ in run.kept] == [1]
    assert all(value.isfinite().all() for value in run.given[0].values())


# Modes, learning rate, log

def test_training_runs_with_dropout_and_gradients_and_validation_without():
    run = Run(epochs=2, dropout=0.5)
    assert set(run.modes) == {("train", True, True), ("validate", False, False)}
    assert [mode for mode, *_ in run.modes] == (["train"] * 8 + ["validate"]) * 2


@pytest.mark.parametrize("epochs, full", [(1, 1), (2, 1), (5, 2), (10, 4), (12, 5)])
def test_the_learning_rate_falls_once_after_40_percent_of_the_epochs(epochs, full):
    run = Run(epochs=epochs, patience=99, lr=0.01, lr_decay=0.25)
    assert [line["lr"] for line in run.lines] == pytest.approx([0.01] * full + [0.0025] * (epochs - full))


def test_the_logged_learning_rate_is_the_one_that_the_epoch_was_trained_with():
    """With a decay to almost nothing, the weights stand still in exactly the epochs that log the low rate."""
    run = Run(epochs=5, patience=99, lr=0.01, lr_decay=1e-9)
    moved = [float((now["1.weight"] - before["1.weight"]).abs().max()) > 1e-5
             for before, now in itertools.pairwise(run.scored)]
    assert moved == [line["lr"] > 1e-5 for line in run.lines[1:]] == [True, False, False, False]


def test_weight_decay_pulls_the_weights_to_zero():
    free, pulled = (Run(epochs=12, patience=99, weight_decay=decay).model[1].weight.norm() for decay in (0.0, 10.0))
    assert pulled < 0.5 * free


def test_a_line_is_logged_for_each_epoch_with_loss_score_rate_and_seconds(capsys):
    run = Run(epochs=3, patience=99)
    assert [line["epoch"] for line in run.lines] == [1, 2, 3]
    for line in run.lines:
        assert list(line) == [
            "epoch", "training_loss", "validation_loss", "lr", "seconds_train", "seconds_validation"]
        assert all(isinstance(value, (int, float)) for value in line.values())
    assert run.lines[-1]["training_loss"] < run.lines[0]["training_loss"]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 and printed[0].startswith("epoch 1/3  validation loss ")
    assert "  training loss " in printed[0]


def test_on_a_terminal_every_epoch_keeps_its_line_below_which_a_bar_shows_the_steps(capsys, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    Run(epochs=3, patience=99)
    assert [line[:10] for line in capsys.readouterr().out.splitlines()] == ["epoch 1/3 ", "epoch 2/3 ", "epoch 3/3 "]
    assert all(f"\repoch {epoch}/3" in terminal.getvalue() for epoch in (1, 2, 3)) and "/8 [" in terminal.getvalue()


def test_the_time_left_is_estimated_without_the_first_epoch(capsys, monkeypatch):
    """Of 8 steps an epoch the very first takes 93 seconds, all others one."""
    model, seconds = torch.nn.Linear(3, 1), [0]

    def loss(batch):
        seconds.append(seconds[-1] + (93 if len(seconds) == 1 else 1))
        return squared_error(model)(batch)

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: seconds[-1]))
    fitted(model, loss)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("  100 s, at most 400 s left") and lines[1].endswith("  108 s, at most 24 s left")


# Averaged weights

def test_the_averaged_weights_are_the_ones_scored_and_kept():
    """Against the recursion, averaged = ema * averaged + (1 - ema) * weights, over the weights after each step."""
    steps = []

    def validate(scored):
        return -float(len(steps))

    def loss(batch):
        steps.append(model.weight.detach().clone())
        return squared_error(model)(batch)

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    fitted(model, loss, validate=validate, stage=STAGE | {"epochs": 1})
    steps = [*steps[1:], model.weight.detach().clone()]
    expected = steps[0]
    for step in steps[1:]:
        expected = 0.9 * expected + 0.1 * step
    assert len(steps) == 8 and not torch.allclose(expected, steps[-1], atol=1e-3)

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    scored_weights = []
    run = fitted(model, loss, validate=lambda scored: scored_weights.append(weights(scored)) or 1.0,
                 stage=STAGE | {"epochs": 1, "ema": 0.9})
    assert torch.allclose(model.weight, expected, atol=1e-6)
    assert same(weights(model), run.given[0]) and same(weights(model), scored_weights[0])


# Repeatability

def test_the_same_seed_gives_the_same_weights_to_the_bit_and_another_seed_others():
    one, again, other = Run(dropout=0.3, seed=1), Run(dropout=0.3, seed=1), Run(dropout=0.3, seed=2)
    assert same(weights(one.model), weights(again.model)) and one.result.best_loss == again.result.best_loss
    assert not same(weights(one.model), weights(other.model))


def test_what_validation_draws_does_not_change_training():
    quiet = Run(dropout=0.3, scores=[5.0, 4.0, 3.0, 2.0, 1.0])

    def noisy():
        for score in (5.0, 4.0, 3.0, 2.0, 1.0):
            torch.rand(17)
            yield score

    assert same(weights(quiet.model), weights(Run(dropout=0.3, scores=noisy()).model))


def test_each_epoch_has_an_order_of_its_own_that_holds_every_batch():
    orders = []

    def recorded(generator):
        order = torch.randperm(256, generator=generator)
        orders.append(order.tolist())
        return TensorBatches(order.split(32))

    model = torch.nn.Linear(3, 1)
    fitted(model, batches=recorded)
    assert len(orders) == 5 and len({tuple(order) for order in orders}) == 5
    assert all(sorted(order) == list(range(256)) for order in orders)


def test_frozen_parameters_are_not_trained():
    model = torch.nn.Linear(3, 1)
    model.bias.requires_grad_(False)
    before = weights(model)
    fitted(model)
    assert torch.equal(model.bias, before["bias"]) and not torch.equal(model.weight, before["weight"])


# Leakage

def test_stage_1_weights_see_nothing_after_the_training_part(registered, tmp_path, monkeypatch, capsys):
    """With a validation loss that does not look at the data, all that training leaves is bitwise the same."""
    values = random_values(120, 4)
    end = 66 + 6 + 4  # 111 windows, 67 of them for training: the last begins at step 66
    after, inside = values.copy(), values.copy()
    after[end:] += 1000
    inside[end - 1] += 1
    trained = {}
    for name, variant in (("Plain", values), ("After", after), ("Inside", inside)):
        falling = itertools.count()
        monkeypatch.setattr(pipeline, "mean_over_windows", lambda *a, falling=falling: -float(next(falling)))
        folder = registered(variant, name)
        assert main_pretrain.main([
            "--data_name", name, "--data_dir", str(folder), "--save_dir", str(tmp_path / "runs"), "--device", "cpu",
            "--history_len", "6", "--predict_len", "4", "--epochs", "3", "--channels", "4", "--layers", "2",
            "--no-recalibrate", "--linear_modes", "0", "--base", "none",
        ]) == 0
        content = load_checkpoint(tmp_path / f"runs/mean/{name}_6_4/model.pt")
        assert content["epoch"] == 3
        trained[name] = content
    assert same(trained["Plain"]["weights"], trained["After"]["weights"])
    assert trained["Plain"]["data"] == trained["After"]["data"]
    assert not same(trained["Plain"]["weights"], trained["Inside"]["weights"])
    assert trained["Plain"]["data"] != trained["Inside"]["data"]


# Networks of stage 1

@pytest.mark.parametrize("backbone", MEAN_MODELS)
def test_every_backbone_learns_in_a_compiled_run_what_it_learns_in_a_plain_one(backbone, registered, tmp_path,
                                                                                monkeypatch):
    """Two networks, gaps, lags. aot_eager traces as the default compiler does, and generates no code: that is slow."""
    compile_of_torch = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_of_torch(self, backend="aot_eager"))
    folder, found = registered(with_gaps(random_values(120, 4))), {}
    for name in ("no-compile", "compile"):
        assert main_pretrain.main([
            "--data_name", "Tiny", "--data_dir", str(folder), "--save_dir", str(tmp_path / name), "--device", "cpu",
            "--history_len", "6", "--predict_len", "4", "--epochs", "2", "--channels", "4", "--layers", "1",
            "--lags", "8", "--missing", "mask", "--batch_size", "32", "--networks", "2", "--mean_model", backbone,
            "--dropout", "0", f"--{name}",
        ]) == 0
        found[name] = load_checkpoint(tmp_path / name / "mean/Tiny_6_4/model.pt")["weights"]
    assert found["compile"].keys() == found["no-compile"].keys(), "names of weights do not depend on it"
    for name, value in found["no-compile"].items():
        torch.testing.assert_close(found["compile"][name], value, rtol=1e-3, atol=1e-4)
