"""Every way to the data of a trained run leads through the same checks: its own file, a newer one, scores, Python."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import xarray
from conftest import random_values

import main_pretrain
import main_train
from data.calendar import make_calendar
from data.covariates import read_covariates
from models import load_forecaster
from scripts import evaluate, forecast, report
from utils.training.checkpoint import load_checkpoint, read_json, save_checkpoint

NODES, STEPS, HISTORY, HORIZON = ("a", "b", "c", "d"), 150, 6, 4
TINY = ["--history_len", "6", "--predict_len", "4", "--epochs", "1", "--channels", "4", "--layers", "1", "--nsample",
        "5", "--sample_steps", "2", "--test_windows", "4", "--device", "cpu", "--networks", "1", "--batch_size", "32"]
FIELD = pd.DataFrame(random_values(STEPS, 4), pd.date_range("2020-01-06", periods=STEPS, freq="h"), NODES)
FIELD.index.name = "time"


def train(folder, data_path, *flags):
    for stage in (main_pretrain, main_train):
        assert stage.main([*TINY, "--data_path", str(data_path), "--save_dir", str(folder / "save"), *flags]) == 0
    return folder / "save/diffusion/field_6_4"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run on FIELD, which lies beside it as field.csv."""
    folder = tmp_path_factory.mktemp("work")
    FIELD.to_csv(folder / "field.csv")
    train(folder, folder / "field.csv")
    return folder


@pytest.fixture
def work(trained, tmp_path):
    """The run, its file to be rewritten, and put back afterwards."""
    yield trained / "save/diffusion/field_6_4", trained / "field.csv", tmp_path
    FIELD.to_csv(trained / "field.csv")


class Opened(Exception):
    """The report has opened its data."""


def from_own_file(work, frame, *flags):
    run, own, folder = work
    frame.to_csv(own)
    forecast.main([str(run), "--output", str(folder / "own.parquet"), "--overwrite", *flags])
    return table_of(pd.read_parquet(folder / "own.parquet"))


def from_newer_file(work, frame, *flags):
    run, _, folder = work
    frame.to_csv(folder / "newer.csv")
    forecast.main([str(run), "--data_path", str(folder / "newer.csv"), "--output", str(folder / "new.parquet"),
                   "--overwrite", *flags])
    return table_of(pd.read_parquet(folder / "new.parquet"))


def from_python(work, frame):
    return table_of(load_forecaster(work[0]).forecast(frame[-HISTORY:]).to_frame())


def table_of(found):
    """First time that is forecast, and the first member of each node there."""
    first = found[found.valid_time == found.valid_time.min()]
    return str(first.valid_time.iloc[0]), dict(zip(first.node, first.member_0.round(3), strict=True))


def scores_of(work, frame):
    run, own, folder = work
    frame.to_csv(own)
    evaluate.main([str(run), "--split", "test", "--json", str(folder / "scores.json"), "--overwrite"])
    return read_json(folder / "scores.json")["CRPS"]


def scores_of_elsewhere(work, frame):
    run, _, folder = work
    frame.to_csv(folder / "moved.csv")
    evaluate.main([str(run), "--split", "test", "--overwrite", "--json", str(folder / "scores.json"), "--data_path",
                   str(folder / "moved.csv")])
    return read_json(folder / "scores.json")["CRPS"]


