"""Lags: chosen from the calendar, taken from the field's own past and nothing later, and worth what they repeat."""

import numpy as np
import pytest
import torch
from conftest import make_field, random_values

import main_pretrain
import main_train
from data.context import Context
from data.covariates import Covariates
from data.lags import calendar_periods, choose_lags, repeated_periods
from data.summary import FieldSummary
from data.windows import WindowedField, WindowSettings
from models import MEAN_MODELS, ensemble_sampler, load_forecaster
from models.layers import Task
from scripts import forecast
from utils.pipeline import open_run_data
from utils.training.checkpoint import read_json

HISTORY, HORIZON, STEPS, NODES = 6, 4, 150, 4
LENGTHS = ["--history_len", str(HISTORY), "--predict_len", str(HORIZON)]


def windows(values=None, lags="24,48", **metadata):
    values = random_values(STEPS, NODES) if values is None else values
    return WindowedField(make_field(values, **metadata), HISTORY, HORIZON, WindowSettings(lags=lags))


# Which lags

@pytest.mark.parametrize("interval, predict_len, steps, wanted", [
    ((1, "hour"), 12, 1000, (24, 168)),
    ((1, "hour"), 25, 1000, (48, 168)),
    ((1, "hour"), 100, 1000, (120, 168)),
    ((1, "hour"), 12, 200, (24,)),
    ((1, "hour"), 12, 24, ()),
    ((5, "minute"), 12, 3000, (288,)),
    ((1, "day"), 5, 1000, (7, 365)),
    ((1, "day"), 5, 400, (7,)),
    ((7, "hour"), 3, 1000, (3, 24)),
    ((1, "week"), 12, 1000, (52,)),
    ((5, "day"), 12, 1000, (73,)),
    ((1, "month"), 12, 1000, (12,)),
    ((1, "month"), 13, 1000, (24,)),
    ((3, "month"), 4, 1000, (4,)),
    ((12, "month"), 1, 1000, ()),
])
def test_auto_takes_the_cycles_of_the_calendar_that_the_training_part_has_seen(interval, predict_len, steps, wanted):
    assert repeated_periods(interval, predict_len, repeating(steps, calendar_periods(interval))) == [*wanted]


@pytest.mark.parametrize("interval, steps, periods, wanted", [
    ((12, "month"), 180, [11], (22,)),  # sunspots
    ((1, "hour"), 1000, [24], (24, 168)),
    ((1, "hour"), 1000, [9], (18,)),
    ((1, "day"), 1000, [], ()),
    ((1, "month"), 40, [12], (12,)),
])
def test_auto_takes_a_period_of_the_field_s_own_and_none_that_it_does_not_repeat(interval, steps, periods, wanted):
    wander = torch.randn(steps, 3, generator=torch.Generator().manual_seed(1)).cumsum(0) / 50
    values = repeating(steps, periods) + wander
    assert repeated_periods(interval, 12, values) == repeated_periods(interval, 12, values * 1e-25) == [*wanted]


def test_a_random_walk_has_no_lags_but_seldom():
    generator = torch.Generator().manual_seed(0)
    found = [choose_lags("auto", (1, "day"), 12, torch.randn(300, 3, generator=generator).cumsum(0)) for _ in range(40)]
    assert sum(lags != () for lags in found) <= 2


def repeating(steps, periods, nodes=3):
    """Values that are the sum of a random profile of each period and a little noise."""
    generator = torch.Generator().manual_seed(2)
    values = 0.1 * torch.randn(steps, nodes, generator=generator)
    for period in periods:
        profile = torch.randn(max(2, period), nodes, generator=generator)
        smooth = profile if period < 12 else torch.sin(
            2 * torch.pi * torch.arange(period) / period + torch.arange(nodes).unsqueeze(1)).T
        values = values + smooth[torch.arange(steps) % period]
    return values


