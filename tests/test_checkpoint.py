"""A run folder holds whole files: the old one or the new one, numbers and never code, and no run is lost."""

import errno
import hashlib
import itertools
import json
import os
import pickle
import resource
import signal
import zipfile

import pytest
import torch
from conftest import Payload

from utils.training import checkpoint
from utils.training.checkpoint import built_from, load_checkpoint, save_checkpoint, write_atomically

CONTENT = {"stage": "mean", "config": {"lr": 1e-3, "data_name": "SST"}, "weights": {"a": torch.arange(6.0)}}


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
    assert set(files(tmp_path)) == {"model.pt"}


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


def test_a_log_that_does_not_fit_on_the_disk_stays_as_it_was(tmp_path):
    """faults 49; the kernel itself cuts the write, at a limit on the size of files."""
    path = tmp_path / "log.jsonl"
    checkpoint.write_text(path, '{"epoch": 1}\n')
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.write_text(path, '{"epoch": 1}\n{"epoch": 2}\n')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before


def test_weights_of_wrapped_models_get_their_plain_names(tmp_path):
    """faults 43"""
    wrapped = {"module.a": 1, "_orig_mod.b": 2, "module._orig_mod.c": 3, "blocks._orig_mod.0.d": 4, "plain.e": 5}
    save_checkpoint(tmp_path / "model.pt", {"weights": {name: torch.tensor(value) for name, value in wrapped.items()}})
    weights = load_checkpoint(tmp_path / "model.pt")["weights"]
    assert {name: int(value) for name, value in weights.items()} == {"a": 1, "b": 2, "c": 3, "blocks.0.d": 4,
                                                                     "plain.e": 5}


@pytest.mark.parametrize("moment, stage", [("before", "mean"), ("after", "new")])
def test_a_checkpoint_is_whole_whenever_a_save_of_it_is_cut(tmp_path, monkeypatch, moment, stage):
    """faults 39, 41"""
    path, replace = tmp_path / "model.pt", type(tmp_path).replace
    save_checkpoint(path, CONTENT)

    def cut(source, target):
        if moment == "after":
            replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tmp_path), "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {**CONTENT, "stage": "new"})
    assert load_checkpoint(path)["stage"] == stage


