"""Margins and the fluctuation scale: values as computed by hand, and members that undo what training does."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import HISTORY, HORIZON, NODES, make_batch, make_field

from data.constants import ANY_VALUE, QUANTILE_LEVELS
from data.windows import Batch, WindowedField
from models.margins import (
    BLOCKS,
    FEW_WIDTH,
    LARGEST_WIDTH,
    OVERSAMPLED,
    WIDTH_PRIOR,
    EmpiricalMargin,
    QuantileMargin,
    ResidualMargin,
    ShapedMargin,
    centred,
)
from models.mean import MeanModel
from models.quantiles import equidistant_quantiles, pit_bounds, quantiles_at_z, smooth_members
from models.scale import FLOOR, PRIOR, FluctuationScale
from utils.config import TrainConfig
from utils.pipeline import choose_margin
from utils.scores.metrics import crps_quantile, member_quantiles, sort_members

WINDOWS = 200


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


def calendar_of(slots):
    return torch.stack([torch.as_tensor(slots), torch.zeros(len(slots), dtype=torch.long)], dim=1)


def fitted(kind, residual, slots, size=24, observed=None, spectrum=None, state=None, step=0.0):
    scale = FluctuationScale(kind, residual.shape[-1], HORIZON, size, step)
    counts = torch.ones_like(residual) if observed is None else observed.to(residual.dtype)
    scale.fit(residual, torch.ones_like(residual) if state is None else state, calendar_of(slots), counts, spectrum)
    return scale


# Fluctuation scale

@pytest.mark.parametrize("size, bins", [(24, 24), (7, 7), (288, 48)])
def test_the_scale_of_a_node_and_time_is_the_root_mean_square_shrunk_towards_that_of_the_node(size, bins):
    """By loops over every residual; at 5-minute data a bin is half an hour."""
    slots = torch.randint(size, (WINDOWS,))
    residual = torch.randn(WINDOWS, HORIZON, NODES) * torch.tensor([1.0, 0.2, 5.0, 1.0])
    squares, counts = np.zeros((bins, NODES)), np.zeros((bins, 1))
    for window, slot in enumerate(slots.tolist()):
        for step in range(HORIZON):
            place = (slot + 1 + step) % size * bins // size
            squares[place] += residual[window, step].double().numpy() ** 2
            counts[place] += 1
    node = residual.double().square().mean((0, 1)).numpy()
    cycles = counts * bins / (size * HORIZON)  # residuals of a bin in one day: its slots, each at F steps ahead
    wanted = np.sqrt((cycles * squares / counts + 3 * node) / (cycles + 3))
    found = fitted("cycle", residual, slots, size)
    assert PRIOR == 3
    np.testing.assert_allclose(found.table, wanted, rtol=1e-4)
    ahead = (slots.unsqueeze(1) + torch.arange(1, HORIZON + 1)) % size * bins // size
    np.testing.assert_allclose(found(calendar_of(slots)), wanted[ahead], rtol=1e-4)


def test_a_time_that_was_never_seen_has_the_scale_of_the_node():
    residual = torch.randn(50, HORIZON, NODES)
    scale = fitted("cycle", residual, [22] * 50)  # its horizon: the hours 23, 0 and 1
    torch.testing.assert_close(scale.table[2:23], residual.square().mean((0, 1)).sqrt().expand(21, -1))
    assert (scale.table[[23, 0, 1]] - scale.table[5]).abs().min() > 0


@pytest.mark.parametrize("step, lowest", [(0.0, 0.0), (0.01, 0.0), (0.6, 0.6 / 12**0.5)])
def test_a_node_that_never_varied_has_a_scale_of_3_per_cent_of_that_of_the_field_or_of_the_error_of_rounding(step,
                                                                                                           lowest):
    residual = torch.randn(WINDOWS, HORIZON, NODES)
    residual[..., 1] = 0
    slots = torch.randint(24, (WINDOWS,))
    found = fitted("cycle", residual, slots, step=step)(calendar_of(slots))
    wanted = max(0.03 * float(residual.square().mean().sqrt()), lowest)
    torch.testing.assert_close(found[..., 1], torch.full((WINDOWS, HORIZON), wanted))
    assert FLOOR == 0.03 and found[..., 0].min() > 0.5


def test_the_scale_by_quantiles_is_their_spread_times_that_of_the_residuals_in_its_units():
    """Normal quantiles of spread s, residuals 1.5 s: the scale of another window of spread s is 1.5 s."""
    slots = torch.arange(WINDOWS) % 24
    spread = torch.rand(WINDOWS, HORIZON, NODES) + 0.5
    scale = FluctuationScale("quantiles", NODES, HORIZON, 24)
    z = torch.special.ndtri(torch.tensor(QUANTILE_LEVELS)).view(1, -1, 1, 1)
    state = scale.state(7 + spread.unsqueeze(1) * z)
    torch.testing.assert_close(state, spread, rtol=1e-4, atol=0)
    residual = 1.5 * spread * (2 * torch.randint(2, spread.shape) - 1)
    scale.fit(residual, state, calendar_of(slots), torch.ones_like(residual), None)
    torch.testing.assert_close(scale(calendar_of(slots), state), 1.5 * spread, rtol=1e-4, atol=0)
    equal = scale.state(torch.zeros(2, len(QUANTILE_LEVELS), HORIZON, NODES))
    assert (equal > 0).all(), "quantiles that are all alike"
    assert (FluctuationScale("cycle", NODES, HORIZON, 24).state(spread.unsqueeze(1)) == 1).all()


@pytest.mark.parametrize("kind", ["cycle", "global"])
def test_values_in_gaps_change_no_scale(kind):
    residual, observed = torch.randn(WINDOWS, HORIZON, NODES), torch.rand(WINDOWS, HORIZON, NODES) < 0.7
    observed[..., 3] = False
    slots = torch.randint(24, (WINDOWS,))
    one, other = (fitted(kind, residual.where(observed, value), slots, observed=observed) for value in (0.0, 1e6))
    assert torch.equal(one.table, other.table)
    rms = residual[observed].square().mean().sqrt()
    torch.testing.assert_close(one.table[:, 3], rms.expand(len(one.table)))  # of a node without any residual


def test_one_scale_for_the_field_is_the_root_mean_square_of_all_residuals():
    residual = torch.randn(WINDOWS, HORIZON, NODES) * torch.tensor([1.0, 0.2, 5.0, 1.0])
    scale = fitted("global", residual, torch.randint(24, (WINDOWS,)))
    assert scale(calendar_of([0, 5])).shape == (2, HORIZON, NODES)
    torch.testing.assert_close(scale(calendar_of([3])), residual.square().mean().sqrt().expand(1, HORIZON, NODES))


def test_the_scale_of_the_spectrum_is_that_of_each_node_at_any_time():
    given = torch.tensor([0.3, 0.1, 1.0, 2.0])
    scale = fitted("spectrum", torch.randn(WINDOWS, HORIZON, NODES), torch.zeros(WINDOWS, dtype=torch.long),
                   spectrum=lambda: given)
    assert torch.equal(scale(calendar_of([0, 23])), given.expand(2, HORIZON, NODES))


# Residuals

class Constant(MeanModel):
    """A mean of `value` everywhere."""

    def __init__(self, value=0.5):
        super().__init__("mse")
        self.value = value

    def predict(self, context):
        return torch.full_like(context.future_climatology, self.value).unsqueeze(1)


def make_margin(scaled=True, center=True, support=ANY_VALUE, **settings):
    scale = FluctuationScale("cycle", NODES, HORIZON, 24)
    scale.table.copy_(torch.rand(24, NODES) + 0.5)
    return ResidualMargin(scale, support, scaled, center, **settings)


def ensemble(margin, draws=40, members=40, kind="random", batch=3):
    """z, members made of it, the mean that they are around, and the scale."""
    context, z = make_batch(batch).context, torch.randn(batch, draws, HORIZON, NODES)
    mean, state = torch.randn(batch, HORIZON, NODES), torch.rand(batch, HORIZON, NODES) + 0.5
    scale = margin.scale(context.calendar, state) if margin.scaled else torch.ones(())
    return z, margin.decode(z, torch.stack([mean, state], dim=1), context, members, kind), mean, scale


@pytest.mark.parametrize("scaled", [True, False])
def test_decoding_undoes_encoding(scaled):
    margin, batch = make_margin(scaled, center=False), make_batch()
    given = margin.given(Constant(), batch.context)
    assert torch.equal(given, margin.given(Constant(), batch.context, batch.future))
    assert (given[:, 0] == 0.5).all() and (given[:, 1] == 1).all(), "mean and state"
    z = margin.encode(batch.future, given, batch.context, torch.rand_like(batch.future))
    wanted = (batch.future - 0.5) / (margin.scale(batch.context.calendar) if scaled else 1)
    torch.testing.assert_close(z, wanted)
    found = margin.decode(z.unsqueeze(1), given, batch.context, 1, "random")
    torch.testing.assert_close(found, batch.future.unsqueeze(1))


@pytest.mark.parametrize("scaled", [True, False])
def test_centred_members_have_the_mean_of_stage_1_and_keep_the_variance(scaled):
    """The variance around that mean is, without bias, that of the law that z was drawn from."""
    z, members, given, scale = ensemble(make_margin(scaled))
    torch.testing.assert_close(members.mean(1), given, rtol=0, atol=1e-5)
    around = (members - given.unsqueeze(1)).square().mean(1)
    torch.testing.assert_close(around, scale.square() * z.var(1, correction=1), rtol=1e-4, atol=1e-5)
    free = make_margin(scaled, center=False)
    z, members, given, scale = ensemble(free)
    torch.testing.assert_close(members, given.unsqueeze(1) + scale.unsqueeze(-3) * z if scaled
                               else given.unsqueeze(1) + z)


class Skewed(MeanModel):
    """Conditional quantiles of a shifted lognormal distribution (sigma .6) or of a normal one, moved by `shift`."""

    def __init__(self, normal=False, shift=0.0):
        super().__init__("quantiles")
        z = torch.special.ndtri(torch.tensor(QUANTILE_LEVELS))
        self.levels = (z if normal else (0.6 * z).exp()) + shift

    def predict(self, context):
        return self.levels.view(1, -1, 1, 1) * torch.ones_like(context.future_climatology).unsqueeze(1)


def make_shaped(support=ANY_VALUE, center=False):
    margin = ShapedMargin(FluctuationScale("quantiles", NODES, HORIZON, 24), support, center=center)
    margin.scale.table.copy_(torch.rand(24, NODES) + 0.5)
    margin.width.fill_(1.2)
    return margin


def test_the_shaped_margin_maps_values_to_z_by_the_quantiles_and_back():
    """future = quantile at the level Phi(factor z), factor: the scale over the spread of the quantiles."""
    margin, model, batch = make_shaped(), Skewed(), make_batch()
    given = margin.given(model, batch.context)
    factor = margin.scale(batch.context.calendar, given[:, 1]) / given[:, 1]
    z = torch.randn_like(batch.future).clamp(-1.5, 1.5)
    future = quantiles_at_z(given[:, 2:], (factor * z).unsqueeze(1)).squeeze(1)
    prepared = margin.given(model, batch.context, future)
    assert torch.equal(prepared[:, :2], given[:, :2]) and prepared.shape[1] == 4
    found = margin.encode(future, prepared, batch.context, torch.rand_like(future))
    torch.testing.assert_close(found, z, rtol=1e-3, atol=1e-3)
    margin.width.fill_(1.0)
    torch.testing.assert_close(margin.decode(z.unsqueeze(1), given, batch.context, 1, "random").squeeze(1), future)


def test_the_shaped_margin_of_normal_quantiles_is_that_of_the_scaled_residual():
    margin, model, batch = make_shaped(center=True), Skewed(normal=True, shift=0.3), make_batch()
    plain = ResidualMargin(margin.scale, ANY_VALUE)
    plain.width.copy_(margin.width)
    given, z = margin.given(model, batch.context), torch.randn(3, 40, HORIZON, NODES)
    torch.testing.assert_close(margin.decode(z, given, batch.context, 40, "random"),
                               plain.decode(z, given[:, :2], batch.context, 40, "random"), rtol=1e-4, atol=1e-4)
    future = 0.3 + 0.5 * torch.randn_like(batch.future)
    found, wanted = (each.encode(future, each.given(model, batch.context, future), batch.context,
                                 torch.rand_like(future)) for each in (margin, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_nodes_that_hardly_varied_have_members_as_wide_as_the_floor_of_the_scale():
    """Also a value far from their quantiles has a large z."""
    margin, batch = make_shaped(), make_batch()
    margin.scale.floor.fill_(0.03)
    model = Skewed()
    model.levels = 0.5 + 1e-5 * model.levels
    given = margin.given(model, batch.context)
    torch.testing.assert_close(given[:, 1], torch.full_like(given[:, 1], 0.03), rtol=1e-3, atol=0)
    members = margin.decode(torch.randn(3, 400, HORIZON, NODES), given, batch.context, 400, "random")
    factor = margin.width * margin.scale(batch.context.calendar, given[:, 1])
    torch.testing.assert_close(members.std(1), factor, rtol=0.2, atol=0)
    future = torch.full_like(batch.future, 1.0)
    z = margin.encode(future, margin.given(model, batch.context, future), batch.context, torch.rand_like(future))
    assert float(z.min()) > 2, "the limit of z, 4, over factors of at most 1.5"


def test_members_of_the_shaped_margin_are_centred_in_z_and_have_the_mean_and_skewness_of_its_quantiles():
    """The average of 19 quantiles leaves out the tails of this lognormal distribution; members have them."""
    margin, batch = make_shaped(center=True), make_batch()
    given, z = margin.given(Skewed(), batch.context), torch.randn(3, 400, HORIZON, NODES)
    members = margin.decode(z, given, batch.context, 400, "random")
    torch.testing.assert_close(members, margin.decode(z + 0.7, given, batch.context, 400, "random"), rtol=0, atol=1e-4)
    size = margin.width * margin._unit(given, batch.context).unsqueeze(1) * centred(z) / given[:, 1:2]
    torch.testing.assert_close(members, quantiles_at_z(given[:, 2:], size), rtol=0, atol=1e-4)
    wanted = equidistant_quantiles(given[:, 2:], 1000).mean(1)
    unit = make_shaped(center=True)
    unit.width.fill_(1)
    unit.scale.table.fill_(1)
    found = unit.decode(torch.randn(3, 4000, HORIZON, NODES), given, batch.context, 4000, "random").mean(1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.03)
    assert (wanted - given[:, 0]).min() > 0.04
    residual = members - members.mean(1, keepdim=True)
    skewness = residual.pow(3).mean() / residual.square().mean() ** 1.5
    assert 1 < float(skewness) < 3, "that of this lognormal distribution is 2.3"


def test_the_shaped_margin_of_exact_quantiles_has_the_scale_of_their_spread_and_a_width_of_validation():
    """z of values that follow the quantiles is standard normal; validation values are 1.3 times as far out in z."""
    model = Skewed()

    def windows(margin, size):
        batch = make_batch(2000)
        future = (0.6 * size * torch.randn_like(batch.future)).exp()
        return Batch(batch.context, future, torch.arange(2000)), margin.given(model, batch.context, future)

    margin = ShapedMargin(FluctuationScale("quantiles", NODES, HORIZON, 24), ANY_VALUE)
    training = windows(margin, 1.0)
    margin.fit(training, windows(margin, 1.3), None)
    torch.testing.assert_close(margin.scale.table, torch.ones_like(margin.scale.table), rtol=0, atol=0.25)
    assert float(margin.scale.table.mean()) == pytest.approx(1, abs=0.02)
    assert float(margin.width) == pytest.approx(1.3, rel=0.05) == float(margin.validation_size)
    (training, prepared) = training
    z = margin.encode(training.future, prepared, training.context, torch.rand_like(training.future))
    assert float(z.std()) == pytest.approx(1, abs=0.02) and abs(float(z.mean())) < 0.02


def test_members_are_moved_to_the_support_and_keep_their_mean_where_that_is_possible():
    margin = make_margin(support=(-0.4, 0.0))
    z, members, given, _ = ensemble(margin)
    assert members.min() == torch.tensor(-0.4) and float((members == members.min()).float().mean()) > 0.05
    torch.testing.assert_close(members.mean(1), given.clamp_min(-0.4), rtol=0, atol=1e-5)
    margin.support = -0.4, 0.25
    count = (ensemble(margin)[1] + 0.4) / 0.25
    torch.testing.assert_close(count, count.round(), rtol=0, atol=1e-4)


def test_members_of_equidistant_quantiles_are_those_of_a_larger_ensemble_in_the_order_of_its_first():
    margin = make_margin()
    assert margin.num_samples(10, "quantiles") == 10 * OVERSAMPLED and margin.num_samples(10, "random") == 10
    torch.manual_seed(1)
    _, drawn, _, _ = ensemble(margin, 40, 40)
    torch.manual_seed(1)
    _, members, _, _ = ensemble(margin, 40, 10, "quantiles")
    assert members.shape == (3, 10, HORIZON, NODES)
    torch.testing.assert_close(members, smooth_members(drawn, 10))
    assert torch.equal(members.argsort(1), drawn[:, :10].argsort(1))


def test_the_denoiser_is_given_the_anomaly_of_the_mean_and_the_logarithm_of_the_scale_or_what_is_asked_for():
    context, mean, state = make_batch().context, torch.randn(3, HORIZON, NODES), torch.rand(3, HORIZON, NODES) + 0.5
    for inputs in ((), ("mean",), ("scale",), ("mean", "scale")):
        margin = make_margin(inputs=inputs)
        anomalies, values = margin.features(torch.stack([mean, state], dim=1), context)
        assert (len(anomalies), len(values)) == ("mean" in inputs, "scale" in inputs)
        for found, wanted in [*zip(anomalies, [mean - context.climatology[:, HISTORY:]], strict=False),
                              *zip(values, [margin.scale(context.calendar, state).log()], strict=False)]:
            assert torch.equal(found, wanted)


def fitted_margin(later=(1.0,) * BLOCKS, kind="quantiles", step=0.0, scaled=True, each=2000 // BLOCKS, apart=1):
    """A margin fitted to normal residuals; `later`: their spread in blocks of validation, in units of training's.

    0: a block without values.
    """
    def windows(spread):
        batch = make_batch(len(spread))
        mean, state = torch.randn_like(batch.future), torch.rand_like(batch.future) + 0.5
        residual = 0.5 * spread.view(-1, 1, 1) * state * torch.randn_like(mean)
        start, context = apart * torch.arange(len(spread)), batch.context
        if not spread.all():
            context = dataclasses.replace(context, target_mask=(spread > 0).view(-1, 1, 1).expand_as(residual))
        return Batch(context, mean + residual, start), torch.stack([mean, state], dim=1)

    margin = ResidualMargin(FluctuationScale(kind, NODES, HORIZON, 24, step), ANY_VALUE, scaled, center=False)
    margin.fit(windows(torch.ones(2000)), windows(torch.tensor(later).repeat_interleave(each)), None)
    return margin


@pytest.mark.parametrize("later, width", [
    ([1.0] * 8, 1.0), ([1.4] * 8, 1.4), ([0.7] * 8, 0.7),  # as validation residuals are, whatever those of training
    ([2.0] * 4 + [0.5] * 4, 1.15),  # sum of 1 / sqrt(1 + (ratio / width)^2) is 8 / sqrt(2)
    ([1, 1, 2.0, 1, 1, 1, 1, 1], 1.07),  # the root mean square is 1.17
    ([0.7] * 4 + [1.4] * 4, 1.4),  # errors that have grown stay large
    ([5.0] * 8, LARGEST_WIDTH), ([0.1] * 8, 1 / LARGEST_WIDTH),
])
def test_the_width_is_that_of_the_lowest_expected_crps_in_blocks_of_validation(later, width):
    for kind in ("quantiles", "cycle"):
        assert float(fitted_margin(later, kind).width) == pytest.approx(width, rel=0.05)
    assert fitted_margin(later, scaled=False).width == 1


def test_the_expected_crps_of_normal_members_is_lowest_at_the_width():
    """CRPS by members, of values with the spreads of blocks and of as many as the prior has."""
    ratio, number = torch.tensor([0.4, 0.6, 2.0]), 3
    width = ResidualMargin._width(ratio, number)
    torch.manual_seed(0)
    values = torch.cat([ratio, torch.ones(int(WIDTH_PRIOR))]) * torch.randn(400_000, 1)
    pairs = torch.randn(2, 400_000, 1)

    def crps(size):
        return float((values - size * pairs[0]).abs().mean() - size * (pairs[0] - pairs[1]).abs().mean() / 2)

    assert crps(width) < min(crps(0.85 * width), crps(1.15 * width))


@pytest.mark.parametrize("windows", [1, 2, 5, BLOCKS - 1])
def test_few_validation_windows_count_less_and_widen_members(windows):
    one = 0.5**0.5  # a / sqrt(a^2 + ratio^2) for ratio = a
    narrow, wide = (float(fitted_margin([size], each=windows * HORIZON).width) for size in (0.5, 1.7))
    for ratio, width in ((0.5, narrow), (1.7, wide)):
        width /= min(((windows + 1) / max(windows - 2, 0.5)) ** 0.5, FEW_WIDTH)
        found = (windows / (1 + (ratio / width) ** 2) ** 0.5 + 3 / (1 + (1 / width) ** 2) ** 0.5) / (windows + 3)
        assert found == pytest.approx(one, abs=0.06)
    assert fitted_margin([0.5], each=40 * HORIZON).width < 0.6
    wide_apart = fitted_margin([0.5], each=8, apart=10 * HORIZON).width  # 8 windows, whatever time they span
    assert float(wide_apart) == pytest.approx(FEW_WIDTH * ResidualMargin._width(torch.full((8,), 0.5), 8), rel=0.15)


def test_blocks_without_values_are_no_evidence():
    width = fitted_margin([1.4, 0, 1.4, 0, 1.4, 0, 1.4, 0], each=5 * HORIZON).width  # 20 windows with values
    assert float(width) == pytest.approx((21 / 18) ** 0.5 * ResidualMargin._width(torch.full((4,), 1.4), 20), rel=0.04)


def test_scales_within_a_step_of_counts_determine_no_width():
    assert fitted_margin([1.4] * 8, step=100.0).width == 1
    assert float(fitted_margin([1.4] * 8, step=0.5).width) == pytest.approx(1.4, rel=0.05)


def test_the_members_are_as_wide_as_the_width():
    margin = fitted_margin()
    margin.width.fill_(1)
    context, given = make_batch().context, torch.randn(3, 2, HORIZON, NODES).abs() + 0.5
    z = torch.randn(3, 5, HORIZON, NODES)
    before = margin.decode(z, given, context, 5, "random") - given[:, :1]
    margin.width.fill_(1.25)
    torch.testing.assert_close(margin.decode(z, given, context, 5, "random") - given[:, :1], 1.25 * before)


# Quantiles

class Normal(MeanModel):
    """Normal quantiles around `mean`; without calibration around 0."""

    def __init__(self, mean=0.0):
        super().__init__("quantiles")
        self.mean = mean

    def uncalibrated(self, context):
        return Normal().predict(context)

    def predict(self, context):
        z = torch.special.ndtri(torch.tensor(QUANTILE_LEVELS)).view(1, -1, 1, 1)
        return self.mean + z.expand(len(context.history), -1, HORIZON, NODES)


def test_z_is_that_under_the_uncalibrated_quantiles_and_members_are_of_the_calibrated_ones():
    batch, margin = make_batch(WINDOWS), QuantileMargin(ANY_VALUE)
    prepared = margin.given(Normal(1.0), batch.context, batch.future)
    assert torch.equal(prepared, pit_bounds(Normal().predict(batch.context), batch.future, *ANY_VALUE))
    z = margin.encode(batch.future, prepared, batch.context, torch.rand_like(batch.future))
    torch.testing.assert_close(z, batch.future.clamp(-4, 4), rtol=0, atol=1e-3)
    members = margin.decode(z.unsqueeze(1), margin.given(Normal(1.0), batch.context), batch.context, 1, "random")
    torch.testing.assert_close(members[:, 0], 1 + batch.future.clamp(-4, 4), rtol=0, atol=1e-3)


def test_members_of_quantiles_have_the_order_of_z_whichever_kind_they_are():
    context, margin = make_batch().context, QuantileMargin((0.2, 0.0))
    quantiles, z = Normal(1.0).predict(context), torch.randn(3, 20, HORIZON, NODES)
    assert margin.num_samples(20, "random") == margin.num_samples(20, "quantiles") == 20
    found = {kind: margin.decode(z, quantiles, context, 20, kind) for kind in ("random", "quantiles")}
    equidistant = equidistant_quantiles(quantiles, 20).clamp_min(0.2)
    torch.testing.assert_close(found["quantiles"].sort(1).values, equidistant.sort(1).values)
    torch.testing.assert_close(found["random"], (1 + z).clamp_min(0.2), rtol=0, atol=1e-5)
    for members in found.values():
        assert (members.gather(1, z.argsort(1)).diff(dim=1) >= 0).all() and members.min() == torch.tensor(0.2)


def test_a_margin_of_quantiles_has_nothing_to_fit_and_gives_the_denoiser_nothing():
    batch, margin = make_batch(), QuantileMargin(ANY_VALUE)
    margin.fit((batch, None), None, None)
    assert margin.features(None, batch.context) == ([], []) and margin.inputs == () and not margin.state_dict()


# Empirical

DRY = 0.95  # share of zeros


class Rain(MeanModel):
    """Forecasts some shower for a window, or none, in its history's first value: 19 quantiles, all as large."""

    def __init__(self):
        super().__init__("quantiles")

    def predict(self, context):
        return context.history[:, :1, :].unsqueeze(1).expand(-1, len(QUANTILE_LEVELS), HORIZON, -1)


