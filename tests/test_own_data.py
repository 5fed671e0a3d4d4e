"""A file of one's own through both stages, as its owner would: three fields that differ in kind."""

import json
import os
import re
import shlex
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray
from conftest import ROOT, make_field, random_values

import main_pretrain
import main_train
from data.windows import WindowedField
from models import load_forecaster
from utils.pipeline import note_few_windows, open_run_data
from utils.training.checkpoint import load_checkpoint

TINY = ["--epochs", "1", "--history_len", "6", "--predict_len", "4", "--channels", "8", "--layers", "1", "--nsample",
        "6", "--sample_steps", "2", "--test_windows", "8", "--device", "cpu", "--modes", "2", "--networks", "1",
        "--batch_size", "32"]


def hourly_csv(folder):
    values = random_values(160, 3).round().clip(0)
    values[0, 0] = 0
    times = pd.date_range("2024-01-01", periods=160, freq="h", name="time")
    pd.DataFrame(values, times, ["x", "y", "z"]).to_csv(folder / "bikes.csv")
    return ["--data_path", str(folder / "bikes.csv"), "--split", "2024-01-05,2024-01-06", "--unit", "bikes"]


def monthly_netcdf(folder):
    values = random_values(120, 6).reshape(120, 2, 3)
    values[:, 0, 1] = np.nan
    xarray.Dataset({"sst": (("time", "lat", "lon"), values, {"units": "K"}), "mask": (("lat",), [0.0, 1.0])}, {
        "time": pd.date_range("1950-01-01", periods=120, freq="MS"), "lat": [0.0, 1.0], "lon": [5.0, 6.0, 7.0],
    }).to_netcdf(folder / "sea.nc")
    return ["--data_path", str(folder / "sea.nc"), "--variable", "sst"]


def five_minute_npy(folder):
    np.save(folder / "speed.npy", random_values(150, 4) + 40)
    (folder / "edges.csv").write_text("from,to,weight\nnode 0,node 1,0.5\nnode 3,node 2,1\n")
    return ["--data_path", str(folder / "speed.npy"), "--freq", "5min", "--start", "2024-01-01T06:00", "--graph",
            str(folder / "edges.csv"), "--data_name", "roads"]


@pytest.mark.parametrize("write, name, metadata", [
    (hourly_csv, "bikes", dict(num_nodes=3, calendar_sizes=[24, 7], unit="bikes", nonnegative=True)),
    (monthly_netcdf, "sea", dict(num_nodes=5, calendar_sizes=[12], unit="K", nonnegative=False)),
    (five_minute_npy, "roads", dict(num_nodes=4, calendar_sizes=[288, 7], unit="unit not stated", nonnegative=False)),
])
def test_a_file_of_ones_own_goes_through_both_stages_and_is_opened_again(tmp_path, monkeypatch, capsys, write, name,
                                                                         metadata):
    flags = [*TINY, *write(tmp_path), "--save_dir", str(tmp_path / "save")]
    assert main_pretrain.main(flags) == 0 and main_train.main(flags) == 0
    assert ("left out" in capsys.readouterr().err) == (name == "sea")
    folder = tmp_path / "save" / "diffusion" / f"{name}_6_4"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["data_name"] == name and 0 < metrics["CRPS"] < 1 and metrics["windows"] == 8
    monkeypatch.chdir(tmp_path)  # from another folder
    content = load_checkpoint(folder / "model.pt")
    data = open_run_data(content, "", "cpu")
    assert data.num_nodes == metadata["num_nodes"] and list(data.field.calendar.sizes) == metadata["calendar_sizes"]
    assert data.field.spec.unit == metadata["unit"] and data.field.spec.nonnegative is metadata["nonnegative"]
    if name == "roads":
        assert data.field.graph[3, 2] == 1
    if name == "bikes":
        assert str(data.local_times(int(data.starts["test"][0]))[6]) == "2024-01-06T00:00"


