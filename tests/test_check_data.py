"""A file is described as it is, and the flags that are suggested for it train it."""

import re
import shlex

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, make_field, random_values

import main_pretrain
from data import fields
from data.fields import OwnFile, codes_for_missing, load_field
from scripts import check_data
from scripts.check_data import description, suggested_length
from utils.program import run_main

QUICK = ["--device", "cpu"]


def wave(steps, *periods):
    """Sines of these periods, the first the strongest, on a trend."""
    time = np.arange(steps)
    return 0.05 * time + sum(np.sin(2 * np.pi * time / period) * (len(periods) - index)
                             for index, period in enumerate(periods))


def said_of(capsys, *arguments) -> dict[str, str]:
    assert check_data.main([*map(str, arguments), *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0].rstrip(":"): line for line in lines} | {"all": "\n".join(lines)}


@pytest.fixture
def hourly(tmp_path):
    """Ten days of counts at four places: a daily wave; a constant node; 12 values missing."""
    values = (40 * wave(240, 24)[:, None] + random_values(240, 4) / 20).round().clip(0)
    values[:, 2], values[7:19, 1] = 5, np.nan
    path = tmp_path / "my counts.csv"
    pd.DataFrame(values, pd.date_range("2024-01-01", periods=240, freq="h", name="time"), list("abcd")).to_csv(path)
    return path


def test_covariates_are_checked_and_stand_in_the_suggested_command(hourly, tmp_path, capsys):
    times = pd.date_range("2024-01-01", periods=250, freq="h", name="time")
    pd.DataFrame({"holiday": (times.day_of_week > 4).astype(int)}, times).to_csv(tmp_path / "beside.csv")
    said = said_of(capsys, hourly, "--covariates", tmp_path / "beside.csv")
    assert "holiday; they reach 10 steps beyond the data" in said["covariates"]
    assert f"--covariates {tmp_path / 'beside.csv'}" in said["all"]
    pd.DataFrame({"holiday": 1.0}, times[5:]).to_csv(tmp_path / "late.csv")
    with pytest.raises(ValueError, match="--covariates .*late.csv"):
        said_of(capsys, hourly, "--covariates", tmp_path / "late.csv")


@pytest.mark.parametrize("periods, steps, length", [
    ((24,), 5000, 24), ((36, 288), 5000, 36), ((288,), 5000, 12), ((), 5000, 12), ((24,), 120, 10), ((), 5, 1),
])
def test_one_period_is_suggested_where_it_is_a_suitable_length(periods, steps, length):
    assert suggested_length(periods, steps) == length


def test_the_description_counts_zeros_and_missing_values():
    values = random_values(60, 3)
    values[:30, 0], values[:, 1], values[10:16, 2] = 0, 7, np.nan
    said = description(make_field(values), (9, 24))
    assert said["shape"].startswith("60 time steps x 3 nodes; unit: arbitrary")
    assert "every 1 hour from 2020-01-06T00:00 to 2020-01-08T11:00" in said["time"]
    assert said["missing"] == "6 values (3.33%) of 1 nodes: node 2"
    assert said["values"].startswith("0 to ") and said["values"].endswith(f"{30 / 174:.1%} zeros")
    assert said["periods"] == "9 steps, 24 steps (1 day)"
    assert description(make_field(random_values(60, 3)), ())["missing"] == "none"


def test_a_file_is_described_and_its_suggested_flags_train_it(hourly, tmp_path, capsys):
    picture = tmp_path / "field.png"
    said = said_of(capsys, hourly, "--picture", picture)
    assert "240 time steps x 4 nodes" in said["shape"] and "24 steps (1 day)" in said["periods"]
    assert "12 values (1.25%) of 1 nodes: b" in said["missing"]
    assert "note: 1 of 4 nodes have the same value at all times: c" in said["all"]
    assert re.search(r"\d+ train, \d+ validation, \d+ test of 20 \+ 20 steps", said["windows"])
    assert matplotlib.image.imread(picture).std() > 0.05
    flags = said["all"].split("main_pretrain.py ")[1].splitlines()[0]
    assert flags.startswith(f"--data_path '{hourly}' --history_len")
    assert "--history_len 20 --predict_len 20 --batch_size 8 --missing mask" in flags


