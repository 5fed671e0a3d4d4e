"""Forecasts from Python: names, times and masks of a history are checked; the forecaster has a readable repr."""

import pickle
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray
from conftest import random_values

import main_pretrain
import main_train
from models import load_forecaster
from scripts import forecast as forecast_script

NODES, STEPS = ("a", "b", "c", "d"), 150
FIELD = pd.DataFrame(random_values(STEPS, 4), pd.date_range("2020-01-06", periods=STEPS, freq="h"), NODES)
HISTORY, START = FIELD[-6:], "2020-01-12T00:00"
TINY = ["--history_len", "6", "--predict_len", "4", "--epochs", "1", "--channels", "4", "--layers", "1", "--nsample",
        "5", "--sample_steps", "2", "--test_windows", "4", "--device", "cpu", "--networks", "1", "--batch_size", "32"]


def trained(folder, *flags, field=FIELD):
    field.rename_axis("time").to_csv(folder / "field.csv")
    for stage in (main_pretrain, main_train):
        stage.main([*TINY, "--data_path", str(folder / "field.csv"), "--save_dir", str(folder), *flags])
    return load_forecaster(folder / "diffusion/field_6_4")


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def special(tmp_path_factory):
    """A model with gaps, lags and two covariates."""
    folder = tmp_path_factory.mktemp("special")
    times = pd.date_range("2020-01-06", periods=STEPS, freq="h", name="time")
    pd.DataFrame({"rain": np.sin(np.arange(STEPS)), "wind": np.cos(np.arange(STEPS))}, times).to_csv(folder / "by.csv")
    return trained(folder, "--missing", "mask", "--null_value", str(FIELD.iloc[3, 1]), "--lags", "8,24",
                   "--covariates", str(folder / "by.csv"))


def test_columns_are_matched_by_name_and_the_index_gives_the_times(forecaster):
    wanted = forecaster.forecast(HISTORY.to_numpy(), START)
    assert wanted.times[0] == np.datetime64("2020-01-12T06:00")
    for history in (HISTORY, HISTORY[["d", "b", "a", "c"]], HISTORY.set_axis(HISTORY.index.to_period("h")),
                    HISTORY.set_axis(HISTORY.index.strftime("%Y-%m-%d %H:%M"))):
        found = forecaster.forecast(history)
        assert (found.members == wanted.members).all() and (found.times == wanted.times).all()


@pytest.mark.parametrize("start", [START, np.datetime64(START), pd.Timestamp(START),
                                   pd.Timestamp(START).to_pydatetime()])
def test_a_start_may_be_any_kind_of_time(forecaster, start):
    assert forecaster.forecast(HISTORY.to_numpy(), start).times[0] == np.datetime64("2020-01-12T06:00")


@pytest.mark.filterwarnings("ignore:history. its offset from UTC .Asia")
def test_times_of_any_time_zone_are_those_of_data_that_state_one(tmp_path):
    local = FIELD.tz_localize("Europe/Berlin")
    forecaster = trained(tmp_path, field=local)
    history, wanted = local[-6:], local.index[-1] + pd.Timedelta(hours=1)
    whole = forecaster.forecast(history)
    assert whole.times[0] == wanted.tz_convert(None) and whole.to_frame().valid_time[0] == wanted
    assert "2020-01-12T06:00+01:00 to 2020-01-12T09:00+01:00" in repr(whole)
    for index in (history.index.tz_convert("UTC"), history.index.tz_convert("Asia/Tokyo")):
        found = forecaster.forecast(history.set_axis(index))
        assert (found.members == whole.members).all() and (found.times == whole.times).all()
    for start in (START, pd.Timestamp(START), history.index[0], history.index[0].tz_convert("Asia/Tokyo"),
                  history.index[0].tz_convert(None).to_datetime64(), "2020-01-11T23:00Z"):
        assert (forecaster.forecast(history.to_numpy(), start).members == whole.members).all()
    both = np.stack([local[-7:-1], history])
    for starts in (local.index[[-7, -6]], FIELD.index[[-7, -6]], FIELD.index[[-7, -6]].to_series()):
        assert (forecaster.forecast(both, starts).times[1] == whole.times).all(), "without a zone as a single time"
    with pytest.raises(ValueError, match="history: its times state no time zone, those of the data are of .*01:00"):
        forecaster.forecast(HISTORY)
    with pytest.raises(ValueError, match=r"the index of the history begins at 2020-01-12T00:00\+01:00"):
        forecaster.forecast(history, "2020-01-12T00:00Z")