def showers(windows):
    """Windows (`Batch`) of 95 % zeros in physical units, 0 the minimum: with a probability that the history shows."""
    batch = make_batch(windows)
    sign = torch.rand(windows, 1, NODES)
    wet = torch.rand(windows, HORIZON, NODES) < 4 * (1 - DRY) * sign**3
    amount = torch.distributions.Gamma(0.6, 0.5).sample(wet.shape)
    context = dataclasses.replace(batch.context, history=sign.expand(-1, HISTORY, -1).contiguous(),
                                  climatology=torch.full_like(batch.context.climatology, 0.06))
    return dataclasses.replace(batch, context=context, future=torch.where(wet, amount, 0.0))


def fitted_to_showers():
    margin, model, batch = EmpiricalMargin((0.0, 0.0), HORIZON), Rain(), showers(4000)
    margin.fit((batch, margin.given(model, batch.context, batch.future)), None, None)
    return margin, model


def crps(members, truth):
    return crps_quantile(member_quantiles(sort_members(members)), truth).sum() / truth.sum()


@pytest.mark.parametrize("kind", ["random", "quantiles"])
def test_of_95_per_cent_zeros_the_forecast_is_better_than_zero_and_than_the_climatology(kind):
    margin, model = fitted_to_showers()
    batch, members = showers(3000), 50
    drawn = margin.decode(torch.randn(3000, members, HORIZON, NODES), margin.given(model, batch.context), batch.context,
                          members, kind)
    climatology = showers(3000 * members).future.view(3000, members, HORIZON, NODES)
    assert 0.94 < (batch.future == 0).float().mean() < 0.96
    assert (drawn == 0).float().mean() == pytest.approx(DRY, abs=0.01) and drawn.min() == 0
    found = crps(drawn, batch.future)
    assert found < 0.995 and found < crps(climatology, batch.future) - 0.01  # the forecast of zero has 1
    assert drawn.mean() == pytest.approx(batch.future.mean().item(), rel=0.1 if kind == "random" else 0.2)
    probability, sign = (drawn > 0).float().mean(1), batch.context.history[:, :1]
    for low in (0, 0.5):  # likelier where it was likelier
        some = ((sign >= low) & (sign < low + 0.5)).expand_as(probability)
        assert probability[some].mean() == pytest.approx((batch.future > 0)[some].float().mean().item(), abs=0.01)


