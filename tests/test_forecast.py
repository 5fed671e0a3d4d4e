"""The way in for Python and scripts.forecast: same numbers as the evaluation, from any history, to any file."""

import dataclasses
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray
from conftest import ON_ANY_STAGE_1, ROOT, random_values

import main_pretrain
import main_train
from data.registry import DATASETS, get_spec
from models import OnlineCalibration, ensemble_sampler, load_forecaster
from scripts import evaluate, forecast, report
from utils import pipeline
from utils.config import RECIPES
from utils.pipeline import open_run_data
from utils.scores.evaluation import rows_at_once
from utils.training.checkpoint import read_json

LENGTHS = ["--history_len", "6", "--predict_len", "4"]
TINY = ["--data_name", "Tiny", *LENGTHS, "--epochs", "1", "--channels", "8", "--layers", "1", "--embedding", "8",
        "--nsample", "5", "--sample_steps", "3", "--test_windows", "8", "--device", "cpu", "--networks", "1",
        "--batch_size", "32"]
NODES, STEPS = 4, 150


COUNTS = np.maximum(random_values(STEPS, NODES) - 20, 0).round()  # many of them 0


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with the counts as the dataset `Tiny`, and a finished run of every recipe; tests must not change it."""
    folder = tmp_path_factory.mktemp("work")
    np.save(folder / "counts.npy", COUNTS)
    card = dataclasses.replace(get_spec("Oracle"), synthetic=False, files=("counts.npy",), num_nodes=NODES,
                               nonnegative=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "Tiny", card)
        flags = [*TINY, "--data_dir", str(folder), "--save_dir", str(folder)]
        main_pretrain.main(flags)
        for recipe in RECIPES:
            main_train.main([*flags, "--recipe", recipe, "--mean_run", str(folder / "mean/Tiny_6_4"), *ON_ANY_STAGE_1])
        yield folder


def run_of(work, recipe="cost"):
    return work / "diffusion" / ("Tiny_6_4" if recipe == "cost" else f"Tiny_6_4_{recipe}")


def ask(work, output, *flags):
    """scripts.forecast on the run of the default recipe."""
    assert forecast.main([str(run_of(work)), "--data_dir", str(work), "--output", str(output), *flags]) == 0


def loaded(path) -> dict:
    with np.load(path) as archive:
        return dict(archive)


# Same numbers


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_test_window_gets_the_members_that_the_evaluation_draws(work, recipe):
    trained = load_forecaster(run_of(work, recipe))
    data = open_run_data(trained.checkpoint, str(work), "cpu")
    starts = data.starts["test"][3:6]
    settings = trained.checkpoint["config"]
    wanted = data.scaler.physical(ensemble_sampler(trained.model, settings, trained.device)(
        data.batch(starts))).numpy()
    history = np.stack([data.field.values[start:start + 6] for start in starts])
    found = trained.forecast(history, [data.local_times(int(start))[0] for start in starts])
    np.testing.assert_allclose(found.members, wanted, rtol=1e-6)
    times = data.local_times(int(starts[1]))
    assert (found.times[1] == times[6:]).all() and found.issued[1] == times[5]


def test_every_window_of_the_test_is_written_as_it_is_evaluated(work, tmp_path):
    trained = load_forecaster(run_of(work))
    data = open_run_data(trained.checkpoint, str(work), "cpu")
    draw = ensemble_sampler(trained.model, trained.checkpoint["config"], trained.device)
    wanted = torch.cat([data.scaler.physical(draw(batch)) for batch in data.batches("test", 7)])
    ask(work, tmp_path / "test.npz", "--split", "test")
    np.testing.assert_allclose(loaded(tmp_path / "test.npz")["members"], wanted.numpy(), rtol=1e-6)


def test_the_unseen_future_is_that_of_a_longer_file_at_the_same_time(work, tmp_path):
    ask(work, tmp_path / "next.npz")
    np.save(tmp_path / "longer.npy", np.concatenate([COUNTS, random_values(9, NODES) + 100]))
    ask(work, tmp_path / "later.npz", "--data_path", str(tmp_path / "longer.npy"), "--at", "2020-01-12T06:00")
    first, second = loaded(tmp_path / "next.npz"), loaded(tmp_path / "later.npz")
    assert first["times"][0, 0] == np.datetime64("2020-01-12T06:00") and first["members"].shape == (1, 5, 4, NODES)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_neither_chunk_nor_company_nor_way_of_asking_changes_a_member(work, tmp_path):
    ask(work, tmp_path / "rolling.npz", "--rolling", "5")
    ask(work, tmp_path / "chunks.npz", "--rolling", "5", "--sample_batch", "2")
    rolling, chunks = loaded(tmp_path / "rolling.npz"), loaded(tmp_path / "chunks.npz")
    at = str(rolling["times"][3, 0])
    ask(work, tmp_path / "one.npz", "--at", at)
    np.testing.assert_allclose(chunks["members"], rolling["members"], rtol=1e-5)
    np.testing.assert_allclose(loaded(tmp_path / "one.npz")["members"][0], rolling["members"][3], rtol=1e-5)
    assert at == "2020-01-12T01:00" and rolling["times"][4, -1] == np.datetime64("2020-01-12T05:00")


def test_an_online_correction_is_that_of_the_windows_before_whichever_way_it_is_asked_for(work, tmp_path):
    """File, Python and scores see the same members: those of `OnlineCalibration`, window by window."""
    trained, count = load_forecaster(run_of(work)), 20
    ask(work, tmp_path / "plain.npz", "--rolling", str(count))
    ask(work, tmp_path / "online.npz", "--rolling", str(count), "--online", "--sample_batch", "7")
    plain, found = (loaded(tmp_path / f"{name}.npz")["members"] for name in ("plain", "online"))
    starts = range(STEPS - 10 - count + 1, STEPS - 9)
    online = OnlineCalibration((0.0, 1.0))
    wanted = [online.correct(torch.from_numpy(COUNTS[start:start + 6]), torch.from_numpy(members), start + 6).numpy()
              for start, members in zip(starts, plain, strict=True)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_array_equal(found[0], plain[0])
    assert (found[-1] != plain[-1]).any() and found.min() >= 0 and (found == found.round()).all()
    online, data = trained.online(), open_run_data(trained.checkpoint, str(work), "cpu")
    python = [trained.forecast(COUNTS[start:start + 6], data.local_times(start)[0], online=online).members
              for start in starts]
    np.testing.assert_allclose(found, python, atol=1e-5)
    assert int(data.starts["test"][-1]) == starts[-1]
    plain = ensemble_sampler(trained.model, trained.checkpoint["config"], trained.device)
    draw = pipeline.corrected_sampler(plain, data, trained.online())
    scored = torch.cat([draw(data.batch(torch.tensor(part))) for part in (starts[:9], starts[9:])])
    np.testing.assert_allclose(found, scored.numpy(), atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_cannot_be_negative_has_no_negative_member(work, recipe):
    trained = load_forecaster(run_of(work, recipe))
    members = trained.forecast(np.zeros((6, NODES)), "2020-01-12T06:00", members=200).members
    assert members.min() == 0 and (members == members.round()).all()


# The way in for Python

def test_a_history_in_another_unit_is_noted(work, tmp_path, capsys):
    trained = load_forecaster(run_of(work))
    with pytest.warns(UserWarning, match="values of node .* the training part held .*: is it in another"):
        trained.forecast(1000 * COUNTS[-6:], history_start="2020-01-12T00:00")
    np.save(tmp_path / "other.npy", 1000 * COUNTS)
    ask(work, tmp_path / "x.npz", "--data_path", str(tmp_path / "other.npy"))
    assert "note: the history holds values of node" in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained.forecast(1.5 * COUNTS[-6:], history_start="2020-01-12T00:00+00:00")


def test_a_folder_without_a_run_is_answered_with_those_beside_it(work):
    with pytest.raises(FileNotFoundError, match="nope: no run is there; beside it are .*" + run_of(work).name):
        load_forecaster(run_of(work).with_name("nope"))


def test_a_forecast_needs_no_data_and_follows_from_its_seed(work, monkeypatch):
    trained = load_forecaster(run_of(work))
    monkeypatch.setattr(pipeline, "load_field", None)
    one = trained.forecast(COUNTS[-6:], history_start="2020-01-12T00:00", members=30)
    assert one.members.shape == (30, 4, NODES) and one.times.shape == (4,)
    assert one.issued == np.datetime64("2020-01-12T05:00")
    again, other = (trained.forecast(COUNTS[-6:], "2020-01-12T00:00", members=30, seed=seed) for seed in (0, 1))
    assert (one.members == again.members).all() and (one.members != other.members).any()
    both = trained.forecast(np.stack([COUNTS[-6:], COUNTS[:6]]), ["2020-01-12T00:00", "2020-01-06T00:00"], members=30)
    np.testing.assert_allclose(both.members[0], one.members, rtol=1e-5)


@pytest.mark.parametrize("history, start, flags, message", [
    (np.zeros((5, NODES)), "2020-01-12", {}, r"history of shape \(5, 4\), start of shape \(\); expected \(6, 4\)"),
    (np.zeros((2, 6, NODES)), "2020-01-12", {}, "one time, or a window axis before both"),
    (np.full((6, NODES), np.nan), "2020-01-12", {}, "value nan at 2020-01-12T00:00, node node 0; expected"),
    (np.zeros((6, NODES)), "2020-01-12T00:30", {}, "no step begins then; a step takes 1 hour"),
    (np.zeros((6, NODES)), "2020-01-12", {"sampler": "dpm"}, "--sampler cannot be: 'dpm' is unknown"),
    (np.zeros((6, NODES)), "2020-01-12", {"sample_steps": 51}, "sample_steps 51: choose 1 to 50"),
    (np.zeros((6, NODES)), "2020-01-12", {"members": 1}, "--nsample cannot be: 1 is out of range"),
    (np.zeros((6, NODES)), "2020-01-12", {"members": "quantile"}, "'quantile' is unknown; did you mean quantiles"),
    (np.zeros((6, NODES)), "2020-01-12", {"sample_precision": "half"}, "--sample_precision cannot be: 'half'"),
    (np.zeros((6, NODES)), "2020-01-12", {"temperature": 1}, "temperature: no flag of sampling; the flags are nsample"),
])
def test_a_question_that_has_no_answer_is_refused(work, history, start, flags, message):
    with pytest.raises(ValueError, match=message):
        load_forecaster(run_of(work)).forecast(history, start, **flags)


def test_an_online_evaluation_takes_every_window_unless_asked_otherwise(work, tmp_path):
    windows = []  # the run itself scored 8
    for number, flags in enumerate(([], ["--test_windows", "3"])):
        path = tmp_path / f"{number}.json"
        assert evaluate.main([str(run_of(work)), "--data_dir", str(work), "--split", "test", "--online", "--json",
                              str(path), *flags]) == 0
        windows.append(read_json(path)["windows"])
    assert windows[0] == (STEPS - 9) - round(0.6 * (STEPS - 9)) - round(0.2 * (STEPS - 9)) and windows[1] == 3


def test_the_kind_of_the_members_is_a_flag_too(work, tmp_path):
    ask(work, tmp_path / "random.npz", "--members", "random")
    ask(work, tmp_path / "smooth.npz", "--members", "quantiles")
    random, smooth = (loaded(tmp_path / f"{name}.npz")["members"] for name in ("random", "smooth"))
    assert random.shape == smooth.shape and (random != smooth).any()


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    """On the first weeks of the dataset that it names, for the sake of time."""
    example, online = re.findall(r"```python\n(.*?)```", (ROOT / "docs/forecasting.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("data/dataset").mkdir(parents=True)
    with np.load(ROOT / "data/dataset/NYCFlights.npz") as whole:
        np.savez("data/dataset/NYCFlights.npz", values=whole["values"][:500], node_names=whole["node_names"])
    for stage in (main_pretrain, main_train):
        stage.main(["--data_dir", "data/dataset", "--epochs", "1", "--channels", "4", "--layers", "0", "--embedding",
                    "4", "--networks", "1", "--test_windows", "2", "--sample_steps", "1"])
    found = {}
    exec(compile(example, "docs/forecasting.md", "exec"), found)
    assert found["forecast"].members.shape == (50, 12, 75) and found["forecast"].members.min() == 0
    assert found["forecast"].issued == np.datetime64("2013-01-21T19:00") and len(found["table"]) == 12 * 75
    found["windows"] = [(found["history"], found["start"])]
    exec(compile(online, "docs/forecasting.md", "exec"), found)
    assert found["forecast"].members.shape == (50, 12, 75)


def test_a_run_with_gaps_and_covariates_forecasts_from_such_a_history(work, tmp_path):
    """The script's forecast at a test window is that of the evaluation; covariates must cover the horizon."""
    rain = np.random.default_rng(3).normal(size=(STEPS + 4, 1)).astype(np.float32)
    np.savez(tmp_path / "rain.npz", values=rain, covariate_names=["rain"])
    np.savez(tmp_path / "short.npz", values=rain[:STEPS], covariate_names=["rain"])
    np.save(tmp_path / "gaps.npy", np.where(np.arange(STEPS * NODES).reshape(STEPS, NODES) % 9, COUNTS, np.nan))
    flags = [*TINY, "--data_name", "gaps", "--data_path", str(tmp_path / "gaps.npy"), "--freq", "1h", "--start",
             "2020-01-06", "--missing", "mask", "--covariates", str(tmp_path / "rain.npz"), "--save_dir", str(tmp_path)]
    for stage in (main_pretrain, main_train):
        stage.main(flags)
    folder = tmp_path / "diffusion/gaps_6_4"
    forecast.main([str(folder), "--split", "test", "--output", str(tmp_path / "test.npz")])
    forecast.main([str(folder), "--output", str(tmp_path / "next.npz")])
    trained = load_forecaster(folder)
    data = open_run_data(trained.checkpoint, "", "cpu")
    draw = ensemble_sampler(trained.model, trained.checkpoint["config"], trained.device)
    wanted = torch.cat([data.scaler.physical(draw(batch)) for batch in data.batches("test", 20)])
    np.testing.assert_allclose(loaded(tmp_path / "test.npz")["members"], wanted.numpy(), rtol=1e-5)
    assert np.isfinite(loaded(tmp_path / "next.npz")["members"]).all()
    with pytest.raises(ValueError, match="--covariates: they end 4 steps before the horizon does"):
        forecast.main([str(folder), "--covariates", str(tmp_path / "short.npz"), "--output", str(tmp_path / "x.csv")])
    with pytest.raises(ValueError, match="no covariates; this model was trained with rain: expected"):
        trained.forecast(COUNTS[:6], "2020-01-06")