def test_rows_that_a_history_lacks_are_gaps_where_values_may_be_missing(special):
    history, rain = FIELD[-34:-4], np.zeros((10, 2))
    gaps = history.copy()
    gaps.iloc[26] = np.nan
    with pytest.warns(UserWarning, match="history: 1 step is missing, from .*: inserted as gaps"):
        found = special.forecast(history.drop(index=history.index[26]), covariates=rain)
    assert (found.members == special.forecast(gaps, covariates=rain).members).all()


def test_frames_of_several_windows_are_stacked(forecaster):
    wanted = forecaster.forecast(np.stack([FIELD[:6], HISTORY]), ["2020-01-06", START])
    found = forecaster.forecast([FIELD[:6][["d", "b", "a", "c"]], HISTORY])
    assert (found.members == wanted.members).all() and (found.issued == wanted.issued).all()
    again = forecaster.forecast([FIELD[:6].reset_index(drop=True), HISTORY.reset_index(drop=True)],
                                np.array(["2020-01-06", START], dtype="datetime64[ns]"))
    assert (again.members == wanted.members).all()


@pytest.mark.parametrize("history, start, message", [
    (HISTORY, "2020-01-12T01:00", "history_start 2020-01-12T01:00: the index .* begins at 2020-01-12T00:00"),
    (HISTORY.rename(columns={"a": "x"}), None, r"history: another field .*: nodes x \(wanted a\)"),
    (HISTORY.drop(columns="c"), None, "history: another field than .*: nodes missing: c"),
    (HISTORY.set_axis(list("aabc"), axis=1), None, "nodes named twice: a"),
    (FIELD[-12::2], None, "history: row 1: time 2020-01-11T20:00, expected 2020-01-11T19:00"),
    (HISTORY.iloc[[0, 1, 3, 2, 4, 5]], None, "history: row 2: time 2020-01-12T03:00, expected 2020-01-12T02:00"),
    (HISTORY.tz_localize("UTC"), None, "history: its times are of the time zone UTC, those of the data state none"),
    (HISTORY.to_numpy(), pd.Timestamp(START, tz="Asia/Tokyo"), "history_start .*: the data state no time zone"),
    (HISTORY.assign(a="much"), None, "history: row 0, column a: 'much' is not a number"),
    (HISTORY.reset_index(drop=True), None, "history_start: give the time of the first step of the history, or a Data"),
    (HISTORY.to_numpy(), None, "history_start: give the time"),
    (np.zeros((0, 6, 4)), [], r"history of shape \(0, 6, 4\), start of shape \(0,\); expected \(6, 4\)"),
    (HISTORY.to_numpy() * [1, np.inf, 1, 1], START, "value inf at 2020-01-12T00:00, node b; .* numbers$"),
    (FIELD[-5:], None, r"history of shape \(5, 4\), start of shape \(\); expected \(6, 4\)"),
    ([FIELD[-6:], FIELD[-5:]], None, r"history: windows of shapes \(5, 4\), \(6, 4\); expected equal ones"),
    ([FIELD[-6:]], [START, START], "history_start: 2 times for 1 histories"),
    (HISTORY.set_axis([pd.NaT, *HISTORY.index[1:]]), START, "history: row 0: .*no time"),
    (pd.concat({"x": HISTORY}), START, "history: an index of 2 levels; expected the times alone"),
    (HISTORY.to_numpy() > 0, START, "history: values of type bool; expected an array of numbers"),
    (HISTORY.to_numpy() + 1j, START, "history: values of type complex64; expected"),
    (np.full((6, 4), np.timedelta64(5, "h")), START, "history: values of type timedelta64.*; expected"),
    (np.full((6, 4), pd.NA), START, "history: float.. argument .*; expected an array of numbers, or a DataFrame"),
    ([[1.0, 2.0], [1.0]], START, "history: .*; expected an array of numbers"),
    (xarray.DataArray(HISTORY), START, "history: DataArray with names of its axes; give its .to_pandas"),
])
def test_labels_that_contradict_the_field_are_refused(forecaster, history, start, message):
    with pytest.raises(ValueError, match=message):
        forecaster.forecast(history, start)


