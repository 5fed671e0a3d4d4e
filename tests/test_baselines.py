"""The simple forecasters: each has the law it claims, sees nothing it must not, and depends on its own window only."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import make_field, pick, random_values, with_gaps

from data.windows import WindowedField, WindowSettings
from models.baselines import BASELINES, POOLED, SIMPLE, _without_gaps, equidistant
from models.quantiles import equidistant_quantiles, smooth_members
from utils.pipeline import baseline_sampler
from utils.training.reproducibility import MemberNoise

QUANTILE_LEVELS = torch.arange(1, 20) / 20
FIELDS = {
    "hourly": lambda: WindowedField(make_field(random_values(240, 3)), 6, 4),
    "5-minute": lambda: WindowedField(make_field(random_values(800, 3), (5, "minute")), 6, 4),
    "daily": lambda: WindowedField(make_field(random_values(400, 3), (1, "day")), 6, 4),
    "monthly": lambda: WindowedField(make_field(random_values(120, 3), (1, "month")), 6, 4),
    "two monthly fields": lambda: WindowedField(
        make_field(random_values(140, 3), (1, "month"), pair=(80, 30)), 12, 4),
}


def mean(batch):
    return batch.context.history[:, :batch.future.shape[1]] / 2 + 0.1


def quantiles(batch):
    spread = 0.5 + batch.context.history[:, :1].abs()
    return mean(batch).unsqueeze(1) + spread.unsqueeze(1) * torch.special.ndtri(QUANTILE_LEVELS).view(-1, 1, 1) ** 3


def zero_mean(batch):
    return torch.zeros_like(batch.future)


def fit(name, data, members=8, mean=mean, quantiles=quantiles):
    return BASELINES[name](data, members=members, mean=mean, quantiles=quantiles)


def draw_windows(name, data, members=8, rows=slice(None), split="test", seed=1, kind="random", **given):
    batch = pick(next(iter(data.batches(split, 10_000))), rows)
    keyed = MemberNoise(seed, batch.start, members, batch.future.shape[1:])
    draw = fit(name, data, members, **given)

    def noise(index):
        return keyed(index, 0, len(batch.start) * members).unflatten(0, (-1, members))

    return draw(batch, noise if kind == "random" else equidistant(noise)), batch


def constant_noise(value, members, data):
    return lambda index: torch.full((1, members, data.predict_len, data.num_nodes), value)


def residuals(data, batches, point):
    """future - point of windows, one by one, NaN where a target does not count."""
    return torch.cat([(batch.future - point(batch)).where(batch.counts.bool(), torch.nan) for batch in batches])


def whole_windows(data):
    """First steps of the validation windows of which every target is known when the first test window is forecast."""
    starts = data.starts["validation"]
    return starts[starts + data.predict_len <= data.starts["test"][0]]


def counting(steps, nodes=3, interval=(1, "hour"), lengths=(6, 4), **given):
    """Windows of a field whose values encode their step and node: step + 2000 * node."""
    values = torch.arange(steps).float().unsqueeze(1) + 2000 * torch.arange(nodes)
    return WindowedField(make_field(values, interval, **given), *lengths)


def first_steps(data, members):
    """First step of every member's path through a counting field: (batch, member); the path must be whole."""
    physical = data.scaler.physical(members.double()).round().long()
    steps = physical - 2000 * torch.arange(data.num_nodes) - torch.arange(data.predict_len).unsqueeze(-1)
    first = steps[..., 0, 0]
    assert (steps == first[..., None, None]).all(), "all nodes and horizon steps from one path"
    return first


def altered(data, steps):
    """The same windows of a field that has other values at these steps."""
    values = data.field.values.clone()
    values[steps] = values[steps] * -3 + 7
    return WindowedField(dataclasses.replace(data.field, values=values), data.history_len, data.predict_len)


def correlation(left, right):
    return float(torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1])


def ranks(members):
    return members.argsort(dim=1).argsort(dim=1)


# Every baseline

