"""The base of stage 1: about as good as the best simple forecaster; a network's share follows from its skill."""

import dataclasses
import math

import pytest
import torch
from conftest import make_field

from data.constants import QUANTILE_LEVELS
from data.context import Context
from data.windows import Batch, WindowBatches, WindowedField, WindowSettings
from models import build
from models.base import (
    CANDIDATES,
    OPTIMISM,
    SMOOTHING,
    Base,
    SimpleForecasters,
    convex_weights,
    from_latest,
    independent,
    recent_mean,
    ridge_features,
    share_of,
    shift_of,
    thinned,
    weighted_quantiles,
)
from models.layers import Task
from models.mean import CorrectedMean, MeanModel
from models.quantiles import pinball

MONTH, DAY = (1, "month"), (1, "day")


def windows_of(values, history, horizon, interval=DAY, lags="auto"):
    return WindowedField(make_field(values.float(), interval=interval), history, horizon, WindowSettings(lags=lags))


def task_of(data):
    return build.task_of({"history_len": data.history_len, "predict_len": data.predict_len}, data.metadata())


def fitted(data):
    base = Base(task_of(data), len(QUANTILE_LEVELS))
    base.fit(data.batches("train", 32), data.calibration(32), float("-inf"))
    return base


def loss(forecast, data):
    """Mean pinball loss on the test windows."""
    parts = [pinball(forecast(batch.context), batch.future).mean(1) for batch in data.batches("test", 32)]
    return torch.cat(parts).mean().item()


def of_candidate(base, name):
    """The base with one candidate alone, and the spread of its own errors."""
    only = Base.__new__(Base)
    torch.nn.Module.__init__(only)
    only.__dict__.update({**base.__dict__, "_buffers": dict(base._buffers)})
    only.weights = torch.zeros_like(base.weights)
    only.weights[base.simple.names.index(name)] = 1
    return only


def trend_with_season(months=200, seed=0):
    month = torch.arange(months).unsqueeze(1)
    noise = torch.randn(months, 2, generator=torch.Generator().manual_seed(seed))
    return month * torch.tensor([0.3, 0.1]) + 8 * torch.sin(2 * torch.pi * month / 12) + noise


def random_walk(steps=500, seed=1):
    return torch.randn(steps, 4, generator=torch.Generator().manual_seed(seed)).cumsum(0)


# Fields

def test_a_trend_with_season_is_forecast_better_than_last_value_climatology_and_level_and_not_worse_than_the_best():
    data = windows_of(trend_with_season(), 12, 6, MONTH)
    base = fitted(data)
    found = {name: loss(of_candidate(base, name), data) for name in base.simple.names}
    ours = loss(base, data)
    assert data.lags == ((12,), (12, 24))
    error = [(batch.future - batch.context.future_climatology).abs() for batch in data.batches("test", 32)]
    assert ours < 0.3 * found["last value"] and ours < 0.7 * found["level"] and ours < found["lag"]
    assert ours < 0.15 * torch.cat(error).mean()
    assert ours < 1.05 * min(found.values())


def test_a_random_walk_is_left_to_the_last_value_and_its_intervals_grow_with_the_horizon():
    data = windows_of(random_walk(), 12, 8)
    base = fitted(data)
    batch = next(iter(data.batches("test", 64)))
    quantiles = base(batch.context)
    point = quantiles[:, 9]
    step = data.scaler.standardize(torch.ones(())) - data.scaler.standardize(torch.zeros(()))
    assert data.lags == ()
    assert loss(base, data) < 1.03 * loss(of_candidate(base, "last value"), data)
    assert (point - batch.context.history[:, -1:]).abs().mean() < 0.6 * step
    width = (quantiles[:, -1] - quantiles[:, 0]).mean((0, 2))
    assert width[7] / width[0] == pytest.approx(8**0.5, rel=0.25)


def test_sixty_steps_of_one_node_give_a_forecast_with_calibrated_intervals():
    values = trend_with_season(60)[:, :1]
    data = windows_of(values, 6, 6, MONTH)
    base = fitted(data)
    batch = next(iter(data.batches("test", 64)))
    quantiles = base(batch.context)
    inside = (batch.future > quantiles[:, 0]) & (batch.future < quantiles[:, -1])
    assert quantiles.isfinite().all() and (quantiles.diff(dim=1) >= 0).all()
    assert loss(base, data) < 0.6 * loss(of_candidate(base, "last value"), data)
    assert 0.6 < inside.float().mean() <= 1