def test_columns_without_names_are_the_nodes_in_their_order(forecaster):
    wanted = forecaster.forecast(HISTORY).members
    assert (forecaster.forecast(pd.DataFrame(HISTORY.to_numpy(), HISTORY.index)).members == wanted).all()


@pytest.mark.parametrize("names", [(2, 1, 0), (0, 1, 2), (101, 102, 103)])
def test_columns_that_are_whole_numbers_are_names_where_the_run_has_them(tmp_path, names):
    field = FIELD.iloc[:, :3].set_axis(map(str, names), axis=1)
    forecaster = trained(tmp_path, field=field)
    for order in (sorted(names), sorted(names, reverse=True)):
        step = order[1] - order[0]
        numbers = pd.RangeIndex(order[0], order[-1] + step, step)
        history = field[-6:][list(map(str, order))].set_axis(numbers, axis=1)
        assert (forecaster.forecast(history).members == forecaster.forecast(field[-6:]).members).all()


def test_a_masked_value_is_a_missing_one(forecaster, special):
    mask = np.zeros((6, 4), dtype=bool)
    mask[2, 1] = True
    with pytest.raises(ValueError, match="history: value nan at 2020-01-12T02:00, node b; .* numbers: a model"):
        forecaster.forecast(np.ma.array(HISTORY.to_numpy(), mask=mask), START)
    whole, rain = FIELD[-34:-4].to_numpy(), np.zeros((10, 2))
    mask, gaps = np.zeros((30, 4), dtype=bool), whole.copy()
    mask[26, 1], gaps[26, 1] = True, np.nan
    masked = np.ma.array(whole, mask=mask)
    wanted = special.forecast(gaps, FIELD.index[-34], covariates=rain).members
    assert (special.forecast(masked, FIELD.index[-34], covariates=rain).members == wanted).all()
    both = special.forecast([masked, masked], [FIELD.index[-34]] * 2, covariates=np.stack([rain, rain])).members
    np.testing.assert_allclose(both[1], wanted, rtol=1e-5)
    assert (special.forecast(whole, FIELD.index[-34], covariates=rain).members != wanted).any()


@pytest.mark.filterwarnings("ignore:covariate rain has values")
def test_covariates_in_a_frame_are_matched_by_name_and_time(special):
    history, times = FIELD[-34:-4], FIELD.index[-10:]
    frame = pd.DataFrame({"rain": np.arange(10.), "wind": np.arange(10.) ** 2}, times)
    wanted = special.forecast(history, covariates=frame.to_numpy()).members
    assert (special.forecast(history, covariates=frame[["wind", "rain"]]).members == wanted).all()
    assert (special.forecast(history, covariates=frame.to_numpy().astype(object)).members == wanted).all()
    masked = np.ma.array(frame.to_numpy(), mask=[[False, True]] + [[False, False]] * 9)
    for missing in (masked, frame.where(frame != 4)):
        with pytest.raises(ValueError, match="covariates: wind is missing or infinite at 2020-01-1.T..:00; a forecast"):
            special.forecast(history, covariates=missing)
    with pytest.raises(ValueError, match="covariates: columns missing: wind; the model was trained with rain, wind"):
        special.forecast(history, covariates=frame[["rain"]])
    with pytest.raises(ValueError, match="covariates: the index holds 10 .*; expected 10, from 2020-01-11T20:00"):
        special.forecast(history, covariates=frame.set_axis(times + pd.Timedelta(hours=1)))
    before = frame.set_axis(times - pd.Timedelta(hours=2))
    for covariates in ([frame, before], [frame[["wind", "rain"]], before.to_numpy()]):
        found = special.forecast([history, FIELD[-36:-6]], covariates=covariates)
        assert (found.members[0] == wanted).all()
    with pytest.raises(ValueError, match="covariates: the index holds 10 .*; expected 10, from 2020-01-11T18:00"):
        special.forecast([history, FIELD[-36:-6]], covariates=[frame, frame])


