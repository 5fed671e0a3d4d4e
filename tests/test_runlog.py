"""The log of a run in TensorBoard, where it is wanted."""

import resource
import sys
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.config import TrainConfig
from utils.training.checkpoint import settings
from utils.training.runlog import print_scores, tensorboard_log


def line(epoch, score, loss=0.5):
    return {"epoch": epoch, "training_loss": loss, "validation_loss": score}


def shown(folder):
    """What TensorBoard reads: the (epoch, value) pairs of every curve."""
    found = EventAccumulator(str(folder))
    found.Reload()
    return {name: [(event.step, pytest.approx(event.value)) for event in found.Scalars(name)]
            for name in found.Tags()["scalars"]}


def test_nothing_is_written_unless_wanted(tmp_path):
    tensorboard_log(tmp_path, wanted=False)(line(0, 1.0))
    assert not list(tmp_path.iterdir())


def test_tensorboard_shows_the_numbers_of_every_line_by_epoch(tmp_path):
    show = tensorboard_log(tmp_path, wanted=True)
    for each in (line(0, 1.0, loss=None), line(1, 0.7), line(2, 0.6)):
        show(each)
    assert shown(tmp_path) == {"validation_loss": [(0, 1.0), (1, 0.7), (2, 0.6)], "training_loss": [(1, 0.5), (2, 0.5)]}


def test_epochs_that_come_again_replace_those_that_stood_there(tmp_path):
    for epochs, score in (((0, 1, 2, 3), 1.0), ((2, 3, 4), 2.0)):
        show = tensorboard_log(tmp_path, wanted=True)
        for epoch in epochs:
            show(line(epoch, score))
    assert shown(tmp_path)["validation_loss"] == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]


def test_a_disk_that_is_full_is_told_once_and_ends_no_run(tmp_path, capsys):
    show = tensorboard_log(tmp_path, wanted=True)
    show(line(0, 1.0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
        for epoch in range(1, 5):
            show(line(epoch, 1.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert said.startswith(f"warning: --tensorboard: could not write in {tmp_path}: [Errno 27]")
    assert said.count("\n") == 1


def test_without_the_package_the_flag_says_what_to_install_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="--tensorboard needs the package tensorboard"):
        tensorboard_log(tmp_path, wanted=True)
    assert not list(tmp_path.iterdir())


def test_intervals_that_are_too_narrow_are_said_beside_the_scores(capsys):
    scores = {"split": "test", "windows": 5, "members": 50, "coverage90_floor": 0.88, "seconds_sample": 1.0}
    for coverage, said in ((0.60, True), (0.86, False), (0.99, False)):
        print_scores({**scores, "coverage90": coverage}, "m")
        note = "intervals hold 60% of the observations, those of a calibrated ensemble 88%"
        assert (note in capsys.readouterr().out) == said


def test_the_flag_makes_no_other_run_of_it():
    assert settings(TrainConfig()) == settings(replace(TrainConfig(), tensorboard=True))