def test_a_newer_file_may_begin_anywhere_and_order_its_nodes_as_it_likes(work, tmp_path):
    """CSV with time stamps: its last rows are the history, wherever its first one stands in the series."""
    frame = pd.DataFrame(COUNTS[-20:], columns=[f"node {node}" for node in range(NODES)])
    frame.insert(0, "time", pd.date_range("2020-01-11T10:00", periods=20, freq="h"))
    frame[["time", "node 2", "node 0", "node 3", "node 1"]].to_csv(tmp_path / "recent.csv", index=False)
    ask(work, tmp_path / "next.npz")
    ask(work, tmp_path / "recent.npz", "--data_path", str(tmp_path / "recent.csv"))
    first, second = loaded(tmp_path / "next.npz"), loaded(tmp_path / "recent.npz")
    assert (first["members"] == second["members"]).all() and (first["times"] == second["times"]).all()


def test_a_newer_file_of_any_format_without_names_has_the_places_of_the_run_in_its_order(tmp_path):
    hours = pd.date_range("2020-01-06", periods=STEPS, freq="h")
    stations = xarray.Dataset(
        {"flow": (("time", "s"), COUNTS), "station_name": ("s", list("abcd"))},
        {"time": hours, "lat": ("s", [46.0, 47, 48, 49]), "lon": ("s", [6.0, 7, 8, -171])})
    stations.to_netcdf(tmp_path / "own.nc")
    newer = stations.drop_vars("station_name")
    newer.to_netcdf(tmp_path / "newer.nc")
    newer.assign(lat=newer.lat + 1).to_netcdf(tmp_path / "elsewhere.nc")
    newer.assign(level=newer.flow + 1).rename(flow="count").to_netcdf(tmp_path / "two.nc")
    pd.DataFrame(COUNTS, hours.rename("time"), list("abcd")).to_csv(tmp_path / "newer.csv")
    flags = [*TINY[2:], "--data_path", str(tmp_path / "own.nc"), "--save_dir", str(tmp_path), "--variable", "flow"]
    assert main_pretrain.main(flags) == 0 and main_train.main(flags) == 0
    run = [str(tmp_path / "diffusion/own_6_4"), "--output"]
    assert forecast.main([*run, str(tmp_path / "a.npz")]) == 0
    first = loaded(tmp_path / "a.npz")["members"]
    for name, more in (("newer.nc", ()), ("newer.csv", ()), ("two.nc", ("--variable", "count"))):
        output = tmp_path / f"{name}.npz"
        assert forecast.main([*run, str(output), "--data_path", str(tmp_path / name), *more]) == 0
        assert (loaded(output)["members"] == first).all()
    with pytest.raises(ValueError, match="--variable flow: describes a newer file; give it by --data_path"):
        forecast.main([*run, str(tmp_path / "c.npz"), "--variable", "flow"])
    with pytest.raises(ValueError, match="elsewhere.nc: another field .*: nodes at other latitudes and longitudes"):
        forecast.main([*run, str(tmp_path / "c.npz"), "--data_path", str(tmp_path / "elsewhere.nc")])


