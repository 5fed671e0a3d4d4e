"""The climatology is the mean of a slot without the step itself, and knows nothing that a forecast must not know."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import make_field, random_values, with_gaps

import data.table
import data.windows
from data.climatology import Climatology
from data.fields import load_field
from data.scaling import Scaler
from data.summary import FieldSummary
from data.windows import SPLITS, WindowedField

HOURLY, FIVE_MINUTES, MONTHLY = (1, "hour"), (5, "minute"), (1, "month")
AS_THEY_ARE = Scaler(0.0, 1.0)


def windows(values, interval=HOURLY, history=6, horizon=4, pair=None) -> WindowedField:
    return WindowedField(make_field(values, interval, pair=pair), history, horizon)


def plain(values, slots, reference, **settings) -> Climatology:
    """A climatology of one segment in the values' own units."""
    size = settings.get("size", int(slots.max()) + 1)
    return Climatology(torch.as_tensor(values), torch.as_tensor(slots), size, AS_THEY_ARE, [reference])


def at(climatology: Climatology, step: int, segment: int = 0) -> torch.Tensor:
    return climatology(torch.tensor([[step]]), torch.tensor([segment]), 0)[0, 0]


def naive(values, slots, size, reference, step, left_out):
    """By loops: mean over the reference steps of the slot, but not `left_out`, of values smoothed inside it."""
    first, last = reference
    reach = size // 96

    def smoothed(other):
        near = [values[min(max(other + shift, first), last - 1)] for shift in range(-reach, reach + 1)]
        return np.mean(near, axis=0)

    found = [smoothed(other) for other in range(first, last) if slots[other] == slots[step] and other != left_out]
    return np.mean(found, axis=0) if found else np.zeros(values.shape[1])


# Its values

@pytest.mark.parametrize("interval, steps, start, cycle", [
    (HOURLY, 200, "2020-01-06T07:00", 24), (FIVE_MINUTES, 1500, "2020-01-06T07:35", 288), (MONTHLY, 150, "1901-05", 12),
    ((30, "minute"), 300, "2020-01-06", 48), ((1, "day"), 100, "2020-01-06", 7),
])
def test_the_climatology_is_that_of_a_plain_loop(interval, steps, start, cycle):
    values = random_values(steps, 3)
    data = WindowedField(make_field(values, interval, start), 4, 3)  # no slot twice in a window
    slots = data.field.calendar.slots[:, 0].numpy()
    assert data.field.calendar.sizes[0] == cycle
    standardized = (values.astype(np.float64) - data.scaler.mean) / data.scaler.std
    training = 0, len(data.training)
    without, whole = (np.stack([naive(standardized, slots, cycle, training, step, own * step - (not own))
                                for step in range(steps)]) for own in (True, False))
    for split in SPLITS:
        for batch in data.batches(split, 16):
            for row, start in enumerate(batch.start.tolist()):
                wanted = without if start + 4 < training[1] else whole  # a target in the training part
                np.testing.assert_allclose(batch.context.climatology[row], wanted[start:start + 7], atol=1e-5)


def test_a_window_whose_history_alone_is_in_the_reference_has_the_climatology_of_a_forecast():
    """100 days, 14 + 7: the first test windows begin in the training part, their targets do not."""
    data = WindowedField(make_field(random_values(100, 3), (1, "day")), 14, 7)
    first = data.starts["test"][:1]
    assert first < len(data.training) <= first + 14
    batch, summary = data.batch(first), FieldSummary.of(data)
    found = summary.batch(data.field.values[first:first + 14].unsqueeze(0), first, 7)
    torch.testing.assert_close(found.context.climatology, batch.context.climatology)
    assert torch.equal(found.context.history, batch.context.history)


def test_after_the_training_part_it_is_the_plain_mean_of_the_slot():
    values = random_values(240, 3)
    data = windows(values)
    end = len(data.training)
    batch = data.batch(data.starts["test"][-1:])
    for step, found in zip(range(230, 240), batch.context.climatology[0], strict=True):
        wanted = data.scaler.standardize(data.training[step % 24:end:24]).mean(0)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_of_a_training_step_it_does_not_depend_on_the_value_of_that_step():
    values, slots = random_values(120, 3), np.arange(120) % 24
    altered = values.copy()
    altered[30] += 500
    one, other = plain(values, slots, (0, 100)), plain(altered, slots, (0, 100))
    torch.testing.assert_close(at(one, 30), at(other, 30), rtol=0, atol=1e-4)
    for step in (6, 54, 78, 102):  # the same hour of other days
        assert (at(other, step) - at(one, step)).min() > 90
    torch.testing.assert_close(at(one, 31), at(other, 31))


