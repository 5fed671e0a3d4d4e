"""Windows are exact slices, split in time, each seen once, and the future never leaks into the past."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import SHARED, make_field, needs_real_data, parts_of, random_values, with_gaps
from hypothesis import given, settings
from hypothesis import strategies as st

import data.table
import data.windows
from data.constants import ANY_VALUE
from data.fields import load_field
from data.fluctuation import fluctuation_scale
from data.scaling import Scaler
from data.windows import SPLITS, WindowedField, WindowSettings, split_windows


def lengths(starts: dict) -> tuple:
    return tuple(len(starts[split]) for split in SPLITS)


def scale_of(data):
    return fluctuation_scale(data.measured, data.scaler)


# The split

def test_calibration_windows_are_those_of_validation_less_the_targets_that_are_unknown_when_the_test_begins():
    data = WindowedField(make_field(random_values(200, 3)), 12, 12)
    test = int(data.starts["test"][0])
    assert data.calibration(8).starts.tolist() == data.starts["validation"].tolist()
    for batch in data.calibration(8):
        known = (batch.start.unsqueeze(1) + torch.arange(12, 24) < test + 12).unsqueeze(-1).expand(-1, -1, 3)
        whole = data.batch(batch.start)
        assert torch.equal(batch.target_mask, known) and torch.equal(batch.counts, known.float())
        assert torch.equal(batch.future, whole.future.where(known, batch.context.future_climatology))
        assert torch.equal(batch.context.history, whole.context.history) and batch.context.observed is None
    assert known[-1, 0].all() and not known[-1, 1:].any()  # the last value of the first test history


def test_481_windows_of_504_steps_are_split_289_96_96():
    starts, training_steps = split_windows(make_field(np.zeros((504, 1))), 12, 12)
    assert lengths(starts) == (289, 96, 96)
    assert training_steps == 288 + 24


@needs_real_data
def test_mobilenj_gives_the_published_split_at_its_published_calendar():
    data = WindowedField(load_field("MobileNJ", SHARED), 12, 12)
    assert lengths(data.starts) == (289, 96, 96) and data.num_nodes == 560 and data.field.calendar.sizes == (24, 7)
    batch = data.batch(data.starts["test"][-1:])
    raw = np.load(SHARED / "CommTraffic/MobileNJ.npy").reshape(504, 560)
    np.testing.assert_allclose(data.scaler.physical(batch.future)[0], raw[-12:], rtol=1e-4, atol=1e-4 * raw.std())
    assert batch.context.calendar.tolist() == [[11, 0]]  # 21 days from a Tuesday: the last day is a Monday


@needs_real_data
def test_sst_trains_on_the_first_file_and_is_evaluated_on_the_second():
    data = WindowedField(load_field("SST", SHARED), 12, 12)
    assert lengths(data.starts) == (1980 - 23, 360 - 23, 1022 - 360 - 23)
    assert len(data.training) == 1980 and data.field.calendar.sizes == (12,)
    era5 = np.load(SHARED / "Climate/SST_ERA5.npy").reshape(1022, 500)
    for split, first in (("validation", 0), ("test", 360)):
        start = data.starts[split][:1]
        assert str(data.local_times(int(start))[0])[:7] == ("1940-01" if first == 0 else "1970-01")
        window = data.scaler.physical(data.batch(start).context.history)[0]
        np.testing.assert_allclose(window, era5[first:first + 12], rtol=1e-5)


def test_no_window_of_a_pair_crosses_from_one_part_to_the_next():
    data = WindowedField(make_field(random_values(190, 2), pair=(100, 40)), 5, 3)
    parts = {"train": (0, 100), "validation": (100, 140), "test": (140, 190)}
    for split, (first, last) in parts.items():
        assert data.starts[split].tolist() == list(range(first, last - 8 + 1))
    assert len(data.training) == 100


@given(steps=st.integers(1, 200), history=st.integers(1, 30), horizon=st.integers(1, 30))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_splits_hold_every_window_once_in_time_order_near_6_2_2(steps, history, horizon):
    windows = steps - history - horizon + 1
    field = make_field(np.zeros((steps, 1)))
    if windows < 4:
        with pytest.raises(ValueError, match="no (train|validation|test) window"):
            split_windows(field, history, horizon)
        return
    if round(0.2 * windows) < horizon:
        with pytest.raises(ValueError, match="would overlap"):
            split_windows(field, history, horizon)
        return
    starts, training_steps = split_windows(field, history, horizon)
    assert torch.cat([starts[split] for split in SPLITS]).tolist() == list(range(windows))
    for split, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        assert abs(len(starts[split]) - share * windows) <= 1
    assert training_steps == len(starts["train"]) - 1 + history + horizon


@pytest.mark.parametrize("steps, pair, split", [
    (23, None, "train"), (26, None, "test"), (130, (10, 60), "train"), (130, (60, 20), "validation"),
    (130, (60, 60), "test"), (90, (60, 60), "test"),
])
def test_a_series_too_short_is_refused_with_the_arithmetic(steps, pair, split):
    with pytest.raises(ValueError) as caught:
        split_windows(make_field(np.zeros((steps, 1)), pair=pair), 12, 12)
    message = str(caught.value)
    assert f"no {split} window: {steps} steps" in message
    assert "--history_len 12 + --predict_len 12 = 24" in message


def test_four_windows_are_enough_for_one_test_window():
    data = WindowedField(make_field(random_values(16, 2)), 12, 1)
    assert lengths(data.starts) == (2, 1, 1)
    only, = data.batches("test", 32)
    assert only.start.tolist() == [3] and only.future.shape == (1, 1, 2)


def test_shares_of_the_flag_split_the_windows_and_those_of_the_default_change_nothing():
    field = make_field(np.zeros((504, 1)))
    assert lengths(split_windows(field, 12, 12, "0.7,0.1,0.2")[0]) == (337, 48, 96)
    starts, steps = split_windows(field, 12, 12, "0.6, 0.2, 0.2")
    assert lengths(starts) == (289, 96, 96) and steps == split_windows(field, 12, 12)[1]


def test_a_validation_part_without_any_target_is_refused():
    values = random_values(120, 2)
    values[70:97] = np.nan
    data = WindowedField(make_field(values), 6, 4)
    assert data.starts["validation"][[0, -1]].tolist() == [67, 88]
    values[96:102] = np.nan
    with pytest.raises(ValueError, match="no target of the validation windows has a value, at the steps 73 to 97"):
        WindowedField(make_field(values), 6, 4)


def test_times_of_the_flag_split_the_targets_so_that_none_belongs_to_two_parts():
    field = make_field(random_values(240, 2))  # from 6 January 2020
    data = WindowedField(field, 12, 6, WindowSettings(split="2020-01-11,2020-01-13T12:00"))
    first, second = 5 * 24, 7 * 24 + 12
    targets = {split: (data.starts[split] + 12).tolist() for split in SPLITS}
    assert targets["train"] == list(range(12, first - 6 + 1))
    assert targets["validation"] == list(range(first, second - 6 + 1))
    assert targets["test"] == list(range(second, 240 - 6 + 1))
    assert len(data.training) == first and data.calibration(8).starts.tolist() == list(range(first - 12, second - 12))
    assert [int(batch.target_mask.sum()) // 2 for batch in data.calibration(1)][-7:] == [6, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("split, words", [
    ("0.6,0.2", "--split 0.6,0.2: expected three"), ("0.6,0.2,0.3", "three shares that add up to 1, as 0.6,0.2,0.2"),
    ("0.8,0.2,0", "three shares"), ("a,b,c", "three shares"), ("nan,0.5,0.5", "three shares"), ("1", "three shares"),
    ("2020-01-09,2020-01-08", "validation must begin before the test"), ("2020-01-09,soon", "--split soon: expected"),
    ("2020-01-06,2020-01-08", "no train window by --split 2020-01-06"), ("2020-01-08,2021-01-01", "no test window by"),
    ("0.98,0.01,0.01", "no validation window by --split 0.98.*; choose shorter lengths, another split or a longer"),
])
def test_a_split_that_is_none_or_leaves_a_part_empty_is_refused(split, words):
    """faults 15"""
    with pytest.raises(ValueError, match=words):
        split_windows(make_field(np.zeros((72, 1))), 12, 12, split)


def test_a_pair_of_fields_takes_no_split():
    with pytest.raises(ValueError, match="Tiny is split by field"):
        split_windows(make_field(np.zeros((190, 2)), pair=(100, 40)), 5, 3, "0.6,0.2,0.2")


# Batches

@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("size", [1, 7, 21, 22, 1000])
def test_a_batch_is_exactly_the_slices_it_names_and_each_window_comes_once(data, split, size):
    values = data.field.values.numpy()
    training = values[:66 + 10].astype(np.float64)
    standardized = (values - training.mean()) / training.std()
    slots = data.field.calendar.slots
    seen = []
    for batch in data.batches(split, size):
        assert 1 <= len(batch.start) <= size
        for row, start in enumerate(batch.start.tolist()):
            np.testing.assert_allclose(batch.context.history[row], standardized[start:start + 6], atol=1e-6)
            np.testing.assert_allclose(batch.future[row], standardized[start + 6:start + 10], atol=1e-6)
            assert batch.context.calendar[row].tolist() == slots[start + 5].tolist()
            seen.append(start)
    first, last = {"train": (0, 67), "validation": (67, 89), "test": (89, 111)}[split]
    assert seen == list(range(first, last))
    assert len(data.batches(split, size)) == -(-len(seen) // size)


def test_the_last_batch_may_hold_one_window(data):
    assert [len(batch.start) for batch in data.batches("test", 7)] == [7, 7, 7, 1]


def test_shuffled_batches_hold_each_window_once_in_an_order_that_follows_the_generator(data):
    def order(seed, **limit):
        batches = data.batches("train", 8, torch.Generator().manual_seed(seed), **limit)
        return torch.cat([batch.start for batch in batches]).tolist()

    assert sorted(order(1)) == list(range(67)) and order(1) != list(range(67))
    assert order(1) == order(1) != order(2)
    assert order(1, limit=5) == order(1)[:5] and order(1, limit=500) == order(1)


@pytest.mark.parametrize("limit, expected", [
    (1, [89]), (2, [89, 110]), (4, [89, 96, 103, 110]), (22, list(range(89, 111))), (23, list(range(89, 111))),
    (0, list(range(89, 111))),
])
def test_a_limit_spreads_the_windows_evenly_from_the_first_to_the_last(data, limit, expected):
    assert torch.cat([batch.start for batch in data.batches("test", 3, limit=limit)]).tolist() == expected


def test_batches_can_be_read_again(data):
    batches = data.batches("test", 9)
    assert [batch.start.tolist() for batch in batches] == [batch.start.tolist() for batch in batches]


def test_writing_into_a_batch_leaves_the_data_alone(data):
    before, climatology = data.field.values.clone(), data.batch(torch.tensor([3, 4])).context.climatology
    batch = data.batch(torch.tensor([3, 4]))
    for values in (batch.context.history, batch.future, batch.context.climatology):
        values.zero_()
    assert torch.equal(data.field.values, before)
    assert torch.equal(data.batch(torch.tensor([3, 4])).context.climatology, climatology)


def test_what_a_forecast_may_see_is_history_calendar_and_climatology(data):
    batch = data.batch(torch.tensor([3, 4]))
    assert {name: value.shape for name, value in parts_of(batch.context).items()} == {
        "history": (2, 6, 5), "calendar": (2, 2), "climatology": (2, 10, 5)}


@pytest.mark.parametrize("mean, std", [(20.3, 4.7), (0.1, 0.013), (123.4, 77.7), (7.7, 1.3)])
def test_the_minimum_is_the_standardized_zero_to_the_bit_where_values_cannot_be_negative(mean, std):
    """A zero that rounding put above the minimum would not be seen as one."""
    values = np.random.default_rng(0).normal(mean, std, (120, 3)).astype(np.float32).clip(0)
    field = make_field(values)
    assert WindowedField(field, 6, 4).support == ANY_VALUE == (float("-inf"), 0.0)
    for shift in range(40):  # as many scalers
        values[0, 0] = mean + shift
        data = WindowedField(make_field(values), 6, 4, WindowSettings(support="nonnegative"))
        assert torch.tensor(data.support[0]) == data.scaler.standardize(torch.zeros(100))[50]


def test_the_times_of_a_window_are_those_of_its_steps(data):
    times = data.local_times(30)
    assert len(times) == 10 and str(times[0]) == "2020-01-07T06:00" and str(times[-1]) == "2020-01-07T15:00"


# Leakage

def test_nothing_after_the_training_part_reaches_scaler_or_fluctuation_scale():
    values = random_values(120, 5)
    end = 66 + 6 + 4  # the last training window begins at step 66
    altered = values.copy()
    altered[end:] = 1e6
    plain, probe = (WindowedField(make_field(each), 6, 4) for each in (values, altered))
    assert plain.scaler == probe.scaler and len(plain.training) == end
    assert torch.equal(scale_of(plain), scale_of(probe))
    for one, other in zip(plain.batches("train", 16), probe.batches("train", 16), strict=True):
        assert torch.equal(one.context.history, other.context.history) and torch.equal(one.future, other.future)
        assert torch.equal(one.context.climatology, other.context.climatology)

    altered[end - 1] = 1e6  # the last step that training sees
    inside = WindowedField(make_field(altered), 6, 4)
    assert plain.scaler != inside.scaler
    assert not torch.equal(scale_of(plain), scale_of(inside))


@pytest.mark.parametrize("span, steps", [("targets", 312), ("histories", 300)])
def test_scaler_and_fluctuation_scale_are_of_the_steps_that_training_targets_or_histories_cover(span, steps):
    """504 hours, 12 + 12 steps: 289 training windows, whose histories end before step 300 and targets before 312."""
    values = random_values(504, 4) * np.linspace(1, 3, 504, dtype=np.float32)[:, None]
    data = WindowedField(make_field(values), 12, 12, WindowSettings(training_span=span))
    seen = values[:steps].astype(np.float64)
    assert (data.scaler.mean, data.scaler.std) == pytest.approx((seen.mean(), seen.std(ddof=0)), rel=1e-6)
    wanted = fluctuation_scale(torch.as_tensor(values[:steps]), Scaler(seen.mean(), seen.std()))
    torch.testing.assert_close(scale_of(data), wanted, rtol=1e-4, atol=0)
    assert lengths(data.starts) == (289, 96, 96) and len(data.training) == 312


# Layouts, memory maps, metadata

def test_the_three_layouts_of_space_give_the_same_windows(registered):
    values = random_values(60, 6)
    opened = []
    for name, shape in (("Flat", (60, 6)), ("Grid", (60, 2, 3)), ("Feature", (60, 6, 1))):
        opened.append(open_data_of(registered, values.reshape(shape), name))
    for other in opened[1:]:
        assert opened[0].metadata() == other.metadata() and torch.equal(opened[0].field.values, other.field.values)
    assert opened[1].field.values[7, 1 * 3 + 2] == values.reshape(60, 2, 3)[7, 1, 2]


def open_data_of(registered, values, name="Tiny"):
    return WindowedField(load_field(name, registered(values, name)), 6, 4)


@pytest.mark.parametrize("dtype, level", [
    ("float32", 0), ("float16", 0), ("uint8", 0), ("int64", 0), ("uint16", 0), ("int32", 2**25 + 1)])
def test_a_memory_mapped_field_gives_what_a_field_in_memory_gives(registered, monkeypatch, dtype, level):
    folder = registered(random_values(90, 6).astype(dtype) + np.asarray(level, dtype))
    inside = WindowedField(load_field("Tiny", folder), 6, 4)
    for module in (data.table, data.windows):
        monkeypatch.setattr(module, "MEMORY_LIMIT", 90 * 6 * 4 - 1)
    mapped = WindowedField(load_field("Tiny", folder), 6, 4)
    assert inside.field.values.dtype == (torch.float64 if level else torch.float32)
    assert str(mapped.field.values.dtype) == f"torch.{dtype}"
    assert mapped.metadata() == inside.metadata()
    assert torch.equal(scale_of(mapped), scale_of(inside))
    for one, other in zip([*inside.batches("test", 5), *inside.calibration(5)],
                          [*mapped.batches("test", 5), *mapped.calibration(5)], strict=True):
        assert torch.equal(one.future, other.future)
        torch.testing.assert_close(other.truth, one.truth, rtol=0, atol=0, equal_nan=True)
        assert all(torch.equal(value, parts_of(other.context)[name]) for name, value in parts_of(one.context).items())


@pytest.mark.parametrize("gaps", [False, True])
def test_the_truth_of_a_window_is_that_of_the_file_to_the_bit(gaps):
    values = random_values(120, 5)
    values[:, 2] *= 1e9
    values = with_gaps(values) if gaps else values
    data = WindowedField(make_field(values), 6, 4)
    for batch in data.batches("test", 7):
        for start, truth in zip(batch.start.tolist(), batch.truth, strict=True):
            np.testing.assert_array_equal(truth.numpy(), values[start + 6:start + 10])
        assert batch.target_mask is None or torch.equal(batch.truth.isnan(), ~batch.target_mask)


def test_facts_name_what_a_model_of_the_data_depends_on(data):
    training = data.field.values[:76].double()
    assert data.metadata() == {
        "num_nodes": 5, "calendar_sizes": [24, 7], "scaler_mean": pytest.approx(float(training.mean())),
        "scaler_std": pytest.approx(float(training.std(correction=0))), "support": None,
        "masked": False, "covariates": {}, "lag_steps": [],
    }


@pytest.mark.parametrize("steps, history, horizon, found", [(504, 150, 100, 51), (79, 12, 12, 11)])
def test_lengths_at_which_every_validation_window_shares_targets_with_the_test_are_refused(
        steps, history, horizon, found):
    with pytest.raises(ValueError, match=f"{found} validation windows.*needs {horizon};"):
        WindowedField(make_field(random_values(steps, 2)), history, horizon)


def test_training_windows_have_no_target_of_a_test_window():
    data = WindowedField(make_field(random_values(504, 2)), 64, 64)
    last_trained = int(data.starts["train"][-1]) + 64 + 64
    assert last_trained <= int(data.starts["test"][0]) + 64


# Missing values

def test_a_field_with_gaps_says_so_in_its_metadata_and_its_batches(data):
    gappy = WindowedField(make_field(with_gaps(random_values(120, 5))), 6, 4)
    assert gappy.metadata()["masked"] is True and data.metadata()["masked"] is False
    batch = gappy.batch(torch.tensor([3, 4]))
    values = gappy.field.values.unfold(0, 10, 1)[[3, 4]].transpose(1, 2)
    assert torch.equal(batch.context.observed, ~values[:, :6].isnan()) and not batch.context.observed.all()
    assert torch.equal(batch.target_mask, ~values[:, 6:].isnan()) and not batch.target_mask.all()
    for values in (batch.context.history, batch.future, batch.context.climatology):
        assert values.isfinite().all()
    assert data.batch(torch.tensor([3])).context.observed is None
    assert data.batch(torch.tensor([3])).target_mask is None


@pytest.mark.parametrize("seen", [None, 110], ids=["never", "after training"])
def test_a_node_without_a_value_in_the_training_part_is_named(seen):
    values = random_values(120, 5)
    values[:seen, 3] = np.nan
    with pytest.raises(ValueError, match=r"1 of 5 nodes .* 76 steps that train \(node 3\)"):
        WindowedField(make_field(values), 6, 4)


def test_values_after_the_training_part_reach_neither_scaler_nor_scale_where_values_are_missing():
    values = with_gaps(random_values(120, 5))
    altered = np.where(np.arange(120)[:, None] < 76, values, values * -7 + 3)
    plain, probe = (WindowedField(make_field(each), 6, 4) for each in (values, altered))
    assert plain.scaler == probe.scaler and torch.equal(scale_of(plain), scale_of(probe))
    for one, other in zip(plain.batches("train", 16), probe.batches("train", 16), strict=True):
        assert torch.equal(one.future, other.future)
        assert all(torch.equal(value, parts_of(other.context)[name]) for name, value in parts_of(one.context).items())


@pytest.mark.parametrize("gaps", [False, True])
def test_a_node_a_billion_times_larger_than_the_rest_stays_finite(gaps):
    values = random_values(120, 5)
    values[:, 2] *= 1e9
    data = WindowedField(make_field(with_gaps(values) if gaps else values), 6, 4)
    for batch in data.batches("test", 7):
        for each in (*parts_of(batch.context).values(), batch.future):
            if not each.is_floating_point():
                continue
            assert each.isfinite().all() and each.dtype == torch.float32
        assert data.scaler.physical(batch.future).isfinite().all()
    assert scale_of(data).isfinite().all() and (scale_of(data) > 0).all()


@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_share_a_batch_weigh_their_rows_by_number(count):
    """faults 51: 67 windows, 16 to a batch; 3 in the last one."""
    data = WindowedField(make_field(random_values(120, 5)), 6, 4)
    for whole, *parts in zip(data.batches("train", 16), *(data.batches("train", 16).share_batches(rank, count)
                                                          for rank in range(count)), strict=True):
        assert torch.equal(torch.cat([part.start for part in parts]), whole.start)
        mean = sum(part.weight * part.future.double().mean() for part in parts) / count
        assert float(mean) == pytest.approx(float(whole.future.double().mean()), rel=1e-9)


def test_data_of_other_values_names_times_or_splits_have_another_fingerprint():
    """faults 26: a stage-1 model of other data is refused by it, and a run does not go on with other data."""
    values = random_values(120, 5)
    later = values.copy()
    later[-1, 0] += 1
    fingerprint = WindowedField(make_field(values), 6, 4).fingerprint
    assert WindowedField(make_field(values.copy()), 6, 4).fingerprint == fingerprint
    others = {
        "a value of the test": WindowedField(make_field(later), 6, 4),
        "two nodes swapped": WindowedField(make_field(values[:, [1, 0, 2, 3, 4]].copy()), 6, 4),
        "other names": WindowedField(dataclasses.replace(make_field(values), node_names=tuple("abcde")), 6, 4),
        "another start": WindowedField(make_field(values, start="2020-01-06T05:00"), 6, 4),
        "another split": WindowedField(make_field(values), 6, 4, WindowSettings(split="0.5,0.2,0.3")),
    }
    for what, other in others.items():
        assert other.fingerprint != fingerprint, what


@pytest.mark.parametrize("scaling", ["field", "node"])
def test_no_value_above_the_highest_comes_back_and_data_above_it_are_refused(scaling):
    field = make_field(torch.rand(90, 3) * 100)
    data = WindowedField(field, 6, 4, WindowSettings(scaling=scaling, highest=100.0))
    assert data.scaler.physical(torch.full((2, 3), 50.0)).tolist() == [[100.0] * 3] * 2
    values = data.scaler.standardize(field.values)
    torch.testing.assert_close(data.scaler.physical(values).float(), field.values)
    top = make_field(field.values.clamp_max(70.3))  # in float32 this is more than 70.3
    assert WindowedField(top, 6, 4, WindowSettings(scaling=scaling, highest=70.3)).scaler.highest[0] == 70.3
    with pytest.raises(ValueError, match="--highest 50: .* has values up to 9"):
        WindowedField(field, 6, 4, WindowSettings(scaling=scaling, highest=50.0))