def test_gaps_in_the_history_leave_the_latest_value_that_is_there():
    history = torch.tensor([[[1.0], [2.0], [0.0]]])  # the last is the climatology in a gap
    observed = torch.tensor([[[True], [True], [False]]])
    context = Context(history, torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 4, 1), observed)
    assert context.from_latest(context.history).item() == 2
    seasonal = dataclasses.replace(context, climatology=torch.tensor([[[0.5], [1.5], [4.0], [3.0]]]),
                                   history=torch.tensor([[[1.0], [2.0], [4.0]]]))
    assert seasonal.now.item() == 4.5  # an anomaly of .5 beside the climatology of the last step


def test_after_a_gap_simple_forecasters_go_on_from_the_latest_value_and_its_own_climatology():
    """Anomaly 1 at all steps, 3 of 6 missing at the end: with phi = 1 the damped anomaly is 1 at all steps, as without
    gaps; with phi = .5 it has halved once for each step since the latest value. Of a history without any value 0 is
    left of it, and of one whose lags are the value of 4 steps before, the ridge is given those of the latest value.
    """
    climatology = 10 * torch.sin(torch.arange(9) * 2 * torch.pi / 12).view(1, 9, 1).repeat(1, 1, 2)
    observed = torch.tensor([True, True, True, False, False, False]).view(1, 6, 1) * torch.tensor([True, False])
    history = torch.where(observed, climatology[:, :6] + 1, climatology[:, :6])
    lags = torch.arange(9.0).view(1, 9, 1, 1).expand(1, 9, 2, 1)
    context = Context(history, torch.zeros(1, 2, dtype=torch.long), climatology, observed, lags=lags)
    simple = SimpleForecasters(Task(2, 6, 3, (24, 7), masked=True, lags=1))
    place = CANDIDATES.index("damped anomaly")
    for phi, anomalies in ((1.0, (1, 1, 1)), (0.5, (0.5**4, 0.5**5, 0.5**6))):
        simple.damping.fill_(phi)
        anomaly = simple(context)[0, place] - climatology[0, 6:]
        torch.testing.assert_close(anomaly[:, 0], torch.tensor(anomalies, dtype=torch.float32))
        torch.testing.assert_close(anomaly[:, 1], torch.zeros(3))
    weight = (1 - SMOOTHING) ** torch.tensor([5, 4, 3])
    change = (weight * (history - lags[:, :6, :, 0])[0, :3, 0]).sum() / weight.sum()
    torch.testing.assert_close(simple(context)[0, -1], lags[0, 6:, :, 0] + torch.stack([change, torch.zeros(())]))
    latest = torch.zeros(1, 1, 2), *from_latest(context)[1:]
    now = ridge_features(history, latest, 1)[0, :, 5:]  # climatology now and then, lag now and then
    torch.testing.assert_close(now[0], torch.stack([climatology[0, 2, 0], climatology[0, 7, 0], lags[0, 2, 0, 0],
                                                    lags[0, 7, 0, 0]]))


def test_one_training_window_gives_finite_forecasts():
    data = WindowedField(make_field(torch.rand(6, 2)), 2, 1, WindowSettings(split="0.3,0.3,0.4"))
    assert len(data.starts["train"]) == 1
    quantiles = fitted(data)(next(iter(data.batches("test", 4))).context)
    assert quantiles.isfinite().all()


def test_quantiles_of_a_node_that_was_hardly_observed_are_those_of_the_field():
    """400 windows, worth 100 independent ones: node 0 is observed in 4 of them, node 1 in none."""
    torch.manual_seed(0)
    base = Base(Task(40, 4, 2, (1, 1)), len(QUANTILE_LEVELS))
    counts = torch.full((400, 2, 40), 0.25)
    counts[4:, :, 0] = counts[:, :, 1] = 0
    residual = torch.randn(400, 2, 40)
    base._measure(residual, counts, torch.zeros(400, 2, dtype=torch.long))
    others = base.shape[:, 2:].mean(1)
    assert (base.shape[:, 0] - others).abs().max() < 0.3 and (base.shape[:, 1] - others).abs().max() < 0.3
    assert base.spread[:, 1].tolist() == pytest.approx([1.0, 1.0], abs=0.05)