def test_the_suggested_line_is_accepted_as_it_stands(tmp_path, capsys):
    np.save(tmp_path / "a.npy", random_values(120, 3))
    said = said_of(capsys, tmp_path / "a.npy", "--freq", "1d", "--start", "2024-01-01", "--split", "0.5,0.25,0.25")
    line = said["all"].split("main_pretrain.py ")[1].splitlines()[0]
    assert main_pretrain.main([*line.split(), "--dry_run", *QUICK, "--save_dir", str(tmp_path)]) == 0
    assert said["windows"].split(" of ")[0].split(maxsplit=1)[1] in capsys.readouterr().out


def test_flags_that_are_given_are_kept(hourly, capsys):
    said = said_of(capsys, hourly, "--history_len", "8", "--predict_len", "4", "--batch_size", "16", "--support", "any",
                   "--data_name", "mine", "--unit", "cars")
    assert "of 8 + 4 steps" in said["windows"] and "unit: cars" in said["shape"]
    line = said["all"].split("main_pretrain.py ")[1].splitlines()[0]
    assert all(flag in line for flag in ("--data_name mine", "--batch_size 16", "--support any", "--unit cars"))


@pytest.mark.parametrize("flags, proposed", [((), True), (("--lags", "none"), False), (("--lags", "24"), False)])
def test_lags_are_proposed_where_nothing_is_said_of_them(hourly, capsys, flags, proposed):
    said = said_of(capsys, hourly, "--history_len", "8", "--predict_len", "4", "--device", "cpu", *flags)["all"]
    assert ("the forecast sees earlier values too: lags of 24 steps (--lags auto)" in said) == proposed
    assert " ".join(flags) in said.split("train it with")[1]


def test_a_number_that_stands_for_missing_values_is_counted_with_them(hourly, capsys):
    counts = pd.read_csv(hourly, index_col=0)
    missing = int((counts.isna() | (counts == 0)).to_numpy().sum())
    said = said_of(capsys, hourly, "--missing", "mask", "--null_value", "0")
    assert missing > 12 and f"{missing} values" in said["missing"] and "0.0% zeros" in said["values"]
    line = said["all"].split("main_pretrain.py ")[1].splitlines()[0]
    assert line.count("--missing mask") == 1 and "--null_value 0" in line


@pytest.mark.parametrize("text, flags, words", [
    ("time,a\n2024-01-01,1\n2024-01-02,2\n2024-01-04,3\n", [], "line 4: time 2024-01-04T00:00, expected 2024-01-03"),
    ("time,a\n2024-01-01,1\n2024-01-02,2\n", [], "no validation window: 2 steps in all"),
    ("time,a\n2024-01-01,\n2024-01-02,\n", [], "a.csv: every value is missing"),
    ("a\n1\n2\n", [], "no time stamps; give --freq"),
    ("a\n1\n", ["--freqq", "1h"], "unknown argument --freqq; did you mean --freq"),
])
def test_what_cannot_be_trained_is_one_line_and_status_2(tmp_path, capsys, text, flags, words):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(SystemExit) as caught:
        run_main(lambda: check_data.main([str(tmp_path / "a.csv"), *flags]))
    said = capsys.readouterr().err
    assert caught.value.code == 2 and words in said and said.count("\n") == 1


@pytest.mark.parametrize("times, flags, accepted", [
    (pd.date_range("2024-01-01", periods=240, freq="h").delete([5, 70]), [], False),
    (pd.date_range("2024-01-01", periods=240, freq="h").delete([5, 70]), ["--missing", "mask"], True),
    (pd.date_range("2024-01-01", periods=240, freq="h")[::-1], [], True), (range(240), [], False),
    (pd.date_range("2024-03-25", periods=240, freq="h", tz="Europe/Berlin"), [], True),
    (pd.date_range("2024-01-02", periods=9, freq="D").strftime("%d/%m/%Y"), [], False),
])
def test_times_get_the_verdict_and_the_notes_that_training_gives_them(tmp_path, capsys, times, flags, accepted):
    frame = pd.DataFrame(random_values(len(times), 2), columns=list("ab"))
    frame.insert(0, "time", times)
    frame.to_csv(tmp_path / "a.csv", index=False)
    said = []
    for call in (lambda: check_data.main([str(tmp_path / "a.csv"), *QUICK, *flags]),
                 lambda: main_pretrain.main(["--data_path", str(tmp_path / "a.csv"), "--dry_run", *QUICK, *flags])):
        try:
            assert call() == 0 and accepted
        except ValueError as error:
            assert not accepted
            said.append(str(error))
        else:
            output = capsys.readouterr()
            lines = (output.out + output.err).splitlines()
            said.append([line.removeprefix("note: ").removeprefix("a: ") for line in lines
                         if "its times" in line or "inserted" in line or "its rows" in line])
    assert said[0] == said[1] and len(said) == 2