def test_lags_are_those_that_are_named_each_once_shortest_first_or_none():
    hourly = (1, "hour")
    values = torch.zeros(200, 1)
    assert choose_lags("168,24,24", hourly, 12, values) == ((24,), (168,))
    assert choose_lags("none", hourly, 12, values) == () and choose_lags("12", hourly, 12, values) == ((12,),)
    assert choose_lags("24,24+48,12", hourly, 12, values) == ((12,), (24,), (24, 48))
    assert choose_lags("24+48,168", hourly, 12, values) == ((168,), (24, 48)), "means are last"


@pytest.mark.parametrize("steps, wanted", [
    (40, ((12,),)), (95, ((12,),)), (96, ((12,), (12, 24))), (1000, ((12,), (12, 24, 36))),
])
def test_auto_adds_the_mean_over_the_shortest_lag_where_the_training_part_is_long(steps, wanted):
    assert choose_lags("auto", (1, "month"), 12, repeating(steps, [12])) == wanted


@pytest.mark.parametrize("text, words", [
    ("24,3", "--lags 24,3: 3 steps are shorter than the horizon, so they need future values; choose lags of at least "
             "--predict_len 4"),
    ("0", "at least --predict_len 4"),
    ("24+3", "--lags 24+3: 3 steps are shorter than the horizon"),
    ("100", "--lags 100: the training part has 94 steps, none of them has a value 100 steps earlier"),
    ("24,48+96", "none of them has a value 96 steps earlier"),
])
def test_lags_that_cannot_be_are_refused(text, words):
    with pytest.raises(ValueError) as caught:
        windows(lags=text)
    assert words in str(caught.value)


# What a window sees

def test_a_batch_holds_the_values_so_much_earlier_and_what_is_usual_where_there_are_none():
    data = windows()
    values = data.scaler.standardize(data.field.values)
    batch = data.batch(torch.tensor([100, 40]))
    assert batch.context.lags.shape == (2, HISTORY + HORIZON, NODES, 2)
    for row, start in enumerate((100, 40)):
        for column, lag in enumerate((24, 48)):
            earlier = start - lag
            missing = min(max(-earlier, 0), HISTORY + HORIZON)
            found = batch.context.lags[row, ..., column]
            torch.testing.assert_close(found[missing:], values[max(earlier, 0):earlier + HISTORY + HORIZON])
            torch.testing.assert_close(found[:missing], batch.context.climatology[row, :missing])
    assert missing == 8, "two days before, the second window has two values"


def test_lags_are_features_behind_the_covariates_of_a_file():
    beside = torch.randn(STEPS, 1, 1)
    data = WindowedField(make_field(random_values(STEPS, NODES)), HISTORY, HORIZON, WindowSettings(lags="24"),
                         covariates=Covariates("x.csv", ("a",), beside))
    batch, only = data.batch(torch.tensor([80])), windows(lags="24").batch(torch.tensor([80]))
    assert torch.equal(batch.context.features[..., 1:], only.context.lags)
    assert torch.equal(batch.context.features[..., :1], batch.context.covariates.expand(-1, -1, NODES, -1))
    assert list(data.metadata()["covariates"]) == ["a"] and data.metadata()["lag_steps"] == ["24"]


def test_a_missing_value_is_what_is_usual_and_no_step_looks_into_another_segment():
    values = torch.as_tensor(random_values(STEPS, NODES))
    values[70, 2] = torch.nan
    data = windows(values, "24,24+48")
    batch, observed = data.batch(torch.tensor([90])), data.scaler.standardize(data.field.values)
    assert batch.context.lags[0, 4, 2, 0] == batch.context.climatology[0, 4, 2]
    assert batch.context.lags[0, 4, 2, 1] == observed[46, 2], "a mean is of the values that there are"
    torch.testing.assert_close(batch.context.lags[0, 5, :, 1], (observed[71] + observed[47]) / 2)
    pair = windows(random_values(STEPS, NODES), "24", pair=(80, 40))
    batch = pair.batch(torch.tensor([80, 100]))
    assert torch.equal(batch.context.lags[0, ..., 0], batch.context.climatology[0])
    assert torch.equal(batch.context.lags[1, :4, :, 0], batch.context.climatology[1, :4])
    torch.testing.assert_close(batch.context.lags[1, 4:, :, 0], pair.scaler.standardize(pair.field.values[80:86]))