# What the script refuses


@pytest.mark.parametrize("flags, message", [
    (["--at", "soon"], "--at soon: expected a time in ISO 8601"),
    (["--at", "2020-01-12T00:30"], "--at 2020-01-12T00:30: no step begins then; a step takes 1 hour"),
    (["--at", "2020-02-01"], "--at 2020-02-01: the data allow 2020-01-06T06:00 to 2020-01-12T06:00"),
    (["--at", "2020-01-06T05:00"], "the first step that is forecast after 6 observed ones"),
    (["--rolling", "142"], r"--rolling 142: the data hold 141 windows of 6 \+ 4 observed steps"),
    (["--data_path", "short.npy"], "the data hold 5 steps; a forecast sees 6"),
    (["--data_path", "short.npy", "--split", "test"], "the data hold 5 steps"),
    (["--data_path", "other.npy"], r"other.npy: another field than .*: 3 nodes \(wanted 4\)"),
    (["--data_path", "renamed.npz"], r"renamed.npz: another .*: nodes b, c, d \(wanted node 1, node 2, node 3\)"),
    (["--data_path", "daily.csv"], r"daily.csv: line 3: time 2020-01-02T00:00, expected 2020-01-01T01:00 \(1 hour"),
    (["--sample_steps", "60"], "sample_steps 60: choose 1 to 50"),
])
def test_a_history_that_does_not_fit_is_refused_by_name(work, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    np.save("short.npy", np.zeros((5, NODES)))
    np.save("other.npy", np.zeros((50, 3)))
    np.savez("renamed.npz", values=np.zeros((50, NODES)), node_names=["node 0", "b", "c", "d"])
    Path("daily.csv").write_text("time,node 0,node 1,node 2,node 3\n2020-01-01,1,1,1,1\n2020-01-02,1,1,1,1\n")
    with pytest.raises(ValueError, match=message):
        ask(work, tmp_path / "refused.csv", *flags)
    assert not (tmp_path / "refused.csv").exists()


@pytest.mark.parametrize("flags, message", [
    (["--rolling", "-1"], "--rolling -1: choose a number of windows"),
    (["--at", "2020-01-12", "--rolling", "3"], "not allowed with argument --at"),
    (["--nsample", "1"], "1 is out of range; choose a value at least 2"),
])
def test_a_flag_that_cannot_be_is_one_line(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        forecast.main([str(tmp_path), "--output", str(tmp_path / "x.csv"), *flags])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_the_file_of_the_data_is_never_replaced(work, tmp_path):
    data = tmp_path / "newer.csv"
    data.write_text("time,a\n2020-01-01,1\n")
    with pytest.raises(ValueError, match="that is the file of the data; choose another name"):
        ask(work, tmp_path / "." / "newer.csv", "--data_path", str(data), "--overwrite")
    assert data.read_text() == "time,a\n2020-01-01,1\n"
    own = np.load(work / "counts.npy")
    flags = [str(run_of(work)), "--data_dir", str(work), "--overwrite"]
    for program, flag in ((forecast, "--output"), (evaluate, "--json"), (report, "--output")):
        with pytest.raises(ValueError, match=f"{flag} .*counts.npy: that is the file of the data"):
            program.main([*flags, flag, str(work / "counts.npy")])
    assert np.array_equal(np.load(work / "counts.npy"), own)


def test_a_newer_array_begins_where_its_start_says(work, tmp_path, capsys):
    np.save(tmp_path / "newer.npy", COUNTS[30:])
    newer = "--data_path", str(tmp_path / "newer.npy")
    ask(work, tmp_path / "whole.npz", "--nsample", "3")
    ask(work, tmp_path / "newer.npz", "--nsample", "3", *newer, "--start", "2020-01-07T06:00")
    assert "it has no times" not in capsys.readouterr().err
    whole, found = loaded(tmp_path / "whole.npz"), loaded(tmp_path / "newer.npz")
    assert whole.keys() == found.keys() and all(np.array_equal(whole[name], found[name]) for name in whole)
    ask(work, tmp_path / "other.npz", "--nsample", "3", *newer)
    assert "it has no times: its first step is taken as 2020-01-06T00:00" in capsys.readouterr().err
    for flags, message in (((), "describes a newer file"), ((*newer,), "no step begins then")):
        with pytest.raises(ValueError, match=f"--start 2020-01-07T06:30.*{message}"):
            ask(work, tmp_path / "x.npz", *flags, "--start", "2020-01-07T06:30")
    (tmp_path / "newer.csv").write_text("time,node 0,node 1,node 2,node 3\n" + "".join(
        f"2020-01-07T{hour:02}:00,1,1,1,1\n" for hour in range(6, 12)))
    with pytest.raises(ValueError, match="--start 2020-01-07: the first time stamp of .* is 2020-01-07T06:00"):
        ask(work, tmp_path / "x.npz", "--data_path", str(tmp_path / "newer.csv"), "--start", "2020-01-07")


def test_a_run_that_has_not_finished_is_noted(work, tmp_path, capsys):
    (tmp_path / "model.pt").write_bytes((run_of(work) / "model.pt").read_bytes())
    load_forecaster(tmp_path)
    assert "the run has not finished, as it has no metrics.json" in capsys.readouterr().err


def test_forecasts_of_what_was_trained_on_are_no_test_and_said_so(work, tmp_path, capsys):
    ask(work, tmp_path / "all.csv", "--rolling", "141", "--nsample", "2")
    # the 85 windows of training, and 3 that share targets with the last of them
    assert "note: 88 of 141 windows have futures that the model was trained on" in capsys.readouterr().err
    ask(work, tmp_path / "test.csv", "--split", "test")
    assert capsys.readouterr().err == ""


def test_values_chooses_what_is_written(work, tmp_path):
    ask(work, tmp_path / "x.csv", "--values", "quantiles")
    assert len(pd.read_csv(tmp_path / "x.csv").columns) == 3 + 19
    with pytest.raises(ValueError, match="x.csv: it exists"):
        ask(work, tmp_path / "x.csv")
    ask(work, tmp_path / "x.csv", "--values", "members", "--overwrite")
    assert len(pd.read_csv(tmp_path / "x.csv").columns) == 3 + 5


def test_no_more_windows_are_in_memory_than_are_sampled_together(work):
    trained = load_forecaster(run_of(work))
    parts = [len(part.times) for part in forecast.forecasts(
        trained, forecast.Series(torch.tensor(COUNTS), 0, 0, None), range(9), {"sample_batch": 10, "nsample": 5})]
    assert parts == [2, 2, 2, 2, 1] and rows_at_once(NODES, trained.device, 10) == 10


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_forecast_leaves_nothing_half_written(work, tmp_path, number, status):
    command = [sys.executable, "-m", "scripts.forecast", str(run_of(work)), "--data_path", str(work / "counts.npy"),
               "--rolling", "141", "--nsample", "5000", "--device", "cpu", "--output", str(tmp_path / "x.csv")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not any(file.stat().st_size for file in tmp_path.iterdir()):
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