def test_a_checkpoint_of_a_gpu_is_read_on_a_machine_without_one(tmp_path):
    """faults 45; the tensors of a file saved here are renamed as if they had lived on cuda:1."""
    save_checkpoint(tmp_path / "cpu.pt", CONTENT)
    with zipfile.ZipFile(tmp_path / "cpu.pt") as source, zipfile.ZipFile(tmp_path / "gpu.pt", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                assert data.count(b"X\x03\0\0\0cpu") == 1
                data = data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:1")
            target.writestr(name, data)
    weights = load_checkpoint(tmp_path / "gpu.pt")["weights"]
    assert weights["a"].device.type == "cpu" and torch.equal(weights["a"], CONTENT["weights"]["a"])


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_whole(tmp_path, monkeypatch):
    path, check = tmp_path / "model.pt", zipfile.ZipFile.testzip
    save_checkpoint(path, CONTENT)

    def replaced(archive):
        save_checkpoint(path, {**CONTENT, "stage": "new"})
        return check(archive)

    monkeypatch.setattr(zipfile.ZipFile, "testzip", replaced)
    assert checkpoint.load_checkpoint(path)["stage"] == "new"


def test_a_checkpoint_of_an_earlier_version_with_a_sha256_beside_it_is_read(tmp_path):
    path, digest = tmp_path / "model.pt", tmp_path / "model.pt.sha256"
    save_checkpoint(path, CONTENT)
    digest.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  model.pt\n")
    assert load_checkpoint(path)["stage"] == "mean"
    digest.write_text(f"{64 * '0'}  model.pt\n")  # nothing reads it
    assert load_checkpoint(path)["stage"] == "mean"


def test_a_reader_never_sees_damage_while_another_process_saves(tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, CONTENT)
    child = os.fork()
    if child == 0:
        for number in itertools.count():
            save_checkpoint(path, {**CONTENT, "epoch": number})
    epochs, reads = set(), 0
    try:
        while len(epochs) < 10 and reads < 5000:
            epochs.add(load_checkpoint(path).get("epoch"))
            reads += 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(epochs) == 10


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
    assert "damaged, or not a readable checkpoint; run its training again" in refusal(path)


def test_any_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, CONTENT)
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 31):  # 8 and 31 have no common factor: every place of a byte
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            content = load_checkpoint(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "train" in str(error)
        else:
            assert torch.equal(content["weights"]["a"], CONTENT["weights"]["a"]) and content["stage"] == "mean"


def test_a_part_that_torch_would_leave_out_is_refused(tmp_path):
    """A bit of the archive's directory says that the part is a folder; its memory would stay as it was."""
    path = tmp_path / "model.pt"
    save_checkpoint(path, CONTENT)
    whole = bytearray(path.read_bytes())
    whole[whole.rindex(b"archive/data/0") - 8] ^= 0x10
    path.write_bytes(whole)
    assert "damaged, or not a readable checkpoint; run its training again" in refusal(path)


def test_a_flipped_bit_of_a_weight_is_seen(tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, {**CONTENT, "weights": {"a": torch.zeros(1000)}})
    whole = bytearray(path.read_bytes())
    assert load_checkpoint(path)["weights"]["a"].eq(0).all()
    whole[whole.index(bytes(1000)) + 500] ^= 1
    path.write_bytes(whole)
    assert "damaged, or not a readable checkpoint; run its training again" in refusal(path)


@pytest.mark.parametrize("part", ["config", "data", "fingerprint", "weights", "state"])
def test_a_checkpoint_with_a_part_of_another_kind_is_refused(tmp_path, part):
    save_checkpoint(tmp_path / "model.pt", {**CONTENT, part: "text"})
    assert f"not a checkpoint of this project: {part}" in refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("slip", [lambda: {}["a"], lambda: torch.nn.Linear(2, 2).load_state_dict({}), lambda: [] + 1])
def test_what_cannot_be_built_from_a_checkpoint_is_a_fault_of_the_file_in_one_line(slip):
    with pytest.raises(ValueError, match="^model.pt: does not fit this program") as caught, built_from("model.pt"):
        slip()
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("version", [checkpoint.FORMAT_VERSION - 1, checkpoint.FORMAT_VERSION + 41])
def test_another_format_is_refused_with_both_versions_and_what_to_do(tmp_path, version):
    torch.save({"format": version, **CONTENT}, tmp_path / "model.pt")
    message = refusal(tmp_path / "model.pt")
    assert f"format version {version}" in message and f"reads {checkpoint.FORMAT_VERSION}: train it again" in message


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


def test_real_numbers_that_differ_by_rounding_are_the_same():
    assert checkpoint.differences({"std": 0.9412491857241538}, {"std": 0.941249185724154}) == []
    assert checkpoint.differences({"std": 0.9412}, {"std": 0.9413}) == ["std 0.9412 (wanted 0.9413)"]
    assert checkpoint.differences({"scaler_std": 1e-13, "mean": 1e-17}, {"scaler_std": 2e-13, "mean": 2e-17}) == [
        "scaler_std 1e-13 (wanted 2e-13)", "mean 1e-17 (wanted 2e-17)"]
    assert checkpoint.differences({"data": {"a": 1, "b": 2, "c": 3}, "d": 4}, {"data": {"a": 1, "b": 5}, "d": 4}) == [
        "data b 2 (wanted 5)", "data c 3 (wanted None)"]
    assert checkpoint.differences({"facts": {"std": 0.1 + 0.2}}, {"facts": {"std": 0.3}}) == []
