"""Every message of docs/troubleshooting.md is what the program says."""

import errno
import fcntl
import os
import re
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import xarray
from conftest import ROOT, random_values, with_gaps

import main_pretrain
import main_train
from data import table
from scripts import evaluate, forecast
from utils.program import run_main
from utils.training.checkpoint import load_checkpoint

MESSAGES = re.findall(r"^\| `(.*?)` \| ", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
TINY = ["--data_name", "Oracle", "--oracle_nodes", "3", "--oracle_steps", "150", "--device", "cpu", "--epochs", "1",
        "--channels", "4", "--layers", "1", "--nsample", "4", "--sample_steps", "2", "--test_windows", "4",
        "--networks", "1", "--batch_size", "32"]
OTHER_DATA = ["--oracle_nodes", "4"]
PROVOCATIONS = {}


def provokes(part: str):
    """What provokes the message of the page that holds `part`; called with a folder of its own and a monkeypatch."""
    def register(function):
        PROVOCATIONS[part] = function
        return function
    return register


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Finished runs of both stages, as {path in the folder: bytes}: each test has a copy of its own."""
    folder = tmp_path_factory.mktemp("runs")
    flags = [*TINY, "--save_dir", str(folder)]
    assert main_pretrain.main(flags) == 0 and main_train.main(flags) == 0
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def runs(finished, tmp_path):
    for path, content in finished.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return tmp_path


def pattern(message: str) -> str:
    return ".*".join(map(re.escape, message.split("...")))


@pytest.mark.parametrize("message", MESSAGES)
def test_the_message_is_what_the_program_says(message, runs, monkeypatch, capsys):
    """As a user reads it: an error with its `error: ` before it, a note or warning on a line of its own."""
    provoke, = (function for part, function in PROVOCATIONS.items() if part in message)
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: provoke(runs, monkeypatch))
    said = capsys.readouterr()
    lines = [line.removeprefix("error: ") for line in (said.err + said.out).splitlines()]
    assert any(re.fullmatch(pattern(message), line) for line in lines), said.err
    assert (ended.value.code == 2) == ("error: " in said.err)


def test_every_provocation_belongs_to_one_message():
    assert len(MESSAGES) > 30
    assert [part for part in PROVOCATIONS if sum(part in message for message in MESSAGES) != 1] == []


def first_stage(folder, *flags):
    return main_pretrain.main([*TINY, "--save_dir", str(folder), *map(str, flags)])


def second_stage(folder, *flags):
    return main_train.main([*TINY, "--save_dir", str(folder), *map(str, flags)])


def own_array(folder, values, *flags):
    """Stage 1 on an array of one's own, without training."""
    np.save(folder / "own.npy", values)
    return own_file(folder / "own.npy", "--freq", "1h", "--start", "2024-01-01", *flags)


def own_file(path, *flags):
    return main_pretrain.main(["--data_path", str(path), "--device", "cpu", "--dry_run", *flags])


def own_table(folder, *hours, flags=()):
    """Stage 1 on a table with a row at each of these hours, without training."""
    rows = "".join(f"2024-01-01T{hour:02}:00,{row}\n" for row, hour in enumerate(hours))
    (folder / "own.csv").write_text(f"time,a\n{rows}")
    return own_file(folder / "own.csv", *flags)


# Data

@provokes("the data of MobileNJ")
def absent_array(folder, _):
    first_stage(folder, "--data_name", "MobileNJ", "--data_dir", folder)


@provokes("no dataset is named")
def misspelt_dataset(folder, _):
    first_stage(folder, "--data_name", "SSt")


@provokes("expected 560")
def other_nodes(folder, _):
    (folder / "CommTraffic").mkdir()
    np.save(folder / "CommTraffic/MobileNJ.npy", random_values(40, 3))
    first_stage(folder, "--data_name", "MobileNJ", "--data_dir", folder)


@provokes("values are missing (nan)")
def gaps(folder, _):
    own_array(folder, with_gaps(random_values(100, 3)))


@provokes("have no value in the")
def silent_node(folder, _):
    values = random_values(100, 3)
    values[:90, 1] = np.nan
    own_array(folder, values, "--missing", "mask")


@provokes("value inf")
def infinite_value(folder, _):
    values = random_values(100, 3)
    values[7, 1] = np.inf
    own_array(folder, values)


@provokes("in all 3 steps")
def skipped_hours(folder, _):
    own_table(folder, 0, 1, 4, 5, 6, 7, 9, 10)


@provokes("3 steps are missing, from ...: inserted")
def inserted_hours(folder, _):
    own_table(folder, *range(10), *range(12, 20), *range(21, 24),
              flags=("--missing", "mask", "--history_len", "2", "--predict_len", "1"))


@provokes("may be %d/%m/%Y")
def day_or_month(folder, _):
    (folder / "own.csv").write_text("time,a\n01/02/2024,1\n02/02/2024,2\n")
    own_file(folder / "own.csv")


@provokes("is a number;")
def counted_times(folder, _):
    (folder / "own.csv").write_text("time,a\n0,1\n1,2\n")
    own_file(folder / "own.csv")


@provokes("unlike those before")
def two_kinds_of_times(folder, _):
    (folder / "own.csv").write_text("time,a\n2024-01-01T00:00Z,1\n2024-01-01T01:00Z,1\n2024-01-01T02:00,2\n")
    own_file(folder / "own.csv")


@provokes("calendar 360_day")
def model_days(folder, _):
    times = xarray.date_range("2024-02-01", periods=30, calendar="360_day", use_cftime=True)
    xarray.Dataset({"v": (("time", "node"), random_values(30, 2))}, {"time": times}).to_netcdf(folder / "own.nc")
    own_file(folder / "own.nc")


@provokes("of the time zone UTC")
def covariates_of_another_clock(folder, _):
    hours = pd.date_range("2024-01-01", periods=40, freq="h")
    pd.DataFrame({"time": hours, "a": 1.5 * np.arange(40)}).to_csv(folder / "own.csv", index=False)
    pd.DataFrame({"time": hours.tz_localize("UTC"), "rain": 1.5}).to_csv(folder / "beside.csv", index=False)
    own_file(folder / "own.csv", "--covariates", str(folder / "beside.csv"))


@provokes("descend in time")
def newest_first(folder, _):
    hours = pd.date_range("2024-01-01", periods=40, freq="h")[::-1]
    pd.DataFrame({"time": hours, "a": 1.5 * np.arange(40)}).to_csv(folder / "own.csv", index=False)
    own_file(folder / "own.csv", "--history_len", "2", "--predict_len", "1")


@provokes("T03:00")
def skipped_hour(folder, _):
    own_table(folder, 0, 1, 3, 4, 5)


@provokes("it occurs twice")
def repeated_hour(folder, _):
    own_table(folder, 0, 1, 1, 2, 3)


@provokes("the file has no time stamps")
def no_times(folder, _):
    np.save(folder / "own.npy", random_values(100, 3))
    own_file(folder / "own.npy")


@provokes("is not a number")
def text_among_values(folder, _):
    (folder / "own.csv").write_text("time,a\n2024-01-01T00:00,1\n2024-01-01T01:00,x\n")
    own_file(folder / "own.csv")


@provokes("2 variables")
def two_fields(folder, _):
    series = ("time", "node"), random_values(30, 2)
    xarray.Dataset({"t2m": series, "sst": series}, {"time": pd.date_range("2024-01-01", periods=30)}).to_netcdf(
        folder / "own.nc")
    own_file(folder / "own.nc")


@provokes("one time stamp")
def one_row(folder, _):
    own_table(folder, 0)


@provokes("no train window")
def short_series(folder, _):
    own_array(folder, random_values(20, 3))


@provokes("would overlap")
def short_validation(folder, _):
    own_array(folder, random_values(60, 3))


@provokes("so they need future values")
def short_lag(folder, _):
    own_array(folder, random_values(100, 3), "--lags", "6")


@provokes("the training part has ... steps")
def long_lag(folder, _):
    own_array(folder, random_values(30, 3), "--lags", "24", "--history_len", "4", "--predict_len", "4")


@provokes(".npy file")
def truncated_file(folder, _):
    np.save(folder / "whole.npy", random_values(100, 3))
    (folder / "own.npy").write_bytes((folder / "whole.npy").read_bytes()[:500])
    own_file(folder / "own.npy")


@provokes("Python objects")
def objects(folder, _):
    own_array(folder, np.array([[{}]]))


@provokes("GiB of memory or more")
def bomb(folder, monkeypatch):
    monkeypatch.setattr(table, "free_memory", lambda: 1 << 20)
    np.savez_compressed(folder / "own.npz", values=np.zeros((1 << 16, 4)))
    own_file(folder / "own.npz")


@provokes("unknown kind of file")
def unknown_ending(folder, _):
    (folder / "own.xls").write_text("1")
    own_file(folder / "own.xls")


@provokes("package xarray")
def no_xarray(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    (folder / "own.nc").write_text("1")
    own_file(folder / "own.nc")


@provokes("30 nodes but only 25 time steps")
def more_nodes_than_steps(folder, _):
    own_array(folder, random_values(25, 30), "--history_len", "2", "--predict_len", "1")


def own_frame(folder, **changes):
    """Stage 1 on a table of thirty days at three nodes, without training."""
    days = pd.date_range("2024-01-01", periods=30, name="time")
    pd.DataFrame(random_values(30, 3), days, list("abc")).assign(**changes).reset_index().to_csv(
        folder / "own.csv", index=False)
    return own_file(folder / "own.csv", "--history_len", "2", "--predict_len", "2")


@provokes("line 1: values")
def no_names(folder, _):
    (folder / "own.csv").write_text("0.5,0.5\n1,2\n")
    own_file(folder / "own.csv")


@provokes("was taken for the names")
def numbers_for_names(folder, _):
    (folder / "own.csv").write_text("1,2\n" + "3,4\n" * 30)
    own_file(folder / "own.csv", "--freq", "1h", "--start", "2024-01-01", "--history_len", "2", "--predict_len", "2")


@provokes("times occur twice")
def long_table_of_four_columns(folder, _):
    (folder / "own.csv").write_text("time,id,a,b\n2024-01-01,1,1,2\n2024-01-01,2,3,4\n")
    own_file(folder / "own.csv")


@provokes("left out, an index")
def numbered_rows(folder, _):
    return own_frame(folder, index=range(30))


@provokes("the same value at all times")
def constant_node(folder, _):
    return own_frame(folder, b=1.0)


@provokes("-999 occurs 1 time")
def sentinel(folder, _):
    return own_frame(folder, c=[-999, *range(2, 60, 2)])


@provokes("not in UTF-8")
def latin_1(folder, _):
    rows = "".join(f"2024-01-{day:02},{day % 7}\n" for day in range(1, 31))
    (folder / "own.csv").write_text(f"time,Zürich\n{rows}", encoding="latin-1")
    return own_file(folder / "own.csv", "--history_len", "2", "--predict_len", "2")


def own_graph(folder, text):
    (folder / "g.csv").write_text(text)
    np.savez(folder / "own.npz", values=random_values(100, 2), node_names=["a", "b"])
    own_file(folder / "own.npz", "--freq", "1h", "--start", "2024-01-01", "--graph", str(folder / "g.csv"))


@provokes("column cost of edges")
def distances(folder, _):
    own_graph(folder, "from,to,cost\na,b,0.5\n")


@provokes("weight -0.5")
def negative_weight(folder, _):
    own_graph(folder, "from,to,weight\na,b,-0.5\n")


def with_covariates(folder, hours, **columns):
    """Stage 1 on 150 hours of three nodes with covariates at these hours, without training."""
    times = pd.to_datetime("2024-01-01") + pd.to_timedelta(hours, unit="h")
    pd.DataFrame({"time": times, **columns}).to_csv(folder / "beside.csv", index=False)
    frame = pd.DataFrame(random_values(150, 3), columns=list("abc"))
    frame.insert(0, "time", pd.date_range("2024-01-01", periods=150, freq="h"))
    frame.to_csv(folder / "own.csv", index=False)
    own_file(folder / "own.csv", "--covariates", str(folder / "beside.csv"))


@provokes("beyond its end")
def covariates_with_a_gap(folder, _):
    with_covariates(folder, [*range(150), 151, 152], rain=range(152))


@provokes("nodes missing: c")
def covariates_without_a_node(folder, _):
    with_covariates(folder, range(150), b=range(150), a=range(150))


# Command line

@provokes("--epoch;")
def misspelt_flag(folder, _):
    first_stage(folder, "--epoch", "3")


@provokes("out of range")
def no_epochs(folder, _):
    first_stage(folder, "--mean_epochs", "0")


@provokes("--null_value 0")
def null_value_alone(folder, _):
    first_stage(folder, "--null_value", "0")


@provokes("torch sees")
def no_such_gpu(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    first_stage(folder, "--device", "cuda:4")


# Outputs

def next_forecast(folder, output, *flags):
    forecast.main([str(of_stage(folder, "diffusion")), "--output", str(output), "--device", "cpu", *flags])


@provokes("it exists;")
def output_that_exists(folder, _):
    (folder / "mine.csv").write_text("mine")
    next_forecast(folder, folder / "mine.csv")


@provokes("read-only")
def output_that_is_read_only(folder, _):
    (folder / "mine.csv").write_text("mine")
    (folder / "mine.csv").chmod(0o444)
    next_forecast(folder, folder / "mine.csv", "--overwrite")


@provokes("a file of the run in")
def output_over_a_run(folder, _):
    next_forecast(folder, of_stage(folder, "diffusion") / "windows.csv", "--overwrite")


@provokes("No space left")
def full_disk(folder, monkeypatch):
    def no_space(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    next_forecast(folder, folder / "next.csv")


# Run folders and checkpoints

def of_stage(folder, stage):
    return folder / stage / "Oracle_12_12"


@provokes("there is no stage-1 model")
def no_first_stage(folder, _):
    second_stage(folder, "--recipe", "published")


@provokes("with --recipe")
def first_stage_of_another_recipe(folder, _):
    of_stage(folder, "mean").rename(folder / "mean/Oracle_12_12_published")
    second_stage(folder, "--recipe", "published")


@provokes("stage 1 is that of")
def variant_of_stage_2(folder, _):
    return second_stage(folder, "--run_name", "new")


@provokes("does not fit")
def first_stage_of_other_data(folder, _):
    second_stage(folder, *OTHER_DATA)


@provokes("a finished run with")
def finished_with_other_settings(folder, _):
    first_stage(folder, "--seed", "1")


@provokes("an unfinished run with")
def unfinished_with_other_settings(folder, _):
    first_stage(folder, "--overwrite", "--keep_states")
    (of_stage(folder, "mean") / "metrics.json").unlink()
    first_stage(folder, "--seed", "1")


@provokes("nothing to do")
def the_same_again(folder, _):
    return first_stage(folder)


@provokes("another program is running")
def folder_in_use(folder, _):
    lock = (of_stage(folder, "mean") / ".lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    first_stage(folder, "--overwrite")


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@provokes("run its training again, ...")
def damaged_checkpoint(folder, _):
    damage(of_stage(folder, "mean") / "model.pt")
    second_stage(folder, "--overwrite")


@provokes("going back to the state before it")
def damaged_state(folder, _):
    run = of_stage(folder, "mean")
    (run / "metrics.json").unlink()
    assert first_stage(folder, "--overwrite", "--epochs", "2", "--keep_states") == 0
    (run / "metrics.json").unlink()
    damage(run / "last_b.pt")
    return first_stage(folder, "--epochs", "2")


@provokes("format version 99")
def newer_format(folder, _):
    run = of_stage(folder, "mean")
    torch.save({**load_checkpoint(run / "model.pt"), "format": 99}, run / "model.pt")
    second_stage(folder, "--overwrite")


@provokes("not a stage-2 run")
def folder_of_stage_1(folder, _):
    forecast.main([str(of_stage(folder, "mean")), "--output", str(folder / "next.csv")])


@provokes("other data than")
def changed_file(folder, _):
    changed_file_is(folder, lambda path: np.save(path, random_values(150, 3) + 1))


def changed_file_is(folder, change):
    """Scores of a run whose file was changed after training."""
    flags = ["--data_path", str(folder / "own.npy"), "--data_name", "own", "--freq", "1h", "--start", "2024-01-01"]
    np.save(folder / "own.npy", random_values(150, 3))
    assert first_stage(folder, *flags) == 0 and second_stage(folder, *flags) == 0
    change(folder / "own.npy")
    evaluate.main([str(folder / "diffusion/own_12_12")])


@provokes("has moved")
def moved_file(folder, _):
    changed_file_is(folder, lambda path: path.rename(folder / "moved.npy"))


@provokes("another field than")
def file_of_other_nodes(folder, _):
    changed_file_is(folder, lambda path: np.save(path, random_values(150, 4)))


@provokes("package pyarrow")
def no_pyarrow(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    forecast.main([str(of_stage(folder, "diffusion")), "--output", str(folder / "next.parquet")])


# Training

@provokes("the loss is")
def loss_not_finite(folder, _):
    first_stage(folder, "--lr", "1e30", "--overwrite", "--epochs", "3")


@provokes("not enough memory")
def no_memory(folder, monkeypatch):
    def allocate(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch.optim.Adam, "step", allocate)
    first_stage(folder, "--overwrite")