def page_of(work, frame):
    """The values of each node that the report would show."""
    run, own, _ = work
    frame.to_csv(own)

    def opened(model, settings, data, *_, **__):
        raise Opened(dict(zip(data.field.node_names, data.field.values[-1].tolist(), strict=True)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "score_ensemble", opened)
        with pytest.raises(Opened) as found:
            report.main([str(run)])
    return found.value.args[0]


FORECASTS = {"own file": from_own_file, "newer file": from_newer_file, "Python": from_python}
SCORES = {"evaluate": scores_of, "evaluate elsewhere": scores_of_elsewhere, "report": page_of}
WAYS = {**FORECASTS, **SCORES}


def shifted(hours):
    return FIELD.set_axis(FIELD.index + pd.Timedelta(hours=hours))


REFUSED = {
    "another name": (FIELD.rename(columns={"d": "x"}), r"nodes x \(wanted d\)"),
    "a node less": (FIELD.drop(columns="b"), "nodes missing: b"),
    "a node more": (FIELD.assign(e=1.0), "nodes unknown to it: e"),
    "another interval": (FIELD.set_axis(pd.date_range("2020-01-06", periods=STEPS, freq="2h")), "1 hour after"),
    "a gap": (FIELD.drop(index=FIELD.index[-3]), "1 hour after"),
    "two rows exchanged": (FIELD.iloc[[*range(147), 148, 147, 149]], "1 hour after"),
    "another clock": (FIELD.tz_localize("UTC"), "its times are of the time zone UTC, those of the data state none"),
    "between two steps": (shifted(0.5), "no step begins then; a step takes 1 hour"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", REFUSED)
def test_another_field_is_refused_by_every_way_in(work, way, fault):
    frame, message = REFUSED[fault]
    with pytest.raises(ValueError, match=message):
        WAYS[way](work, frame.rename_axis("time"))


def test_another_unit_is_refused(work):
    run, _, folder = work
    for unit in ("K", "1"):
        values = ("time", "node"), FIELD.to_numpy(), {"units": unit}
        xarray.Dataset({"v": values}, {"time": FIELD.index.to_numpy(), "node": list(NODES)}).to_netcdf(
            folder / f"in_{unit}.nc")
    forecast.main([str(run), "--data_path", str(folder / "in_1.nc"), "--output", str(folder / "x.csv")])
    with pytest.raises(ValueError, match=r"in_K.nc: another field .*: unit K \(wanted unit not stated\)"):
        forecast.main([str(run), "--data_path", str(folder / "in_K.nc"), "--output", str(folder / "y.csv")])


@pytest.mark.parametrize("way", WAYS)
def test_columns_in_another_order_are_the_same_nodes_by_every_way_in(work, way):
    assert WAYS[way](work, FIELD[["c", "a", "d", "b"]]) == WAYS[way](work, FIELD)


@pytest.mark.parametrize("hours", [24, -24, 3])
@pytest.mark.parametrize("way", FORECASTS)
def test_a_forecast_is_dated_from_the_file_that_it_starts_from(work, way, hours):
    expected = str(FIELD.index[-1] + pd.Timedelta(hours=1 + hours))
    assert FORECASTS[way](work, shifted(hours).rename_axis("time"))[0] == expected


@pytest.mark.parametrize("way", SCORES)
def test_scores_are_of_the_data_of_the_run_alone(work, way):
    with pytest.raises(ValueError, match="first_time 2020-01-07T00:00 .wanted 2020-01-06T00:00"):
        SCORES[way](work, shifted(24).rename_axis("time"))
    with pytest.raises(ValueError, match="values_sha256"):
        SCORES[way](work, (FIELD + np.eye(STEPS, 4)).rename_axis("time"))


def test_at_and_rolling_of_a_rewritten_file_are_dated_from_it(work):
    frame = shifted(24).rename_axis("time")
    at, members = from_own_file(work, frame, "--at", "2020-01-13T06:00")
    assert at == "2020-01-13 06:00:00"
    assert (at, members) == from_python(work, shifted(24))
    rolling, _ = from_own_file(work, frame, "--rolling", "2")
    assert rolling == str(frame.index[-HORIZON - 1])
    with pytest.raises(ValueError, match="--at 2020-01-06T12:00: the data allow 2020-01-07T06:00 to 2020-01-13T06:00"):
        from_own_file(work, frame, "--at", "2020-01-06T12:00")


def test_a_file_that_has_grown_is_forecast_from_its_new_end(work):
    longer = pd.concat([FIELD, shifted(STEPS)[:5]]).rename_axis("time")
    assert from_own_file(work, longer) == from_newer_file(work, longer) == from_python(work, longer)
    assert from_own_file(work, longer)[0] == "2020-01-12 11:00:00"


# A project that lies elsewhere now

@pytest.fixture
def moved(tmp_path):
    """A project with covariates, a graph and a table of the nodes, moved after stage 2: (its folder now, a run's)."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    FIELD.to_csv(old / "field.csv")
    pd.DataFrame({"from": ["a", "b"], "to": ["b", "c"]}).to_csv(old / "graph.csv", index=False)
    pd.DataFrame({"name": NODES, "lat": range(4), "lon": range(4)}).to_csv(old / "nodes.csv", index=False)
    longer = pd.date_range("2020-01-06", periods=STEPS + HORIZON, freq="h", name="time")
    pd.DataFrame({"rain": np.sin(np.arange(len(longer)))}, longer).to_csv(old / "rain.csv")
    train(old, old / "field.csv", *paths(old)[2:], "--keep_states")
    shutil.move(old, new)
    return new


def paths(folder):
    files = {"data_path": "field", "graph": "graph", "node_table": "nodes", "covariates": "rain"}
    return [text for flag, file in files.items() for text in (f"--{flag}", str(folder / f"{file}.csv"))]


def test_a_moved_project_forecasts_scores_and_goes_on_where_its_files_are_named(moved, tmp_path, capsys):
    run = moved / "save/diffusion/field_6_4"
    for command in ([forecast, str(run), "--output", str(tmp_path / "x.csv")], [evaluate, str(run)]):
        with pytest.raises(FileNotFoundError, match="--data_path .*old/field.csv: there is no such file; if the "
                                                    "run's file has moved, give it by --data_path FILE"):
            command[0].main(command[1:])
    evaluate.main([str(run), "--split", "test", "--json", str(tmp_path / "scores.json"), *paths(moved)])
    assert read_json(tmp_path / "scores.json")["CRPS"] == read_json(run / "metrics.json")["CRPS"]
    shutil.rmtree(moved / "save/mean")  # stage 1 is in the checkpoint
    content = load_checkpoint(run / "model.pt")
    save_checkpoint(run / "model.pt", {name: value for name, value in content.items() if name != "mean_run"})
    forecast.main([str(run), "--output", str(tmp_path / "x.csv"), "--data_path", str(moved / "field.csv"),
                   "--covariates", str(moved / "rain.csv")])
    assert pd.read_csv(tmp_path / "x.csv").valid_time[0] == "2020-01-12T06:00"


@pytest.mark.parametrize("stage, name", [(main_pretrain, "mean"), (main_train, "diffusion")])
def test_a_run_of_a_moved_project_is_the_same_run_as_long_as_its_files_hold_the_same(moved, capsys, stage, name):
    again = [*TINY, "--save_dir", str(moved / "save"), *paths(moved)]
    assert stage.main(again) == 0 and "holds a finished run of these settings: nothing to do" in capsys.readouterr().out
    (moved / f"save/{name}/field_6_4/metrics.json").unlink()
    assert stage.main(again) == 0 and "resuming " in capsys.readouterr().out
    (moved / "graph.csv").write_text("from,to\na,b\n")
    with pytest.raises(ValueError, match="holds a finished run with files graph [0-9a-f]{64} "):
        stage.main(again)


def test_other_data_in_the_place_of_the_moved_ones_are_no_resume(moved):
    again = [*TINY, "--save_dir", str(moved / "save"), *paths(moved)]
    rain = pd.read_csv(moved / "rain.csv")
    rain.assign(rain=rain.rain.where(rain.index != 140, 7)).to_csv(moved / "rain.csv", index=False)  # after training
    with pytest.raises(ValueError, match="covariates_sha256"):
        main_pretrain.main(again)
    (FIELD + np.eye(STEPS, 4)).to_csv(moved / "field.csv")
    with pytest.raises(ValueError, match="values_sha256"):
        main_pretrain.main(again)


def test_files_that_a_run_does_not_have_are_refused(work, registered, tmp_path):
    run, own, _ = work
    with pytest.raises(ValueError, match="--graph .*: the run was trained without one"):
        evaluate.main([str(run), "--graph", str(own)])
    flags = [*TINY, "--data_name", "Tiny", "--data_dir", str(registered(FIELD.to_numpy())), "--save_dir", str(tmp_path)]
    main_pretrain.main(flags)
    main_train.main(flags)
    with pytest.raises(ValueError, match="--data_path .*: the run was trained on the dataset Tiny: give its folder"):
        evaluate.main([str(tmp_path / "diffusion/Tiny_6_4"), "--data_path", str(own)])


# Covariates

CALENDAR = make_calendar("2020-01-06", (1, "hour"), 60)


def covariates(path, times, **columns):
    pd.DataFrame(columns or {"rain": np.arange(len(times)) * 1.0}, pd.DatetimeIndex(times, name="time")).to_csv(path)
    return read_covariates(path, CALENDAR, NODES)


def hours(count, start="2020-01-06"):
    return pd.date_range(start, periods=count, freq="h")


@pytest.mark.parametrize("times, words", [
    (hours(72).delete(65), "line 67: time 2020-01-08T18:00, the field has 2020-01-08T17:00 there, beyond its end"),
    (hours(60).append(hours(12, "2020-01-08T12:00")[::-1]), "line 62: time 2020-01-08T23:00, the field has .*T12:00"),
    (hours(60).append(pd.date_range("2020-01-08T12:00", periods=4, freq="6h")), "line 63: time 2020-01-08T18:00"),
    (hours(60).append(hours(12, "2020-01-08T06:00")), "line 62: time 2020-01-08T06:00, the field has .*T12:00"),
    (hours(60).append(hours(12, "2020-01-09")), "line 62: time 2020-01-09T00:00"),
    (hours(72) + pd.Timedelta(seconds=30), "line 2: time 2020-01-06T00:00:30"),
])
def test_every_time_of_covariates_is_that_of_a_step_beyond_the_end_of_the_field_too(tmp_path, times, words):
    with pytest.raises(ValueError, match=f"--covariates .*{words}"):
        covariates(tmp_path / "beside.csv", times)


def test_covariates_in_descending_order_are_turned_with_a_note(tmp_path):
    found = covariates(tmp_path / "beside.csv", hours(72)[::-1])
    assert found.values[:, 0, 0].tolist() == [*range(71, -1, -1)]
    assert found.notes == ("its rows descend in time: they are taken in the opposite order",)


def test_covariates_with_times_may_begin_before_the_field(tmp_path):
    found = covariates(tmp_path / "beside.csv", hours(100, "2020-01-05T22:00"))
    assert found.values[:3, 0, 0].tolist() == [2, 3, 4] and len(found.values) == 98


def test_covariates_of_nodes_are_put_in_the_order_of_the_field(tmp_path):
    values = dict(zip("cadb", np.arange(240.).reshape(4, 60), strict=True))
    found = covariates(tmp_path / "beside.csv", hours(60), **values)
    assert found.names == ("covariate 0",)
    wanted = np.stack([values[name] for name in NODES], axis=1).astype(np.float32)
    torch.testing.assert_close(found.values[..., 0], torch.from_numpy(wanted))


@pytest.mark.parametrize("names, words", [("abc", "nodes missing: d"), ("abcx", r"nodes x \(wanted d\)"),
                                          ("abcde", "nodes unknown to it: e")])
def test_covariates_of_other_nodes_are_refused_by_name(tmp_path, names, words):
    with pytest.raises(ValueError, match=f"{words}; give one column for each node of the field, or, for covariates of"):
        covariates(tmp_path / "beside.csv", hours(60), **{name: np.zeros(60) for name in names})


def test_covariates_without_times_stay_with_the_steps_of_the_run(tmp_path):
    """The run's own file of covariates begins where its data began, also where a newer file begins later."""
    rain = np.random.default_rng(0).normal(size=(STEPS + HORIZON, 1))
    np.savez(tmp_path / "rain.npz", values=rain, covariate_names=["rain"])
    FIELD.to_csv(tmp_path / "field.csv")
    run = train(tmp_path, tmp_path / "field.csv", "--covariates", str(tmp_path / "rain.npz"))
    work = run, tmp_path / "field.csv", tmp_path
    assert from_newer_file(work, FIELD[-20:]) == from_own_file(work, FIELD)
    with pytest.raises(ValueError, match="it begins with the data of the run, 24 steps after this field"):
        from_newer_file(work, shifted(-24).rename_axis("time"))