def test_no_quantile_lies_below_the_support():
    data = windows_of(torch.rand(200, 3) ** 4, 6, 4)
    base = Base(task_of(data), len(QUANTILE_LEVELS))
    minimum = data.scaler.standardize(torch.zeros(())).item()
    base.fit(data.batches("train", 32), data.calibration(32), minimum)
    assert base(next(iter(data.batches("test", 64))).context).min() >= minimum


# Pieces

def test_ridge_finds_a_linear_law_and_its_left_out_forecasts_did_not_see_their_targets():
    steps = [torch.tensor([[1.0, 0.5]])] * 2
    noise = torch.randn(400, 2, generator=torch.Generator().manual_seed(3))
    for step in range(2, 400):
        steps.append(1.2 * steps[-1] - 0.6 * steps[-2] + 0.1 * noise[step])
    data = windows_of(torch.cat(steps), 6, 1, lags="none")
    forecasters = SimpleForecasters(task_of(data))
    windows = thinned(data.batches("train", 64))
    left_out = forecasters.fit(windows)
    which = forecasters.names.index("ridge")
    in_sample = (forecasters(windows.context)[:, which] - windows.future).square().mean().sqrt()
    out_of_sample = (left_out[:, which] - windows.future).square().mean().sqrt()
    right = 0.1 / data.scaler.std
    assert in_sample == pytest.approx(right, rel=0.12) and in_sample < out_of_sample < 1.2 * right


def test_convex_weights_are_the_inverse_variances_of_independent_errors_and_never_negative():
    variance = torch.tensor([1.0, 2.0, 4.0])
    found = convex_weights(torch.diag(variance))
    torch.testing.assert_close(found, (1 / variance) / (1 / variance).sum(), atol=1e-3, rtol=0)
    correlated = torch.tensor([[1.0, 2.0], [2.0, 5.0]])  # the best free weights are 1.5 and -0.5
    torch.testing.assert_close(convex_weights(correlated), torch.tensor([1.0, 0.0]), atol=1e-3, rtol=0)


def test_weighted_quantiles_are_those_of_values_that_come_as_often():
    values = torch.tensor([0.0, 1.0, 2.0]).view(3, 1)
    found = weighted_quantiles(values, torch.tensor([1.0, 8.0, 1.0]).view(3, 1)).flatten()
    assert found[0] == 0 and (found[2:17] == 1).all() and found[-1] == 2


def test_windows_that_share_no_step_of_their_futures_are_independent():
    assert independent(torch.arange(48), 12) == 4 and independent(torch.tensor([0, 100, 200]), 12) == 3


# The network's share

class Oracle(MeanModel):
    """Quantiles around the truth with some error, or around a useless centre (error None)."""

    def __init__(self, data, error):
        super().__init__("quantiles")
        self.data, self.error = data, error

    def predict(self, context):
        normal = torch.special.ndtri(torch.tensor(QUANTILE_LEVELS)).view(1, -1, 1, 1)
        centre = context.history[:, -1:] if self.error is None else context.covariates[:, context.history_len:, :, 0]
        width = 3.0 if self.error is None else self.error
        if self.error is None:
            centre = -2 * centre
        return (centre + torch.zeros(1, self.data.predict_len, 1)).unsqueeze(1) + width * normal


def with_truth(data, error):
    """Batches whose context holds the future with an error as a covariate: what `Oracle` reads."""
    def changed(batch):
        noise = torch.randn(batch.future.shape, generator=torch.Generator().manual_seed(int(batch.start[0])))
        future = batch.future + (error or 0) * noise
        seen = torch.cat([batch.context.history, future], dim=1).unsqueeze(-1)
        return dataclasses.replace(batch, context=dataclasses.replace(batch.context, covariates=seen))

    class Changed(WindowBatches):
        def __iter__(self):
            return map(changed, super().__iter__())

    return lambda split: Changed(data, data.starts[split], 32)


