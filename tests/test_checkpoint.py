"""A run folder holds whole files: the old one or the new one, numbers and never code, and no run is lost."""

import dataclasses
import errno
import json
import os
import pickle
import zipfile

import pytest
import torch

from utils import checkpoint
from utils.checkpoint import load_checkpoint, open_run, run_folder, save_checkpoint, write_atomically
from utils.config import PretrainConfig, TrainConfig

CONTENT = {"stage": "mean", "config": {"lr": 1e-3, "data_name": "SST"}, "weights": {"a": torch.arange(6.0)}}


class Payload:
    """Unpickled, it makes a folder: the mark of code that ran."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def refusal(path) -> str:
    with pytest.raises(ValueError) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    return str(caught.value)


def files(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Whole files

def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    save_checkpoint(tmp_path / "model.pt", CONTENT)
    content = load_checkpoint(tmp_path / "model.pt")
    assert content["format"] == checkpoint.FORMAT_VERSION and content["config"] == CONTENT["config"]
    assert torch.equal(content["weights"]["a"], CONTENT["weights"]["a"])
    assert list(files(tmp_path)) == ["model.pt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt(), RuntimeError("writer")])
def test_a_write_that_fails_leaves_the_old_file_whole_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / "model.pt"
    save_checkpoint(path, CONTENT)
    before = files(tmp_path)

    def write(file):
        file.write(b"half")
        file.flush()
        assert len(list(tmp_path.iterdir())) == 2 and path.read_bytes() == before["model.pt"]
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert files(tmp_path) == before


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_at_the_last_moment_leaves_the_old_file_whole_too(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.json"
    checkpoint.write_json(path, {"old": 1})

    def fail(*arguments):
        raise OSError("no")

    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (type(path), "replace")), fail)
    with pytest.raises(OSError, match="no"):
        checkpoint.write_json(path, {"new": 2})
    monkeypatch.undo()
    assert list(files(tmp_path)) == ["a.json"] and json.loads(path.read_text()) == {"old": 1}


def test_the_file_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("fsync"), fsync(number))[1])
    monkeypatch.setattr(type(tmp_path), "replace",
                        lambda path, target: (order.append("rename"), replace(path, target))[1])
    checkpoint.write_json(tmp_path / "a.json", {})
    assert order == ["fsync", "rename"]


def test_a_log_grows_by_whole_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    for epoch in (1, 2, 3):
        checkpoint.append_line(path, {"epoch": epoch, "note": "ü" * 10_000})
        content = path.read_bytes()
        assert content.endswith(b"\n") and content.count(b"\n") == epoch
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2, 3]


# What is refused

def test_a_missing_checkpoint_is_missing_and_not_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path, keep):
    path = tmp_path / "model.pt"
    save_checkpoint(path, CONTENT)
    whole = path.read_bytes()
    path.write_bytes(whole[:int(keep * len(whole)) if isinstance(keep, float) else keep])
    assert "not a readable checkpoint" in refusal(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"epoch,loss\n1,2\n", b"\x00" * 400, pickle.dumps({"format": 1})],
                         ids=["text", "zeros", "pickle"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    assert "not a" in refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [{"a": torch.ones(2)}, [1, 2], torch.ones(3), {"format": "1"}, {"format": None}])
def test_a_checkpoint_of_another_project_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    assert "not a checkpoint of this project" in refusal(tmp_path / "model.pt")


def test_a_newer_format_is_refused_with_both_versions(tmp_path):
    torch.save({"format": checkpoint.FORMAT_VERSION + 41, **CONTENT}, tmp_path / "model.pt")
    message = refusal(tmp_path / "model.pt")
    assert f"version {checkpoint.FORMAT_VERSION + 41}" in message
    assert f"reads {checkpoint.FORMAT_VERSION}" in message


def test_an_older_format_is_refused_and_says_what_to_do(tmp_path):
    torch.save({"format": checkpoint.FORMAT_VERSION - 1, **CONTENT}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"format version {checkpoint.FORMAT_VERSION - 1}.*train it again"):
        checkpoint.load_checkpoint(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("layout", ["torch", "legacy torch", "bare pickle", "inside a checkpoint"])
def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path, layout):
    path, mark = tmp_path / "model.pt", tmp_path / "ran"
    if layout == "bare pickle":
        path.write_bytes(pickle.dumps(Payload(mark)))
    elif layout == "inside a checkpoint":
        save_checkpoint(path, {**CONTENT, "config": {"lr": Payload(mark)}})
    else:
        torch.save(Payload(mark), path, _use_new_zipfile_serialization=layout == "torch")
    assert "not a readable checkpoint" in refusal(path)
    assert not mark.exists()
    if layout == "torch":
        with zipfile.ZipFile(path) as archive:
            name, = (name for name in archive.namelist() if name.endswith("data.pkl"))
            pickle.loads(archive.read(name))
        assert mark.exists()  # the payload was live


# Run folders

CONFIGS = {"mean": PretrainConfig(), "diffusion": TrainConfig()}


def finish(folder, config):
    """What a finished run leaves behind."""
    assert open_run(folder, config, {})
    save_checkpoint(folder / checkpoint.CHECKPOINT, CONTENT)
    checkpoint.append_line(folder / checkpoint.LOG, {"epoch": 1})
    checkpoint.write_json(folder / checkpoint.METRICS, {"CRPS": 1.0})
    return files(folder)


@pytest.mark.parametrize("stage", CONFIGS)
def test_the_folder_names_stage_dataset_lengths_and_run(stage, tmp_path):
    config = dataclasses.replace(CONFIGS[stage], data_name="SST", history_len=24, predict_len=6)
    assert run_folder(str(tmp_path), stage, config) == tmp_path / stage / "SST_24_6"
    assert run_folder("save", stage, dataclasses.replace(config, run_name="ema")).name == "SST_24_6_ema"


@pytest.mark.parametrize("stage", CONFIGS)
def test_a_new_run_writes_down_its_settings_and_versions(stage, tmp_path):
    folder = tmp_path / "my sävé" / "run"
    assert open_run(folder, CONFIGS[stage], {}) is True
    written = json.loads((folder / checkpoint.CONFIG).read_text())
    assert written["config"] == dataclasses.asdict(CONFIGS[stage])
    assert written["versions"]["torch"] == torch.__version__
    assert list(files(folder)) == [checkpoint.CONFIG]


@pytest.mark.parametrize("stage", CONFIGS)
def test_a_finished_run_of_the_same_settings_is_left_alone_and_says_so(stage, tmp_path, capsys):
    before = finish(tmp_path, CONFIGS[stage])
    elsewhere = dataclasses.replace(CONFIGS[stage], device="cpu", data_dir="/other", save_dir="x")
    for config in (CONFIGS[stage], elsewhere):
        assert open_run(tmp_path, config, {}) is False
        assert "nothing to do" in capsys.readouterr().out and files(tmp_path) == before


def test_a_finished_run_of_other_settings_is_refused_with_each_difference(tmp_path):
    before = finish(tmp_path, TrainConfig())
    with pytest.raises(ValueError) as caught:
        open_run(tmp_path, TrainConfig(lr=0.5, sampler="ancestral"), {})
    message = str(caught.value)
    assert f"lr {TrainConfig.lr} (wanted 0.5)" in message
    assert f"sampler {TrainConfig.sampler} (wanted ancestral)" in message
    assert message.count("(wanted ") == 2 and "--run_name" in message and "--overwrite" in message
    assert files(tmp_path) == before


def test_a_setting_that_the_finished_run_did_not_know_counts_as_a_difference(tmp_path):
    finish(tmp_path, TrainConfig())
    written = json.loads((tmp_path / checkpoint.CONFIG).read_text())
    del written["config"]["ema"]
    checkpoint.write_json(tmp_path / checkpoint.CONFIG, written)
    with pytest.raises(ValueError, match=rf"ema None \(wanted {TrainConfig.ema}\)"):
        open_run(tmp_path, TrainConfig(), {})


def test_overwrite_replaces_a_finished_run(tmp_path):
    finish(tmp_path, TrainConfig())
    config = TrainConfig(lr=0.5, overwrite=True)
    assert open_run(tmp_path, config, {}) is True
    assert list(files(tmp_path)) == [checkpoint.CONFIG]
    assert json.loads((tmp_path / checkpoint.CONFIG).read_text())["config"]["lr"] == 0.5


def test_a_folder_that_cannot_be_made_is_an_error_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        open_run(tmp_path / "file" / "run", TrainConfig(), {})


def test_a_finished_run_on_another_mean_model_or_other_data_is_refused(tmp_path):
    built_on = {"data": {"num_nodes": 3}, "mean_model": "abc"}
    open_run(tmp_path, TrainConfig(), built_on)
    checkpoint.write_json(tmp_path / checkpoint.METRICS, {})
    assert open_run(tmp_path, TrainConfig(), built_on) is False
    for other in ({**built_on, "mean_model": "xyz"}, {**built_on, "data": {"num_nodes": 4}}):
        with pytest.raises(ValueError, match="holds a finished run with"):
            open_run(tmp_path, TrainConfig(), other)


def test_real_numbers_that_differ_by_rounding_are_the_same():
    assert checkpoint.differences({"std": 0.9412491857241538}, {"std": 0.941249185724154}) == []
    assert checkpoint.differences({"std": 0.9412}, {"std": 0.9413}) == ["std 0.9412 (wanted 0.9413)"]
    assert checkpoint.differences({"facts": {"std": 0.1 + 0.2}}, {"facts": {"std": 0.3}}) == []
