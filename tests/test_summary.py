"""What a checkpoint remembers of a field is enough to make the windows that the data give."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from conftest import make_field, parts_of, random_values

from data.covariates import Covariates
from data.registry import DATASETS
from data.summary import FieldSummary
from data.windows import WindowedField

FIELDS = {
    "hours": dict(interval=(1, "hour"), start="2020-01-06"),
    "five minutes, smoothed": dict(interval=(5, "minute"), start="2020-01-06T07:35"),
    "quarters of an hour": dict(interval=(15, "minute"), start="2020-02-27T23:15"),
    "weeks": dict(interval=(1, "week"), start="2019-12-30"),
    "days": dict(interval=(1, "day"), start="2019-12-30"),
    "months": dict(interval=(1, "month"), start="1999-11-01"),
    "quarters of a year": dict(interval=(3, "month"), start="1999-11-01"),
    "two fields of months": dict(interval=(1, "month"), start="1999-11-01", pair=(90, 40)),
}


@pytest.mark.parametrize("metadata", FIELDS.values(), ids=FIELDS)
def test_a_window_of_the_test_is_bitwise_that_of_the_data_but_for_its_future(metadata):
    data = WindowedField(make_field(random_values(200, 3), **metadata), 6, 4)
    summary, starts = FieldSummary.of(data), data.starts["test"][12:15]
    wanted = data.batch(starts)
    history = torch.stack([data.field.values[start:start + 6] for start in starts])
    position = torch.tensor([summary.step_at(data.local_times(int(start))[0]) for start in starts])
    found = summary.batch(history, position, predict_len=4)
    assert torch.equal(found.start, wanted.start) and found.future.shape == (3, 0, 3)
    assert parts_of(found.context).keys() == parts_of(wanted.context).keys()
    assert all(torch.equal(value, parts_of(wanted.context)[name]) for name, value in parts_of(found.context).items())
    assert summary.test_step == data.starts["test"][0] and summary.trained_steps == len(data.training)


def test_gaps_and_covariates_reach_a_window_as_they_do_from_the_data():
    values, steps = random_values(120, 3), 120
    values[::7, 1] = np.nan
    field = dataclasses.replace(make_field(values), missing_share=0.1, masked=True)
    beside = Covariates("a file", ("rain", "wind"), torch.randn(steps, 1, 2) * 5 + 3)
    data = WindowedField(field, 6, 4, covariates=beside)
    summary, start = FieldSummary.of(data), data.starts["test"][8]
    wanted = data.batch(start.reshape(1))
    found = summary.batch(field.values[start:start + 6].unsqueeze(0), start.reshape(1), 4,
                          beside.values[start:start + 10].unsqueeze(0))
    assert summary.masked and not wanted.context.observed.all()
    for name in ("history", "calendar", "climatology", "covariates"):
        assert torch.equal(getattr(found.context, name), getattr(wanted.context, name)), name
    assert torch.equal(found.context.observed, wanted.context.observed)
    assert found.future.shape == found.target_mask.shape == (1, 0, 3)


@pytest.mark.parametrize("metadata", FIELDS.values(), ids=FIELDS)
def test_positions_go_on_before_the_first_and_after_the_last_step(metadata):
    data = WindowedField(make_field(random_values(200, 3), **metadata), 6, 4)
    summary = FieldSummary.of(data)
    times = summary.times(180, 40)
    assert (times[:20] == data.field.calendar.times[180:]).all()
    assert [summary.step_at(time) for time in times] == list(range(180, 220))
    assert summary.step_at(summary.times(summary.first_step - 7, 1)[0]) == summary.first_step - 7


def test_a_time_between_two_steps_is_refused():
    summary = FieldSummary.of(WindowedField(make_field(random_values(60, 3), (15, "minute"), "2020-01-06"), 6, 4))
    with pytest.raises(ValueError, match="2020-01-06T01:10.*a step takes 15 minutes, one begins at 2020-01-06T00:00"):
        summary.step_at("2020-01-06T01:10")


def test_it_survives_a_checkpoint_that_holds_no_code(data):
    summary, file = FieldSummary.of(data), io.BytesIO()
    torch.save(summary.state(), file)
    file.seek(0)
    found = FieldSummary.from_state(torch.load(file, weights_only=True))
    assert torch.equal(found.climatology, summary.climatology) and found.scaler == summary.scaler
    assert found.times(0, 3).tolist() == summary.times(0, 3).tolist() and found.node_names == summary.node_names


def test_what_comes_after_the_data_has_the_climatology_of_the_training_part(data):
    slot = int(data.field.calendar.slots[30, 0])
    steps = np.arange(len(data.training))
    same = data.scaler.standardize(data.training[steps[data.field.calendar.slots[steps, 0] == slot]])
    torch.testing.assert_close(FieldSummary.of(data).climatology[slot], same.mean(0))


def test_land_and_places_survive_a_checkpoint(field):
    kept, axes = np.array([0, 1, 3, 4, 5]), (np.array([5.0, 10.0]), np.array([1.0, 2.0, 3.0]))
    field = dataclasses.replace(field, grid=(2, 3), axes=axes, kept=kept, coordinates=np.zeros((5, 2)))
    file = io.BytesIO()
    torch.save(FieldSummary.of(WindowedField(field, 6, 4)).state(), file)
    file.seek(0)
    found = FieldSummary.from_state(torch.load(file, weights_only=True))
    assert found.grid == (2, 3) and found.kept.tolist() == kept.tolist() and found.coordinates.shape == (5, 2)
    assert [axis.tolist() for axis in found.axes] == [[5, 10], [1, 2, 3]]


@pytest.mark.parametrize("name", DATASETS)
def test_every_card_has_a_unit_for_netcdf(name):
    """UDUNITS reads these words; a new one is to be looked up there, then added here."""
    assert (DATASETS[name].cf_unit or DATASETS[name].unit) in {"1", "degC", "hour-1", "mile hour-1"}