@pytest.mark.parametrize("error, least, most", [(0.02, 0.9, 1.0), (None, 0.0, 0.05)])
def test_a_network_that_is_right_gets_nearly_all_and_one_of_no_use_nothing(error, least, most):
    data = windows_of(random_walk(800), 6, 4)
    model = CorrectedMean(task_of(data), [Oracle(data, error)], base=True)
    batches = with_truth(data, error)
    assert (model.share == 1).all()
    model.calibrate(batches("train"), batches("validation"), (float("-inf"), 0.0))
    assert least <= model.share.min() and model.share.mean() <= most
    batch = next(iter(batches("test")))
    parts = model.base(batch.context), model.average(batch.context)
    torch.testing.assert_close(model.predict(batch.context), torch.lerp(*parts, model.share))


def test_of_one_block_of_validation_the_base_alone_is_taken():
    losses = torch.linspace(2, 1, 11).view(-1, 1, 1, 1).expand(-1, 1, 3, 4)
    assert (share_of(losses, 1) == 0).all()
    assert (share_of(losses.expand(-1, 8, -1, -1), 40) == 1).all()


@pytest.mark.parametrize("gain, least, most", [(0.02, 0.0, 0.0), (0.3, 0.9, 1.0)])
def test_of_few_blocks_a_network_is_taken_whose_gain_is_more_than_training_on_them_explains(gain, least, most):
    """Six independent windows explain a gain of OPTIMISM / 6."""
    assert gain < OPTIMISM / 6 or gain > 2 * OPTIMISM / 6
    losses = torch.linspace(1, 1 - gain, 11).view(-1, 1, 1, 1).expand(-1, 6, 3, 4)
    assert least <= share_of(losses, 6).min() and share_of(losses, 6).max() <= most