def test_a_history_that_is_too_short_for_the_lags_is_told_so(special):
    with pytest.raises(ValueError, match=r"history of shape \(6, 4\).*expected \(30, 4\).*; 24 of these steps lie "
                                         "before the 6 of the history, for the lags 8, 24: nan stands for missing"):
        special.forecast(HISTORY)


def test_forecaster_and_forecast_are_two_lines(forecaster, special):
    first, second = str(forecaster).splitlines()
    assert first == "Forecaster of field: 4 nodes, unit not stated; 4 steps of 1 hour from a history of 6"
    assert second.startswith("recipe cost, 5 members, sampler ") and second.endswith(" in 2 steps, on cpu")
    assert "from a history of 6 and 24 before it" in repr(special)
    first, second = repr(forecaster.forecast(HISTORY)).splitlines()
    assert first == "Forecast of field: 5 members, 4 steps, 4 nodes, unit not stated"
    assert second.startswith("2020-01-12T06:00 to 2020-01-12T09:00; CoST")
    both = repr(forecaster.forecast([HISTORY, FIELD[-10:-4]]))
    assert "2 windows of 5 members" in both and "2020-01-12T02:00 to 2020-01-12T09:00" in both


def test_covariates_of_a_file_are_matched_by_name_too(special, tmp_path):
    path = Path(special.checkpoint["config"]["covariates"])
    pd.read_csv(path)[["time", "wind", "rain"]].to_csv(tmp_path / "turned.csv", index=False)
    found = []
    for number, beside in enumerate((path, tmp_path / "turned.csv")):
        output = tmp_path / f"{number}.csv"
        assert forecast_script.main([str(path.parent / "diffusion/field_6_4"), "--split", "test", "--device", "cpu",
                                     "--covariates", str(beside), "--output", str(output)]) == 0
        found.append(output.read_text())
    assert found[0] == found[1]


def test_covariates_far_outside_of_their_training_range_give_a_warning(special):
    steps = special.history_steps
    history, near = FIELD[STEPS - steps - 4:STEPS - 4], pd.read_csv(special.checkpoint["config"]["covariates"])[-10:]
    for factor, warned in ((1, False), (1000, True)):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            special.forecast(history, covariates=near[["rain", "wind"]] * [1, factor])
        texts = [str(one.message) for one in found if "covariate" in str(one.message)]
        assert bool(texts) == warned
    assert re.match(r"covariate wind has values from .*, the training part held -\S+ to \S+: is it in", texts[0])


def test_one_covariate_may_have_a_column_for_each_node(tmp_path):
    beside = pd.DataFrame(random_values(STEPS, 4, seed=1), FIELD.index, NODES)
    beside.rename_axis("time").to_csv(tmp_path / "by.csv")
    forecaster = trained(tmp_path, "--covariates", str(tmp_path / "by.csv"))
    frame = beside[-10:]
    wanted = forecaster.forecast(FIELD[-10:-4], covariates=frame.to_numpy()[..., None]).members
    assert (forecaster.forecast(FIELD[-10:-4], covariates=frame[["d", "b", "a", "c"]]).members == wanted).all()


def test_arguments_that_exclude_each_other_or_are_none_of_this_forecaster_are_refused(forecaster):
    with pytest.raises(ValueError, match="members 5: nsample is given too; leave one of them out"):
        forecaster.forecast(HISTORY, members=5, nsample=10)
    with pytest.raises(ValueError, match="online: True; give the result of the method online"):
        forecaster.forecast(HISTORY, online=True)
    other = replace(forecaster, checkpoint={**forecaster.checkpoint, "mean_config": {}})
    with pytest.raises(ValueError, match="online: that of another run; give the result of the method online"):
        forecaster.forecast(HISTORY, online=other.online())


def test_windows_that_are_refused_leave_an_online_correction_as_it_was(forecaster):
    online, windows = forecaster.online(), [FIELD[-8:-2], HISTORY]
    for wrong in (windows[::-1], [HISTORY, HISTORY]):
        with pytest.raises(ValueError, match="a window from step 1.. after one from step 150: .* in the order of time"):
            forecaster.forecast(wrong, online=online)
    wanted = forecaster.forecast(windows, online=forecaster.online()).members
    stored = pickle.loads(pickle.dumps(online))
    assert (forecaster.forecast(windows, online=stored).members == wanted).all()