def test_a_field_with_a_step_without_any_value_is_drawn(tmp_path):
    values = random_values(30, 3)
    values[4] = values[:, 1] = np.nan
    np.save(tmp_path / "a.npy", values)
    field = load_field("a", ROOT, own=OwnFile(str(tmp_path / "a.npy"), "1h", "2024-01-01"), missing="mask")
    check_data.draw_field(field.values.numpy(), field.calendar.times, "mm", tmp_path / "a.png", most=10)
    assert matplotlib.image.imread(tmp_path / "a.png").std() > 0.05


@pytest.mark.parametrize("values, odd", [
    ([0, 3, 5, -999, 9, -999], {"-999": 2}), ([1.5, 1e20, 0, 1e20], {"1e+20": 2}), ([0, 3, 5, -77, 9], {}),
    ([-9999, 4, -999.9, 2, 1e20, -9999], {"-9999": 2, "-999.9": 1, "1e+20": 1}), ([-5000, -999, 4000], {}),
    ([2, 9.969209968386869e36, 3], {"9.969209968386869e+36": 1}),
    ([np.nan, np.nan], {}), ([np.nan, 3, -999], {"-999": 1}),
])
def test_a_number_that_may_stand_for_missing_values_is_found(monkeypatch, values, odd):
    values = torch.tensor(values, dtype=torch.float32)[:, None]
    assert codes_for_missing(values) == odd
    beside = 1e6 * torch.randn(len(values), 1)  # a node of other values hides none
    monkeypatch.setattr(fields, "BLOCK", 1)
    assert codes_for_missing(torch.cat([beside, values], 1)) == odd


@pytest.mark.parametrize("values, odd", [
    ([39, 0, 52, 70, 0], {"0": 2}), ([1, 0, 2, 0], {}), ([5.1, 999.9, 3.2, 7], {"999.9": 1}), ([990, 999, 1010], {}),
    ([2.5, -200, 9, -200], {"-200": 2}), ([-150, -200, -20], {}), ([12, 99.99, 48], {"99.99": 1}), ([0, 5], {}),
])
def test_a_number_that_may_be_a_value_or_missing_is_found_far_from_the_others(values, odd):
    assert codes_for_missing(torch.tensor(values, dtype=torch.float32)[:, None]) == odd


def test_a_number_that_may_stand_for_missing_values_is_told(hourly, capsys):
    counts = pd.read_csv(hourly, index_col=0)
    counts.iloc[::50, 0] = -999
    counts.to_csv(hourly)
    assert "note: -999 occurs 5 times, beyond all other values" in said_of(capsys, hourly)["all"]
    assert "beyond all" not in said_of(capsys, hourly, "--missing", "mask", "--null_value=-999")["all"]


def good_file(folder):
    values = random_values(100, 3)
    values[7, 1], values[:, 2] = -999, 4
    hours = pd.date_range("2024-01-01", periods=100, freq="h", name="time")
    pd.DataFrame(values, hours, list("abc")).reset_index().to_csv(folder / "a.csv")
    return folder / "a.csv"


def with_text(text):
    def write(folder):
        (folder / "a.csv").write_text(text)
        return folder / "a.csv"
    return write


def with_missing(folder):
    path = good_file(folder)
    path.write_text(path.read_text().replace("-999.0", ""))
    return path


def negative(folder):
    hours = pd.date_range("2024-01-01", periods=100, freq="h")
    np.savez(folder / "a.npz", values=random_values(100, 3) - 20, times=hours)
    return folder / "a.npz"


THIRTY_DAYS = "".join(f"2024-01-{day:02},{day % 7},{day % 5}\n" for day in range(1, 31))
SHORT = ["--history_len", "2", "--predict_len", "2"]