def test_the_index_of_an_empirical_margin_is_that_of_the_uncalibrated_quantiles():
    context, margin = make_batch().context, EmpiricalMargin((-9.0, 0.0), HORIZON)
    assert torch.equal(margin.given(Normal(1.0), context), margin.given(Normal(), context))
    assert margin.given(Normal(), context)[:, 0].mean() == pytest.approx(9, abs=1e-4)


def test_z_among_values_of_the_same_forecast_is_standard_normal_and_members_undo_them():
    margin, model = fitted_to_showers()
    batch = showers(3000)
    given = margin.given(model, batch.context, batch.future)
    z = margin.encode(batch.future, given, batch.context, torch.rand_like(batch.future))
    assert z.mean().abs() < 0.03 and z.std() == pytest.approx(1, abs=0.03)
    wet = batch.future > 0
    assert z[wet].min() > z[~wet].median()
    several = torch.randn(3000, 20, HORIZON, NODES)
    drawn = margin.decode(several, given, batch.context, 20, "random")
    ordered = drawn.gather(1, several.argsort(1))
    assert (ordered.diff(dim=1) >= 0).all()


def test_what_stands_in_a_gap_changes_nothing_of_an_empirical_margin():
    batch, model = showers(500), Rain()
    context = dataclasses.replace(batch.context, target_mask=torch.rand_like(batch.future) < 0.8)
    fits = []
    for filling in (0.0, 1e4):
        margin = EmpiricalMargin((0.0, 0.0), HORIZON)
        future = batch.future.where(context.target_mask, torch.tensor(filling))
        margin.fit((Batch(context, future, batch.start), margin.given(model, context, future)), None, None)
        fits.append(margin.state_dict())
    for name, value in fits[0].items():
        assert torch.equal(value, fits[1][name]) and value.any(), name