@pytest.mark.parametrize("lags", ["auto", "4", "7,24", "5+7+24"])
def test_what_a_test_window_knows_does_not_change_with_what_comes_after_its_history(lags):
    values = torch.as_tensor(random_values(STEPS, NODES)) / 20 + repeating(STEPS, [24], NODES)
    start = 135
    altered = values.clone()
    altered[start + HISTORY:] *= 3
    one, other = (windows(each, lags).batch(torch.tensor([start])) for each in (values, altered))
    assert torch.equal(one.context.lags, other.context.lags) and not torch.equal(one.future, other.future)


@pytest.mark.parametrize("pair", [None, (90, 15)], ids=["one field", "two fields"])
def test_gaps_covariates_and_lags_reach_a_window_of_a_forecast_as_they_do_from_the_data(pair):
    values = random_values(220, NODES)
    values[::7, 1] = np.nan
    beside = Covariates("x.csv", ("a", "b"), torch.randn(220, 1, 2) * 5 + 3)
    data = WindowedField(make_field(values, pair=pair), HISTORY, HORIZON, WindowSettings(lags="7,24,7+14"), beside)
    summary, starts = FieldSummary.of(data), data.starts["test"][[0, 3, 20]]
    first, last = data.field.segments[-1]
    series = forecast.Series(data.field.values[first:last], first, summary.max_lag, beside.values[first:])
    windows = [series.window(start - first, HISTORY, HORIZON) for start in starts.tolist()]
    history, covariates = zip(*windows, strict=True)
    found = summary.batch(torch.as_tensor(np.stack(history)), starts, HORIZON, torch.as_tensor(np.stack(covariates)))
    wanted = data.batch(starts)
    assert torch.equal(found.start, wanted.start)
    for name in ("history", "calendar", "climatology", "covariates", "lags"):
        assert torch.equal(getattr(found.context, name), getattr(wanted.context, name)), name
    assert np.isnan(history[0][:9]).all() == bool(pair), "the second field begins within the lags of its first windows"


@pytest.mark.parametrize("backbone", ["stid", "itransformer", "dlinear"])
def test_a_network_starts_from_a_mixture_of_the_climatology_and_its_lags(backbone):
    model = MEAN_MODELS[backbone](Task(NODES, HISTORY, 3, (24, 7), covariates=1, lags=2), "mse").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(("project", "trend_map", "remainder_map", "extra")):
                weight.zero_()
        model.initial.share.fill_(-100)
        model.initial.weights.copy_(torch.eye(3) * 100)
    context = Context(torch.randn(5, HISTORY, NODES), torch.zeros(5, 2, dtype=torch.long),
                      torch.randn(5, HISTORY + 3, NODES), covariates=torch.randn(5, HISTORY + 3, 1, 1),
                      lags=torch.randn(5, HISTORY + 3, NODES, 2))
    wanted = torch.stack([context.climatology[:, -3], context.lags[:, -2, :, 0], context.lags[:, -1, :, 1]], dim=1)
    torch.testing.assert_close(model(context), wanted)


# Both stages