@pytest.mark.parametrize("nodes", [1, 10_000])
def test_one_node_and_ten_thousand_work_and_the_memory_is_said_before(tmp_path, capsys, nodes):
    """faults 19"""
    np.save(tmp_path / "a.npy", random_values(40, nodes))
    flags = [*TINY, "--history_len", "3", "--predict_len", "1", "--channels", "2", "--embedding", "2", "--test_windows",
             "1", "--data_path", str(tmp_path / "a.npy"), "--freq", "1d", "--start", "2024-01-01", "--save_dir",
             str(tmp_path)]
    for main in (main_pretrain.main, main_train.main):
        assert main([*flags, "--dry_run"]) == 0
        assert f"memory: field {nodes * 160 / 2**20:.1f} MiB; weights" in capsys.readouterr().out
        assert main(flags) == 0
    assert 0 < json.loads((tmp_path / "diffusion" / "a_3_1" / "metrics.json").read_text())["CRPS"] < 1


def test_stage_2_names_the_command_with_the_flags_of_the_file(tmp_path):
    flags = five_minute_npy(tmp_path)
    with pytest.raises(ValueError, match="main_pretrain.py --data_name roads --data_path .*speed.npy --freq 5min "
                                         "--start 2024-01-01T06:00 --graph .*edges.csv"):
        main_train.main([*TINY, *flags, "--save_dir", str(tmp_path / "save")])


def test_stage_2_on_another_split_is_refused(tmp_path):
    flags = [*TINY, *hourly_csv(tmp_path), "--save_dir", str(tmp_path / "save")]
    main_pretrain.main(flags)
    with pytest.raises(ValueError, match="stage-1 model does not fit: scaler_mean"):
        main_train.main([*flags, "--split", "0.6,0.2,0.2"])


def test_a_file_that_changed_since_training_is_refused(tmp_path):
    flags = [*TINY, *five_minute_npy(tmp_path), "--save_dir", str(tmp_path / "save")]
    main_pretrain.main(flags)
    np.save(tmp_path / "speed.npy", random_values(150, 4) + 41)
    content = load_checkpoint(tmp_path / "save" / "mean" / "roads_6_4" / "model.pt")
    with pytest.raises(ValueError, match="roads: other data than the run was trained on: scaler_mean"):
        open_run_data(content, "", "cpu")


def mixed_units(folder, outlier=1e6):
    """Degrees, counts, pascals with one outlier, and a level of a billion that only float64 resolves."""
    noise = random_values(160, 4).astype(np.float64) - 20
    values = np.stack([noise[:, 0], (noise[:, 1] / 3).round().clip(0), 101_325 + 100 * noise[:, 2],
                       1e9 + noise[:, 3]], axis=1)
    values[50, 2] += outlier
    times = pd.date_range("2024-01-01", periods=160, freq="h", name="time")
    pd.DataFrame(values, times, ["degrees", "counts", "pascals", "billion"]).to_csv(folder / "mixed.csv")
    return values


def test_mixed_units_go_through_both_stages_and_every_node_gets_a_forecast_of_its_own_scale(tmp_path, capsys):
    values = mixed_units(tmp_path)
    flags = [*TINY, "--data_path", str(tmp_path / "mixed.csv"), "--save_dir", str(tmp_path / "save"), "--epochs", "3",
             "--sample_steps", "10"]
    assert main_pretrain.main(flags) == 0 and main_train.main(flags) == 0
    said = capsys.readouterr().err
    assert "each node is scaled by its own mean and spread" in said and "of 4 nodes (pascals) are far from all" in said
    run = load_forecaster(tmp_path / "save" / "diffusion" / "mixed_6_4")
    metrics = json.loads((tmp_path / "save" / "diffusion" / "mixed_6_4" / "metrics.json").read_text())
    assert list(metrics["per_node"]["CRPS"]) == ["degrees", "counts", "pascals", "billion"]
    assert metrics["CRPS_nodes"] == pytest.approx(np.mean([*metrics["per_node"]["CRPS"].values()]), rel=1e-5)
    spread = np.array([5, 1.4, 500, 5])
    assert (np.array([*metrics["per_node"]["CRPS_physical"].values()]) < spread).all()
    forecast = run.forecast(values[-6:], "2024-01-07T10:00", members=40)
    assert forecast.members.dtype == np.float64 and len(np.unique(forecast.members[..., 3])) > 100
    counts = forecast.members[..., 1]
    assert counts.min() == 0 and (counts == counts.round()).all() and forecast.members[..., 0].min() < 0
    level = np.array([0, 1, 101_325, 1e9])
    assert (abs(forecast.mean - level) < 2 * spread).all()
    with pytest.warns(UserWarning, match="values of node degrees from .* is it in another unit"):
        run.forecast(values[-6:] + [273.15, 0, 0, 0], "2024-01-07T10:00")
    with pytest.warns(UserWarning, match="values of node counts from -1 to .*: forecasts keep the bounds of the run"):
        run.forecast(np.where(values[-6:] == 0, -1, values[-6:]), "2024-01-07T10:00")