@pytest.mark.parametrize("zeros, nonnegative, chosen", [
    (0.5, None, "empirical"), (0.5, True, "empirical"), (0.5, False, "shaped"), (0.3, None, "shaped"),
])
def test_the_margin_of_many_zeros_is_the_empirical_one_where_no_value_is_negative(zeros, nonnegative, chosen):
    """By the training part: the test, all zeros or none, decides nothing."""
    values = torch.where(torch.rand(400, NODES) < zeros, 0.0, torch.rand(400, NODES))
    values[330:] = 0 if chosen == "shaped" else 1
    check_margin(values, nonnegative, chosen)


def test_zeros_at_night_alone_are_not_many():
    """Solar power: 50 % zeros, at the same hours of each day."""
    night = (torch.arange(400) % 24 < 12).unsqueeze(1)
    check_margin(torch.where(night, 0.0, torch.rand(400, NODES) + 0.1), None, "shaped")
    check_margin(torch.where(night | (torch.rand(400, NODES) < 0.5), 0.0, torch.rand(400, NODES)), None, "empirical")


def check_margin(values, nonnegative, chosen):
    field = make_field(values)
    field = dataclasses.replace(field, spec=dataclasses.replace(field.spec, nonnegative=nonnegative))
    data = WindowedField(field, 6, 4)
    assert choose_margin(TrainConfig(), data, "quantiles").margin == chosen
    assert choose_margin(TrainConfig(margin="quantile"), data, "quantiles").margin == "quantile"


@pytest.mark.parametrize("objective, scale, whole, chosen", [
    ("quantiles", "quantiles", False, "shaped"), ("mse", "quantiles", False, "scaled"),
    ("quantiles", "cycle", False, "scaled"), ("quantiles", "quantiles", True, "scaled"),
])
def test_the_shape_is_that_of_quantiles_and_not_for_counts(objective, scale, whole, chosen):
    values = 20 * torch.rand(400, NODES)
    field = make_field(values.round() if whole else values)
    data = WindowedField(dataclasses.replace(field, spec=dataclasses.replace(field.spec, nonnegative=True)), 6, 4)
    assert choose_margin(TrainConfig(scale=scale), data, objective).margin == chosen