def test_it_does_not_depend_on_the_value_of_the_step_where_it_is_smoothed_either():
    """A fine cycle: the step's own value would come back by its neighbours if they were of the same slot."""
    values, slots = random_values(288 * 4, 2), np.arange(288 * 4) % 288
    altered = values.copy()
    altered[400] += 500
    one, other = plain(values, slots, (0, 288 * 3)), plain(altered, slots, (0, 288 * 3))
    torch.testing.assert_close(at(one, 400), at(other, 400), rtol=0, atol=1e-3)
    assert (at(other, 688) - at(one, 688)).min() > 20


@pytest.mark.parametrize("size, reach", [(7, 0), (24, 0), (48, 0), (95, 0), (96, 1), (288, 3), (1440, 15)])
def test_only_fine_cycles_are_smoothed(size, reach):
    """One value in a field of zeros: it is seen in its own slot and in `reach` slots on either side."""
    values, slots = torch.zeros(size * 3, 1), torch.arange(size * 3) % size
    values[size + size // 2] = 60.0
    climatology = plain(values, slots, (0, size * 2))
    found = climatology(torch.arange(size * 2, size * 3).unsqueeze(0), torch.tensor([0]), 0)[0, :, 0]
    seen = found.nonzero().flatten().tolist()
    assert seen == list(range(size // 2 - reach, size // 2 + reach + 1))
    assert found[seen].tolist() == pytest.approx([30 / (2 * reach + 1)] * len(seen))


def test_a_slot_that_no_other_reference_step_is_in_gives_the_mean_of_the_training_part():
    values, slots = random_values(60, 2), np.arange(60) % 24
    climatology = plain(values, slots, (0, 20))
    assert (at(climatology, 5).abs() < 1e-5).all(), "only the step itself is in its slot"
    assert at(climatology, 22).tolist() == [0, 0] and at(climatology, 46).tolist() == [0, 0]
    torch.testing.assert_close(at(climatology, 29), torch.from_numpy(values[5]))
    data = windows(random_values(20, 2), history=3, horizon=2)
    assert (data.batch(data.starts["train"][:1]).context.climatology == 0).all()


def test_windows_and_steps_of_a_batch_are_kept_apart():
    data = windows(random_values(200, 4))
    starts = torch.tensor([90, 3, 190, 40])
    together = data.batch(starts).context.climatology
    for row, start in enumerate(starts):
        alone = data.batch(start.unsqueeze(0)).context.climatology[0]
        torch.testing.assert_close(alone, together[row], rtol=0, atol=1e-6)


# What it may know

def test_changing_every_value_after_the_training_part_leaves_the_climatology_of_all_windows_unchanged():
    values = random_values(200, 3)
    plain_data = windows(values)
    altered = values.copy()
    altered[len(plain_data.training):] += 1000
    other = windows(altered)
    for split in SPLITS:
        for one, two in zip(plain_data.batches(split, 32), other.batches(split, 32), strict=True):
            assert torch.equal(one.context.climatology, two.context.climatology)
    altered[len(plain_data.training) - 1] += 1000  # the last value of the training part does matter
    last = plain_data.starts["test"][-1:]
    assert not torch.equal(windows(altered).batch(last).context.climatology, plain_data.batch(last).context.climatology)


def future_of(data: WindowedField, start: int) -> slice:
    return slice(start + data.history_len, start + data.history_len + data.predict_len)


@pytest.mark.parametrize("interval, history, horizon", [
    (HOURLY, 12, 12), (HOURLY, 24, 24), (HOURLY, 6, 30), (MONTHLY, 12, 12), ((1, "day"), 12, 12),
    (FIVE_MINUTES, 12, 12),
])
def test_the_climatology_of_a_training_window_holds_nothing_of_its_future(interval, history, horizon):
    """Also where the window is longer than the cycle: with the step's own value left out and the future of the same
    slot kept in, a network reads off the future from two climatologies and the history."""
    values = torch.as_tensor(random_values(900, 2))
    data = windows(values, interval, history, horizon)
    start = int(data.starts["train"][-1]) // 2
    altered = values.clone()
    altered[future_of(data, start)] = values[future_of(data, start)].flip(0)  # the scaler stays
    other = windows(altered, interval, history, horizon)
    found, changed = (each.batch(torch.tensor([start])).context.climatology for each in (data, other))
    torch.testing.assert_close(found, changed, rtol=0, atol=1e-5)
    elsewhere = data.starts["test"][-1:]
    if interval != FIVE_MINUTES:  # of which no later slot has these steps as reference
        assert not torch.equal(data.batch(elsewhere).context.climatology, other.batch(elsewhere).context.climatology)


def test_the_climatology_of_a_validation_window_of_a_second_field_holds_nothing_of_its_future():
    values = torch.as_tensor(random_values(700, 2))
    data = windows(values, MONTHLY, 12, 12, pair=(300, 200))
    start = int(data.starts["validation"][80])
    altered = values.clone()
    altered[future_of(data, start)] += 100
    other = windows(altered, MONTHLY, 12, 12, pair=(300, 200))
    assert data.scaler == other.scaler
    torch.testing.assert_close(data.batch(torch.tensor([start])).context.climatology,
                               other.batch(torch.tensor([start])).context.climatology, rtol=0, atol=1e-3)


# Two fields

def test_a_second_field_is_measured_by_its_own_validation_steps():
    values = random_values(300, 2)
    values[160:] += 50
    pair = windows(values, pair=(160, 80))
    test = pair.batch(pair.starts["test"][5:6])
    start = int(test.start)
    slots = pair.field.calendar.slots[:, 0]
    for step, found in zip(range(start, start + 10), test.context.climatology[0], strict=True):
        chosen = [other for other in range(160, 240) if slots[other] == slots[step]]
        wanted = pair.scaler.standardize(torch.from_numpy(values[chosen])).mean(0)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    train = pair.batch(pair.starts["train"][5:6])
    assert train.context.climatology.max() < 3 < test.context.climatology.min()


def test_test_values_of_a_second_field_change_no_climatology_and_its_validation_values_none_of_training():
    values = random_values(300, 2)
    one = windows(values, pair=(160, 80))
    altered = values.copy()
    altered[240:] += 1000
    other = windows(altered, pair=(160, 80))
    for split in SPLITS:
        for left, right in zip(one.batches(split, 64), other.batches(split, 64), strict=True):
            assert torch.equal(left.context.climatology, right.context.climatology)
    altered[160:240] += 1000
    other = windows(altered, pair=(160, 80))
    for left, right in zip(one.batches("train", 64), other.batches("train", 64), strict=True):
        assert torch.equal(left.context.climatology, right.context.climatology)
    last = one.starts["test"][-1:]
    assert not torch.equal(one.batch(last).context.climatology, other.batch(last).context.climatology)


# Memory

def test_a_memory_mapped_field_has_the_same_climatology(registered, monkeypatch):
    folder = registered(random_values(3000, 6), interval=FIVE_MINUTES)
    inside = WindowedField(load_field("Tiny", folder), 6, 4)
    for module in (data.table, data.windows):
        monkeypatch.setattr(module, "MEMORY_LIMIT", 3000 * 6 * 4 - 1)
    mapped = WindowedField(load_field("Tiny", folder), 6, 4)
    assert dataclasses.asdict(mapped.scaler) == dataclasses.asdict(inside.scaler)
    for split in SPLITS:
        chosen = inside.starts[split][::50]
        assert torch.equal(inside.batch(chosen).context.climatology, mapped.batch(chosen).context.climatology)
        assert inside.batch(chosen).context.climatology.abs().max() > 0.1


# Missing values

@pytest.mark.parametrize("interval, steps, cycle", [(HOURLY, 200, 24), (FIVE_MINUTES, 1500, 288)])
def test_the_climatology_of_a_field_with_gaps_is_the_mean_of_what_was_observed(interval, steps, cycle):
    values = with_gaps(random_values(steps, 3), 0.4)
    data = WindowedField(make_field(values, interval), 4, 3)
    slots, training, reach = data.field.calendar.slots[:, 0].numpy(), len(data.training), cycle // 96
    standardized = (values.astype(np.float64) - data.scaler.mean) / data.scaler.std
    for start in (0, 40, int(data.starts["test"][-1])):
        out = range(start - reach, start + 7 + reach)
        found = data.batch(torch.tensor([start])).context.climatology[0]
        for step, row in zip(range(start, start + 7), found, strict=True):
            used = [standardized[min(max(other + shift, 0), training - 1)] for other in range(training)
                    if slots[other] == slots[step] and other not in out for shift in range(-reach, reach + 1)]
            wanted = [np.nan_to_num(np.nanmean(node)) if (~np.isnan(node)).any() else 0 for node in np.transpose(used)]
            np.testing.assert_allclose(row, wanted, atol=1e-4)


def test_what_stands_in_a_gap_is_the_climatology_and_never_what_is_missing():
    values = random_values(200, 3)
    holes, data = np.isnan(with_gaps(values)), windows(with_gaps(values))
    for batch in data.batches("validation", 7):
        series = torch.cat([batch.context.history, batch.future], dim=1)
        seen = torch.cat([batch.context.observed, batch.target_mask], dim=1)
        assert torch.equal(seen, ~torch.from_numpy(np.stack([holes[start:start + 10] for start in batch.start])))
        assert torch.equal(series[~seen], batch.context.climatology[~seen])
        whole = windows(values).field.values[batch.start.unsqueeze(1) + torch.arange(10)]
        assert torch.equal(series[seen], data.scaler.standardize(whole)[seen])


def test_a_value_at_any_step_is_filled_by_the_mean_of_its_slot():
    values = np.tile(np.arange(24, dtype=np.float32), 10)[:, None] + np.zeros((1, 2), np.float32)
    values[100] = np.nan
    data = windows(values)
    wanted = data.scaler.standardize(torch.tensor([4.0, 4.0]))
    torch.testing.assert_close(data.standardized(torch.tensor([[99, 100]]))[0, 1], wanted)