def test_a_field_that_grows_in_proportion_is_forecast_by_its_logarithm(tmp_path, capsys):
    steps = np.arange(160)
    values = np.exp(0.03 * steps + 0.3 * np.sin(steps * np.pi / 6))[:, None] * np.array([100.0, 3000.0])
    values *= np.exp(0.02 * np.random.default_rng(0).normal(size=values.shape))
    times = pd.date_range("2000-01-01", periods=160, freq="MS", name="time")
    pd.DataFrame(values, times, ["small", "large"]).to_csv(tmp_path / "sales.csv")
    flags = [*TINY, "--data_path", str(tmp_path / "sales.csv"), "--save_dir", str(tmp_path / "save")]
    assert main_pretrain.main(flags) == 0 and main_train.main(flags) == 0
    assert "scaled by mean and spread of the logarithm of each node" in capsys.readouterr().out
    run = load_forecaster(tmp_path / "save" / "diffusion" / "sales_6_4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # later values are beyond the training range, but not far in their logarithms
        forecast = run.forecast(values[-run.history_steps:], str(times[-run.history_steps]), members=40)
    assert forecast.members.min() > 0
    with pytest.warns(UserWarning, match="values of node small from -5 to -5"):
        run.forecast(np.full((run.history_steps, 2), -5.0), str(times[-run.history_steps]), members=5)
    online = run.online()
    for first in range(100, 130):
        corrected = run.forecast(values[first:first + run.history_steps], str(times[first]), members=20, online=online)
        assert corrected.members.min() > 0
    ratio = forecast.mean / values[-12:-8]
    assert ((ratio > 1.1) & (ratio < 2)).all()  # a year later it is 1.43 times as much


def test_rain_of_unlike_places_goes_through_both_stages_and_is_corrected_online(tmp_path):
    rng = np.random.default_rng(0)
    rain = rng.exponential(1, (300, 3)) * (rng.random((300, 3)) < 0.06) * np.array([1, 1, 50])
    times = pd.date_range("2024-01-01", periods=300, freq="h", name="time")
    pd.DataFrame(rain, times, ["a", "b", "c"]).to_csv(tmp_path / "rain.csv")
    flags = [*TINY, "--data_path", str(tmp_path / "rain.csv"), "--save_dir", str(tmp_path / "save"), "--lags", "none"]
    assert main_pretrain.main(flags) == 0 and main_train.main(flags) == 0
    run = load_forecaster(tmp_path / "save" / "diffusion" / "rain_6_4")
    assert run.checkpoint["config"]["margin"] == "empirical" and run.field.scaler.by_node
    online = run.online()
    for first in (200, 203):
        members = run.forecast(rain[first:first + 6], str(times[first]), members=20, online=online).members
        assert members.min() == 0 and np.isfinite(members).all()


def test_the_worked_example_prints_what_its_page_shows(tmp_path):
    """The table is made and checked by the commands of docs/own_data.md."""
    page = (ROOT / "docs/own_data.md").read_text()
    program, shown = (re.search(pattern, page, re.DOTALL)[1] for pattern in (
        r"python - <<'END'\n(.*?)\nEND", r"check_data flights\.csv [^`]*```\n\n```\n(.*?)```"))
    command = re.search(r"^python (-m scripts\.check_data flights\.csv .*)$", page, re.MULTILINE)[1]
    (tmp_path / "data").symlink_to(ROOT / "data")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = [subprocess.run([sys.executable, *flags], cwd=tmp_path, env=environment, capture_output=True, text=True,
                              check=True).stdout for flags in (["-c", program], shlex.split(command))]
    assert printed[1] == shown


def test_few_independent_validation_windows_are_noted(capsys):
    note_few_windows(WindowedField(make_field(random_values(80, 2)), 6, 6))
    assert "validation windows, whose futures overlap, are worth" in capsys.readouterr().err
    note_few_windows(WindowedField(make_field(random_values(600, 2)), 6, 6))
    assert capsys.readouterr().err == ""