@pytest.mark.parametrize("blocks, share", [(2, 0), (4, 1)])
def test_of_few_blocks_a_tie_goes_to_the_base(blocks, share):
    """Losses of the network are .3 and .9 times the base's by turns: a gain of .4, standard error .3 or .17."""
    gains = torch.tensor([0.7, 0.1]).repeat(blocks // 2)
    shares = torch.linspace(0, 1, 11).view(-1, 1, 1, 1)
    losses = (1 - shares * gains.view(1, -1, 1, 1)).expand(-1, -1, 3, 2).contiguous()
    assert (share_of(losses, 9) == share).all()


def test_a_tie_goes_to_the_network_but_for_nodes_that_have_shifted():
    """Losses of the network are 1.01 times the base's, between .9 and 1.12 by block: a standard error of .027."""
    of_blocks = torch.linspace(0.9, 1.12, 8)
    shares = torch.linspace(0, 1, 11).view(-1, 1, 1, 1)
    losses = (1 + shares * (of_blocks.view(1, -1, 1, 1) - 1)).expand(-1, -1, 3, 2).contiguous()
    assert (share_of(losses, 40) == 1).all() and (share_of(losses, 40, 0.2) == 1).all()
    assert (share_of(losses, 40, 0.5) == 1).all() and (share_of(losses, 40, 0.8) < 0.7).all()
    assert (share_of(losses, 40, 1.0) == 0).all() and (share_of(losses, 40, 5.0) == 0).all()
    mixed = share_of(losses, 40, torch.tensor([0.0, 1.0]))
    assert (mixed[:, 0] == 1).all() and (mixed[:, 1] == 0).all()


def batch_of(future, counts=None):
    target_mask = None if counts is None else counts.bool()
    context = Context(torch.zeros_like(future), torch.zeros(len(future), 1), torch.zeros(len(future), 8, 4),
                      target_mask=target_mask)
    return Batch(context, future, torch.arange(len(future)))


def test_the_shift_is_the_difference_of_means_in_deviations_of_training_where_both_have_targets():
    torch.manual_seed(0)
    training, validation = (torch.randn(50, 4, 4) for _ in range(2))
    counts = torch.ones(50, 4, 4)
    counts[:, :, 2] = 0
    shift = shift_of(batch_of(2 * training), batch_of(validation - torch.tensor([0.0, 3.0, 9.0, 0.0]), counts))
    expected = (validation[..., 1].mean() - 3 - 2 * training[..., 1].mean()).abs() / (2 * training[..., 1]).std()
    assert float(shift[1]) == pytest.approx(float(expected), rel=0.01) and 1 < expected < 2
    assert shift[0] < 0.3 and shift[2] == 0 and shift[3] < 0.3
    unseen = shift_of(batch_of(training, counts), batch_of(validation))
    assert unseen[2] == math.inf and unseen[[0, 1, 3]].max() < 1


def test_the_shift_is_of_anomalies_so_that_another_season_is_none():
    data = windows_of(torch.sin(torch.arange(480) * math.pi / 6).unsqueeze(1).repeat(1, 2), 12, 6, MONTH)
    halves = [Batch.join(data.batches("train", 64, limit=16)), Batch.join(data.batches("validation", 64, limit=1))]
    raw = (halves[1].future.mean() - halves[0].future.mean()).abs() / halves[0].future.std()
    assert raw > 0.3 and shift_of(*halves).max() < 0.05 * raw


def test_a_tie_of_a_shifted_field_goes_to_the_base():
    """A network that is the base and a little noise, on a stationary field and on one that grows."""
    class Tied(MeanModel):
        def __init__(self, base):
            super().__init__("quantiles")
            self.base = [base]

        def predict(self, context):
            return self.base[0](context) + 0.5 * torch.sin(40 * context.history.sum(1)).view(-1, 1, 1, 3)

    shares = []
    for growth in (0.0, 4.0):
        torch.manual_seed(1)
        data = windows_of(torch.randn(900, 3) + growth * torch.arange(900).unsqueeze(1) / 900, 6, 4)
        model = CorrectedMean(task_of(data), [Tied(fitted(data))], base=True)
        model.calibrate(data.batches("train", 32), data.calibration(32), (float("-inf"), 0.0))
        shares.append(float(model.share.mean()))
    assert shares[0] > 0.2 and shares[1] < 0.1


def test_the_level_is_a_weighted_mean_of_the_anomalies_that_were_observed():
    def level_of(context):
        return recent_mean(context.anomaly, context)

    history, climatology = torch.tensor([[[1.0], [5.0], [2.0]]]), torch.tensor([[[0.5], [1.0], [1.0], [7.0]]])
    weights = [(1 - SMOOTHING) ** 2, 1 - SMOOTHING, 1.0]
    for seen in ([1, 1, 1], [1, 0, 1], [1, 0, 0], [0, 0, 0]):
        kept = [weight * each for weight, each in zip(weights, seen, strict=True)]
        expected = sum(w * a for w, a in zip(kept, [0.5, 4.0, 1.0], strict=True)) / max(sum(kept), 1e-9)
        observed = torch.tensor(seen).bool().view(1, 3, 1)
        found = level_of(Context(history, torch.zeros(1, 1), climatology, observed))
        assert float(found) == pytest.approx(expected)
    assert float(level_of(Context(history, torch.zeros(1, 1), climatology))) == pytest.approx(
        sum(w * a for w, a in zip(weights, [0.5, 4.0, 1.0], strict=True)) / sum(weights))


def test_a_candidate_that_fits_small_errors_of_validation_outweighs_one_that_fits_large_ones_of_training():
    data = windows_of(random_walk(), 12, 8)
    base = Base(task_of(data), 1)
    kinds, shape = len(base.simple.names), (8, data.num_nodes)
    torch.manual_seed(2)
    errors = [size * (torch.randn(30, kinds, *shape) + 2) for size in (100.0, 1.0)]
    errors[0][:, 1] = 0.9 * errors[0][:, 0]
    errors[1][:, 0] = 0.1 * errors[1][:, 1]
    base._weigh(errors, [torch.full((30, *shape), evidence / 30) for evidence in (4.0, 8.0)])
    assert base.weights[0].mean() > 0.6 > 0.1 > base.weights[1].mean()


def test_the_share_is_kept_by_a_checkpoint():
    data = windows_of(random_walk(300), 6, 4)
    model, other = (CorrectedMean(task_of(data), [Oracle(data, None)], base=True) for _ in range(2))
    model.calibrate(data.batches("train", 32), data.calibration(32), (float("-inf"), 0.0))
    other.load_state_dict(model.state_dict())
    context = next(iter(data.batches("test", 8))).context
    assert torch.equal(model.predict(context), other.predict(context))