@pytest.mark.parametrize("write, flags, refused", [
    (good_file, [], ""), (good_file, ["--missing", "mask", "--null_value=-999"], ""), (negative, [], ""),
    (with_missing, ["--missing", "error"], "1 of 300 values are missing"), (with_missing, ["--missing", "mask"], ""),
    (negative, ["--support", "nonnegative"], "--support nonnegative: a has values down to"),
    (with_text("1,0,0\n1,2,3\n"), [], "where the names of the columns are expected"),
    (with_text("name,2024-01-01,2024-01-02\na,1,2\n"), [], "'a' is not a number"),
    (with_text(f"# by us\ntime;a;b;\n{THIRTY_DAYS.replace(',', ';')}"), SHORT, ""),
    (with_text(f"time,a,a_qc\n{THIRTY_DAYS}"), SHORT, ""),
])
def test_the_verdict_and_the_notes_are_those_of_the_training(tmp_path, capsys, write, flags, refused):
    path, said = str(write(tmp_path)), []
    for program in (lambda: check_data.main([path, *flags, *QUICK]),
                    lambda: main_pretrain.main(["--data_path", path, *flags, *QUICK, "--dry_run"])):
        with pytest.raises(SystemExit) as ended:
            run_main(program)
        spoken = capsys.readouterr()
        assert ended.value.code == (2 if refused else 0), spoken.err
        said.append([line for line in (spoken.out + spoken.err).splitlines() if line.startswith(("note: ", "error: "))])
    checked, trained = said
    assert {line.replace("note: a: ", "note: ") for line in trained} <= {*checked} and refused in " ".join(checked)


def test_mixed_units_are_noted_by_the_check_and_the_training_with_what_is_done(tmp_path, capsys):
    values = random_values(200, 3)
    values[:, 2] = 101_325 + 100 * values[:, 2]
    np.save(tmp_path / "a.npy", values)
    axis = "--freq", "1h", "--start", "2024-01-01", "--history_len", "6", "--predict_len", "4"
    for scaling, told in (("auto", "each node is scaled by its own mean and spread"), ("field", "one scale for all")):
        said = said_of(capsys, tmp_path / "a.npy", *axis, "--scaling", scaling)
        assert "differ by more than 10 times" in said["all"] and told in said["all"]
        assert said["scaling"].endswith("node" if scaling == "auto" else "field")
        main_pretrain.main(["--data_path", str(tmp_path / "a.npy"), *axis, "--scaling", scaling, "--dry_run"])
        spoken = capsys.readouterr()
        assert told in spoken.err and ("spread of each node" in spoken.out) is (scaling == "auto")


def test_check_and_training_agree_on_a_field_that_is_negative_only_after_the_training_part(tmp_path, capsys):
    values = random_values(200, 3).clip(20) - 20
    values[190:] -= 30
    np.save(tmp_path / "a.npy", values)
    said = said_of(capsys, tmp_path / "a.npy", "--freq", "1h", "--start", "2024-01-01")
    line = said["all"].split("main_pretrain.py ")[1].splitlines()[0]
    assert "the smallest training value is 0, but later" in said["all"]
    assert main_pretrain.main([*shlex.split(line), "--dry_run"]) == 0
    assert "values: any" in capsys.readouterr().out


def test_bounds_that_no_value_exceeds_are_noted_and_can_be_stated(tmp_path, capsys):
    random = np.random.default_rng(0)
    times = pd.date_range("2024-01-01", periods=400, freq="h", name="time")
    shares = np.clip(50 + 58 * np.sin(np.arange(400) / 4)[:, None] + random.normal(size=(400, 2)), 0, 100)
    pd.DataFrame(shares, times, list("ab")).to_csv(tmp_path / "shares.csv")
    pd.DataFrame(random.poisson(30, (400, 2)) + 1, times, list("ab")).to_csv(tmp_path / "counts.csv")
    said = said_of(capsys, tmp_path / "shares.csv")["all"]
    assert "note: no value is above 100: --highest 100 keeps forecasts so, if larger ones cannot occur" in said
    said = said_of(capsys, tmp_path / "shares.csv", "--highest", "100")["all"]
    assert "no value is above" not in said and said.count("--highest 100.0") == 2  # in the commands to train it
    said = said_of(capsys, tmp_path / "counts.csv")["all"]
    assert "--support nonnegative keeps forecasts so and whole, if negative values cannot occur" in said
    assert "no value is above" not in said