@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Hours that are those of the day before with small changes, as an .npy; a run without and with lags."""
    folder = tmp_path_factory.mktemp("lags")
    days = np.random.default_rng(0).normal(size=(20, 24, NODES)) * np.array([3] + [1] * 19)[:, None, None]
    days[1:] *= 0.3
    np.save(folder / "days.npy", 20 + days.cumsum(0).reshape(-1, NODES).astype(np.float32))
    for name in ("none", "auto"):
        flags = own_flags(folder, name)
        assert main_pretrain.main(flags) == 0 and main_train.main(flags) == 0
    return folder


def own_flags(folder, lags):
    return ["--data_path", str(folder / "days.npy"), "--freq", "1h", "--start", "2020-01-06", *LENGTHS, "--lags", lags,
            "--save_dir", str(folder / lags), "--channels", "16", "--layers", "2", "--networks", "1", "--embedding",
            "8", "--batch_size", "32", "--epochs", "10", "--ema", "0.9", "--lr", "0.01", "--nsample", "10",
            "--sample_steps", "2", "--device", "cpu"]


def test_lags_lower_the_error_of_a_field_that_repeats_itself(work):
    without, lagged = (read_json(work / name / "diffusion/days_6_4/metrics.json")["CRPS"] for name in ("none", "auto"))
    assert lagged < 0.7 * without


def test_a_forecast_of_a_test_window_is_that_of_the_evaluation(work):
    run = load_forecaster(work / "auto/diffusion/days_6_4")
    assert run.field.lags == ((24,), (168,), (24, 48, 72)) and run.history_steps == 168 + HISTORY
    data = open_run_data(run.checkpoint, "", "cpu")
    settings = run.checkpoint["config"]
    start = int(data.starts["test"][3])
    wanted = data.scaler.physical(ensemble_sampler(run.model, settings, run.device)(
        data.batch(torch.tensor([start]))))[0].numpy()
    values, first = data.field.values.numpy(), start - 168
    found = run.forecast(values[first:start + HISTORY], history_start=data.field.calendar.times[first])
    np.testing.assert_allclose(found.members, wanted, rtol=1e-5)
    assert found.times[0] == data.field.calendar.times[start + HISTORY]
    assert forecast.main([str(work / "auto/diffusion/days_6_4"), "--split", "test", "--device", "cpu", "--output",
                          str(work / "test.npz")]) == 0
    np.testing.assert_allclose(np.load(work / "test.npz")["members"][3], wanted, rtol=1e-5)


def test_what_lies_before_the_series_may_be_unknown_but_not_what_the_history_holds(work, tmp_path, capsys):
    run = load_forecaster(work / "auto/diffusion/days_6_4")
    values = np.load(work / "days.npy")[:run.history_steps].copy()
    values[:30] = np.nan
    assert np.isfinite(run.forecast(values, history_start="2020-01-06").members).all()
    np.save(tmp_path / "short.npy", np.load(work / "days.npy")[30:run.history_steps])
    output = tmp_path / "next.npz"
    assert forecast.main([str(work / "auto/diffusion/days_6_4"), "--data_path", str(tmp_path / "short.npy"), "--device",
                          "cpu", "--output", str(output)]) == 0
    assert np.load(output)["members"].shape[-2:] == (HORIZON, NODES)
    assert "the data begin 30 steps too late for all lags (24, 168, 24+48+72)" in capsys.readouterr().err
    assert forecast.main([str(work / "auto/diffusion/days_6_4"), "--device", "cpu", "--output", str(output),
                          "--overwrite"]) == 0 and "too late" not in capsys.readouterr().err
    values[-2, 1] = np.nan
    with pytest.raises(ValueError, match="value nan at 2020-01-13T04:00, node node 1"):
        run.forecast(values, history_start="2020-01-06")
    with pytest.raises(ValueError, match=r"expected \(174, 4\)"):
        run.forecast(values[-HISTORY:], history_start="2020-01-13")


def test_a_run_says_which_lags_it_takes(work, capsys):
    for lags, said in (("auto", "; lags: 24, 168, 24+48+72\n"), ("48", "; lags: 48\n"), ("none", " test\n")):
        assert main_pretrain.main([*own_flags(work, lags), "--dry_run"]) == 0
        assert said in capsys.readouterr().out


def test_stage_2_refuses_a_stage_1_with_other_lags(work):
    flags = [*own_flags(work, "24"), "--save_dir", str(work / "auto")]
    with pytest.raises(ValueError, match=r"lag_steps \['24', '168', '24\+48\+72'\] .wanted \['24'\].; .*--lags 24"):
        main_train.main([*flags, "--run_name", "other", "--mean_run", str(work / "auto/mean/days_6_4")])