@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_gives_finite_members_on_every_calendar(name, kind):
    data = FIELDS[kind]()
    for members in (1, 7):
        found, batch = draw_windows(name, data, members)
        assert found.shape == (len(batch.start), members, 4, 3)
        assert found.dtype == torch.float32 and found.isfinite().all()


@pytest.mark.parametrize("name", BASELINES)
def test_members_do_not_depend_on_the_other_windows_of_the_batch(name, data):
    for members in (6, 40):  # a pool of 22 windows, larger and smaller
        together, _ = draw_windows(name, data, members)
        for rows in ([3], [21, 0, 7]):
            alone, _ = draw_windows(name, data, members, rows)
            torch.testing.assert_close(alone, together[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_members_follow_from_the_noise_alone(name, data):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, _ = draw_windows(name, data)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(draw_windows(name, data)[0], first)
    assert not torch.equal(draw_windows(name, data, seed=2)[0], first)


@pytest.mark.parametrize("name", BASELINES)
def test_no_baseline_looks_at_what_it_forecasts(name, data):
    """The last window: its future begins after every step that is fitted on."""
    known, batch = draw_windows(name, data, rows=[-1])
    future = int(batch.start) + data.history_len
    assert future >= int(data.starts["validation"][-1]) + data.history_len + data.predict_len
    assert torch.equal(draw_windows(name, altered(data, slice(future, None)), rows=[-1])[0], known)
    assert not torch.equal(draw_windows(name, altered(data, slice(0, future)), rows=[-1])[0], known)


def test_networks_run_without_gradient_and_must_be_given(data):
    settings = {"data_name": "mine", "data_path": "mine.csv", "nsample": 4, "predict_len": 4, "seed": 0}
    batch, model = data.batch(data.starts["test"][:1]), torch.nn.Linear(1, 1)
    model.forward = lambda context: model.weight[0, 0] * context.future_climatology
    model.predict = lambda context: model(context).unsqueeze(1) + torch.linspace(-1, 1, 19).view(-1, 1, 1)
    for name in BASELINES:
        assert not baseline_sampler(name, data, model, settings)(batch).requires_grad, name
        if name not in SIMPLE:
            with pytest.raises(TypeError, match="mean|quantiles"):
                baseline_sampler(name, data, None, settings)


# Gaussian errors

def test_persistence_is_the_last_value_with_the_error_of_training_windows(data):
    batch = data.batch(torch.tensor([100]))
    std = residuals(data, data.batches("train", 1), lambda batch: batch.context.history[:, -1:]).square().mean(0).sqrt()
    draw = fit("persistence", data, 2)
    for value in (0.0, 1.0, -2.0):
        expected = (batch.context.history[:, -1:] + value * std).unsqueeze(1).expand(1, 2, -1, -1)
        torch.testing.assert_close(draw(batch, constant_noise(value, 2, data)), expected)


def test_gaussian_std_is_the_root_mean_square_of_the_validation_residuals(data):
    batch, draw = data.batch(torch.tensor([100])), fit("gaussian", data, 1)
    std = draw(batch, constant_noise(1.0, 1, data))[0] - mean(batch)
    torch.testing.assert_close(std, residuals(data, data.calibration(1), mean).square().nanmean(0).sqrt().unsqueeze(0))


@pytest.mark.parametrize(("predict_len", "season"), [(4, 24), (24, 24), (30, 48)])
def test_seasonal_naive_takes_the_value_of_the_same_hour_one_season_earlier(predict_len, season):
    data = WindowedField(make_field(random_values(400, 2)), 6, predict_len)
    draw, starts = fit("seasonal_naive", data, 1), data.starts["train"]
    batch = data.batch(torch.tensor([250]))
    earlier = data.scaler.standardize(data.field.values)[256 - season:256 - season + predict_len]
    assert torch.equal(draw(batch, constant_noise(0.0, 1, data))[0, 0], earlier)
    values = data.scaler.standardize(data.field.values)
    errors = torch.stack([values[start + 6:start + 6 + predict_len] - values[start + 6 - season:][:predict_len]
                          for start in starts.tolist() if start + 6 >= season])
    std = draw(batch, constant_noise(1.0, 1, data))[0, 0] - earlier
    torch.testing.assert_close(std, errors.square().mean(0).sqrt())


@pytest.mark.parametrize("interval, season", [((3, "month"), 4), ((12, "month"), 4), ((7, "day"), 52), ((1, "day"), 7)])
def test_the_season_of_seasonal_naive_is_counted_in_steps_of_the_series(interval, season):
    """Four quarters are a year; four years are the least that is not shorter than a horizon of four."""
    data = WindowedField(make_field(random_values(400, 2), interval), 6, 4)
    drawn = fit("seasonal_naive", data, 1)(data.batch(torch.tensor([250])), constant_noise(0.0, 1, data))[0, 0]
    assert torch.equal(drawn, data.scaler.standardize(data.field.values)[256 - season:260 - season])


def test_seasonal_naive_never_looks_ahead():
    data = WindowedField(make_field(random_values(400, 2)), 6, 30)
    batch = data.batch(torch.tensor([330]))
    known = fit("seasonal_naive", data, 1)(batch, constant_noise(0.5, 1, data))
    later = fit("seasonal_naive", altered(data, slice(336, None)), 1)(batch, constant_noise(0.5, 1, data))
    earlier = fit("seasonal_naive", altered(data, slice(300, 336)), 1)(batch, constant_noise(0.5, 1, data))
    assert torch.equal(later, known) and not torch.equal(earlier, known)


def test_seasonal_naive_names_the_split_that_has_no_earlier_season():
    pair = make_field(random_values(140, 3), (1, "month"), pair=(80, 30))
    with pytest.raises(ValueError, match="validation windows have no season of 12 steps"):
        fit("seasonal_naive", WindowedField(pair, 11, 4))
    fit("seasonal_naive", WindowedField(pair, 12, 4))
    with pytest.raises(ValueError, match="train windows have no season of 24 steps"):
        fit("seasonal_naive", WindowedField(make_field(random_values(36, 3)), 6, 4))


# Climatology

def test_climatology_draws_whole_days_of_the_same_hour_and_kind_each_once():
    data = counting(24 * 7 * 14)
    members, batch = draw_windows("climatology", data, members=7)
    first, target = first_steps(data, members), (batch.start + 6).unsqueeze(1)
    assert ((first - target) % 24 == 0).all()
    weekend = data.field.calendar.slots[:, 1] >= 5
    for step in range(4):
        assert (weekend[first + step] == weekend[target + step]).all()
    assert all(len(row.unique()) == 7 for row in first)
    assert first.max() + 4 <= len(data.training)


def test_climatology_takes_any_day_where_days_of_a_kind_are_few():
    data = counting(24 * 14)  # training sees eight days, two of them a weekend
    members, batch = draw_windows("climatology", data, members=6)
    first, target = first_steps(data, members), (batch.start + 6).unsqueeze(1)
    weekend = data.field.calendar.slots[:, 1] >= 5
    saturday = weekend[target] & weekend[target + 3]
    assert saturday.any() and not weekend[first[saturday.squeeze(1)]].all()


def test_climatology_widens_to_neighbouring_slots_only_as_far_as_it_must():
    data = counting(3 * 288, interval=(5, "minute"))  # training sees fewer than two days
    for members, width in ((2, 0), (12, 3), (400, 12)):  # half of the members on one or two days
        found, batch = draw_windows("climatology", data, members)
        gap = (first_steps(data, found) - batch.start.unsqueeze(1) - 6) % 288
        gap = torch.minimum(gap, 288 - gap)
        assert int(gap.max()) == width


def test_climatology_uses_no_step_after_the_training_part():
    for kind in ("hourly", "two monthly fields"):
        data = FIELDS[kind]()
        known, _ = draw_windows("climatology", data)
        length = len(data.training)
        assert torch.equal(draw_windows("climatology", altered(data, slice(length, None)))[0], known)
        assert not torch.equal(draw_windows("climatology", altered(data, slice(0, length)))[0], known)


# Validation residuals

@pytest.mark.parametrize("members", [10, 11])
def test_conformal_intervals_cover_the_validation_residuals_at_the_nominal_level(data, members):
    found, batch = draw_windows("conformal", data, members, kind="quantiles")
    ordered = (found - mean(batch).unsqueeze(1)).sort(dim=1).values
    errors = residuals(data, data.calibration(1), mean)
    for low in range(members // 2):
        upper = ordered[0, members - 1 - low]
        torch.testing.assert_close(ordered[0, low], -upper, rtol=0, atol=1e-5)
        inside = (errors.abs() <= upper + 1e-5).sum(0)
        count = (~errors.isnan()).sum(0)
        assert (inside == ((count + 1) * (members - 1 - 2 * low) / members).ceil().minimum(count)).all()
    if members % 2:
        assert ordered[:, members // 2].abs().max() < 1e-5


def test_residual_fields_are_whole_validation_residuals_each_once_and_all_as_often():
    data = counting(1000, nodes=2)
    members, batch = draw_windows("residual_fields", data, 20, mean=zero_mean)
    first = first_steps(data, members) - 6
    validation = whole_windows(data)
    assert torch.isin(first, validation).all()
    assert all(len(row.unique()) == 20 for row in first)
    share = torch.bincount(first.flatten() - validation[0], minlength=len(validation)).float()
    expected = first.numel() / len(validation)
    assert len(share) == len(validation)
    assert (share - expected).abs().max() < 5 * math.sqrt(expected)


def test_a_small_pool_is_drawn_with_replacement():
    data = counting(120, nodes=2)
    first = first_steps(data, draw_windows("residual_fields", data, 60, mean=zero_mean)[0]) - 6
    pool = whole_windows(data)
    count = len(pool)
    assert torch.isin(first, pool).all() and count < 60
    share = torch.bincount((first - pool[0]).flatten(), minlength=count).float()
    expected = first.numel() / count
    assert (share - expected).abs().max() < 5 * math.sqrt(expected)
    distinct = sum(len(row.unique()) for row in first) / len(first)
    assert distinct == pytest.approx(count * (1 - (1 - 1 / count) ** 60), abs=0.8)


def correlated(rho=0.8, steps=3000):
    """Windows of two nodes with correlation rho at every step, and none between steps."""
    values = torch.from_numpy(random_values(steps, 2)) - 20
    values[:, 1] = rho * values[:, 0] + math.sqrt(1 - rho**2) * values[:, 1]
    return WindowedField(make_field(values), 2, 2)


@pytest.mark.parametrize("name", ["residual_fields", "schaake"])
def test_whole_fields_reproduce_the_correlation_of_the_nodes(name):
    members, _ = draw_windows(name, correlated(), 50, slice(0, 100), mean=zero_mean, quantiles=flat_quantiles)
    assert correlation(ranks(members)[..., 0].float(), ranks(members)[..., 1].float()) == pytest.approx(0.79, abs=0.05)
    assert abs(correlation(members[:, :, 0, 0], members[:, :, 1, 1])) < 0.15


@pytest.mark.parametrize("name", ["gaussian", "conformal", "quantile"])
def test_independent_members_have_no_correlation(name):
    members, _ = draw_windows(name, correlated(), 50, slice(0, 100), mean=zero_mean, quantiles=flat_quantiles)
    assert abs(correlation(members[..., 0], members[..., 1])) < 0.05
    assert abs(correlation(members[:, :, 0], members[:, :, 1])) < 0.05


def flat_quantiles(batch):
    return torch.special.ndtri(QUANTILE_LEVELS).view(-1, 1, 1).expand(len(batch.start), -1, *batch.future.shape[1:])


# Conditional quantiles

@pytest.mark.parametrize("name", ["quantile", "schaake"])
@pytest.mark.parametrize("members", [6, 60])
def test_every_margin_is_that_of_the_conditional_quantiles(name, members, data):
    found, batch = draw_windows(name, data, members, kind="quantiles")
    expected = equidistant_quantiles(quantiles(batch), members).sort(dim=1).values
    torch.testing.assert_close(found.sort(dim=1).values, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted({*BASELINES} - {*POOLED}))
def test_a_law_has_random_members_and_its_own_quantiles_in_their_rank_order(name, data):
    random, batch = draw_windows(name, data, 40)
    ordered, _ = draw_windows(name, data, 40, kind="quantiles")
    place = random.argsort(1)
    distinct = random.gather(1, place).diff(dim=1) > 0
    assert (ordered.gather(1, place).diff(dim=1)[distinct] > -1e-5).double().mean() > 0.99  # near ties
    assert random.std(1).div(ordered.std(1)).mean() == pytest.approx(1, abs=0.1)
    assert random.mean(1).sub(ordered.mean(1)).std() > 0.01  # one is as random as its noise
    again, _ = draw_windows(name, data, 40, seed=2, kind="quantiles")
    torch.testing.assert_close(ordered.sort(1).values, again.sort(1).values)


@pytest.mark.parametrize("name", ["quantile", "schaake"])
def test_random_members_of_conditional_quantiles_are_below_each_as_often_as_its_level(name, data):
    random, batch = draw_windows(name, data, 2000, slice(0, 3))
    below = (random.unsqueeze(2) <= quantiles(batch).unsqueeze(1)).double().mean((0, 1, 3, 4))
    torch.testing.assert_close(below, QUANTILE_LEVELS.double(), rtol=0, atol=0.01)


@pytest.mark.parametrize("name", POOLED)
def test_the_quantiles_of_drawn_fields_are_those_of_four_times_as_many_in_the_order_of_the_first(name, data):
    settings = {"data_name": "mine", "data_path": "mine.csv", "nsample": 8, "predict_len": 4, "seed": 0}
    model = torch.nn.Module()
    model.forward = lambda context: torch.zeros_like(context.future_climatology)
    batch = data.batch(data.starts["test"][:2])
    many = baseline_sampler(name, data, model, settings | {"nsample": 32})(batch)
    found = baseline_sampler(name, data, model, settings, "quantiles")(batch)
    torch.testing.assert_close(found, smooth_members(many, 8))


def test_schaake_has_the_ranks_of_the_fields_that_residual_fields_draws():
    """The same noise picks the same fields, so that the two ensembles differ in their margins alone."""
    data = WindowedField(make_field(random_values(900, 3)), 6, 4)
    shuffled, _ = draw_windows("schaake", data, 12)
    fields, _ = draw_windows("residual_fields", data, 12, mean=lambda batch: quantiles(batch)[:, 9])
    assert (ranks(shuffled) == ranks(fields)).double().mean() > 0.999


def test_ties_of_repeated_fields_are_broken_by_the_noise(data):
    shuffled, batch = draw_windows("schaake", data, 60)
    fields, _ = draw_windows("residual_fields", data, 60, mean=lambda batch: quantiles(batch)[:, 9])
    twins = [(one, other) for one in range(60) for other in range(one) if torch.equal(fields[0, one], fields[0, other])]
    one, other = torch.tensor(twins).T
    noise = MemberNoise(1, batch.start[:1], 60, batch.future.shape[1:])(0, 0, 60)
    agree = (ranks(shuffled)[0, one] > ranks(shuffled)[0, other]) == (noise[one] > noise[other])
    assert agree.double().mean() > 0.99


# Missing values

@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_works_on_a_field_with_gaps_and_hidden_values_change_nothing(name):
    values, rare = random_values(240, 3), np.zeros((240, 3), bool)
    rare[120:, 1] = True  # never observed where errors are measured
    gappy = np.where(rare, np.float32(np.nan), with_gaps(values, 0.3))
    found, batch = draw_windows(name, WindowedField(make_field(gappy), 6, 4))
    assert found.isfinite().all() and not batch.target_mask.all()


def test_errors_are_measured_where_targets_are_observed():
    data = WindowedField(make_field(with_gaps(random_values(240, 3), 0.3)), 6, 4)
    draw = BASELINES["gaussian"](data, mean=mean)
    batch = data.batch(data.starts["test"][:1])
    std = (draw(batch, constant_noise(1.0, 1, data)) - mean(batch).unsqueeze(1))[0, 0]
    for step, node in ((0, 0), (3, 2)):
        errors = [float((each.future - mean(each))[0, step, node]) for each in data.calibration(1)
                  if each.target_mask[0, step, node]]
        assert float(std[step, node]) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-5)


def test_a_gap_in_a_residual_field_takes_the_residual_of_the_nearest_earlier_window():
    nan = float("nan")
    fields = torch.tensor([[nan, 1.0, nan], [2.0, nan, nan], [nan, nan, nan], [3.0, 4.0, nan]]).unsqueeze(1)
    found = _without_gaps(fields)[:, 0]
    assert found.tolist() == [[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [3.0, 4.0, 0.0]]
    assert _without_gaps(torch.full((2, 1, 3), nan)).tolist() == [[[0.0, 0.0, 0.0]]] * 2


def test_windows_at_the_end_without_their_last_step_are_no_whole_residual_fields():
    fields = torch.randn(5, 4, 3)
    fields[3:, 2:] = torch.nan
    assert torch.equal(_without_gaps(fields), fields[:3])


def test_conformal_intervals_of_a_field_with_gaps_count_the_residuals_that_there_are():
    data = WindowedField(make_field(with_gaps(random_values(240, 3), 0.3)), 6, 4)
    draw = BASELINES["conformal"](data, mean=mean)
    batch = data.batch(data.starts["test"][:1])
    noise = equidistant(lambda index: torch.randn(1, 9, 4, 3))
    found = (draw(batch, noise) - mean(batch).unsqueeze(1))[0, :, 2, 1].sort().values
    known = sorted(float((each.future - mean(each))[0, 2, 1].abs()) for each in data.calibration(1)
                   if each.target_mask[0, 2, 1])
    wanted = [known[min(-(-(len(known) + 1) * abs(2 * i - 8) // 9), len(known)) - 1] for i in (5, 6, 7, 8)]
    torch.testing.assert_close(found[5:], torch.tensor(wanted), rtol=0, atol=1e-5)


def test_members_of_a_file_of_ones_own_have_its_support():
    field = make_field(np.abs(random_values(240, 3) - 20).round())
    data = WindowedField(dataclasses.replace(field, spec=dataclasses.replace(field.spec, nonnegative=True)), 6, 4)
    batch = next(iter(data.batches("test", 5)))
    draw = baseline_sampler("persistence", data, None, {"data_name": "mine", "nsample": 8, "predict_len": 4, "seed": 0})
    members = data.scaler.physical(draw(batch))
    assert members.shape == (5, 8, 4, 3) and members.min() >= 0 and members.std(1).max() > 0
    torch.testing.assert_close(members, members.round(), rtol=0, atol=1e-4)


def test_members_of_a_baseline_have_the_support_of_each_node():
    values = random_values(240, 2) - 20
    values[:, 0] = np.maximum(values[:, 0], 0)
    field = make_field(values)
    field = dataclasses.replace(field, spec=dataclasses.replace(field.spec, nonnegative=None))
    data = WindowedField(field, 6, 4, WindowSettings(scaling="node"))
    draw = baseline_sampler("persistence", data, None, {"data_name": "mine", "nsample": 8, "predict_len": 4, "seed": 0})
    members = data.scaler.physical(draw(next(iter(data.batches("test", 5)))))
    assert members[..., 0].min() == 0 > members[..., 1].min()
