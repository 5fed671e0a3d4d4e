"""The noise of the diffusion: whitened and back without loss, and draws have the covariance of the training values."""

import math
import time

import pytest
import torch

from data.context import Context
from models.noise import CovarianceNoise, IndependentNoise, _conditional_paths

HORIZON, HISTORY = 3, 5


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


def common_signal(windows, nodes, share, lag=0.6):
    """Values of nodes that share one signal with this share of the variance, each step like the one before."""
    correlation = lag ** (torch.arange(HORIZON).unsqueeze(1) - torch.arange(HORIZON)).abs()
    root = torch.linalg.cholesky(correlation)
    signal, idiosyncratic = (torch.einsum("pq,nqv->npv", root, torch.randn(windows, HORIZON, width))
                             for width in (1, nodes))
    return math.sqrt(share) * signal + math.sqrt(1 - share) * idiosyncratic


def context_of(histories, observed=None):
    """A context with these anomalies: the climatology is 0."""
    windows, _, nodes = histories.shape
    parts = (None, None) if observed is None else (observed[:, :HISTORY], observed[:, HISTORY:])
    return Context(histories, torch.zeros(windows, 2, dtype=torch.long), torch.zeros(windows, HISTORY + HORIZON, nodes),
                   *parts)


def one_class(z):
    """One scale for all values."""
    return torch.zeros(len(z), z.shape[2])


def fitted(z, modes, histories=None, later=None, log_scale=None, observed=None):
    """In eval mode; the later windows are those of training unless given; one class unless a log_scale is given."""
    windows, horizon, nodes = z.shape
    model = CovarianceNoise(nodes, horizon, modes)
    context = context_of(torch.randn(windows, HISTORY, nodes) if histories is None else histories, observed)
    z = z if observed is None else torch.where(observed[:, HISTORY:], z, 1e9)
    log_scale = one_class(z) if log_scale is None else log_scale
    model.fit((z, context, log_scale), (z if later is None else later, context, log_scale))
    return model.eval()


def drawn_from(model, count=4000):
    white = torch.randn(count, *model.spread.shape)
    return model.unwhiten(white, one_class(white))


def between_nodes(fields):
    """Correlations of different nodes at the same step, of all steps."""
    nodes = fields.shape[-1]
    others = ~torch.eye(nodes, dtype=torch.bool)
    return torch.stack([torch.corrcoef(fields[:, step].T)[others] for step in range(fields.shape[1])])


# There and back

@pytest.mark.parametrize("windows, nodes, modes", [(200, 40, 6), (5, 40, 6), (200, 4, 16), (30, 1, 16), (50, 7, 0)])
def test_unwhitening_undoes_whitening(windows, nodes, modes):
    z = common_signal(windows, nodes, 0.5)
    model = fitted(z, modes)
    white = model.whiten(z, one_class(z))
    assert white.shape == z.shape
    torch.testing.assert_close(model.unwhiten(white, one_class(z)), z, rtol=0, atol=1e-3)
    fresh = 3 * torch.randn(11, HORIZON, nodes)
    back = model.unwhiten(model.whiten(fresh, one_class(fresh)), one_class(fresh))
    torch.testing.assert_close(back, fresh, rtol=0, atol=5e-3)


def test_before_it_is_fitted_it_changes_nothing():
    model, z = CovarianceNoise(6, HORIZON, 2), torch.randn(4, HORIZON, 6)
    torch.testing.assert_close(model.whiten(z, one_class(z)), z)
    torch.testing.assert_close(model.unwhiten(z, one_class(z)), z)


# Covariance

@pytest.mark.parametrize("modes", [4, 100])
def test_white_coordinates_have_mean_square_one_and_no_correlation(modes):
    z = common_signal(4000, 100, 0.5)
    white = fitted(z, modes).whiten(z, one_class(z))
    covariance = white.flatten(1).T @ white.flatten(1) / len(white)
    assert (covariance - torch.eye(len(covariance))).abs().max() < 0.12
    assert float(covariance.diagonal().mean()) == pytest.approx(1, abs=0.02)


def test_each_node_stays_the_one_that_its_white_coordinate_is_most_like():
    """The symmetric map: of all that whiten it changes each node least."""
    z = common_signal(4000, 20, 0.6)
    white = fitted(z, 20).whiten(z, one_class(z))
    likeness = torch.corrcoef(torch.cat([z[:, 1], white[:, 1]], dim=1).T)[:20, 20:]
    assert torch.equal(likeness.argmax(1), torch.arange(20)) and likeness.diagonal().min() > 0.6


@pytest.mark.parametrize("share, windows", [(0.8, 2000), (0.5, 2000), (0.8, 60), (0.0, 2000)])
def test_unwhitened_noise_has_the_correlation_between_nodes_of_the_training_z(share, windows):
    """More windows than nodes and fewer; strong and none: with 1 mode for 100 nodes."""
    z = common_signal(windows, 100, share)
    drawn = between_nodes(drawn_from(fitted(z, 1)))
    assert float(drawn.mean()) == pytest.approx(float(between_nodes(z).mean()), abs=0.03)
    if windows == 2000:
        assert float(drawn.mean()) == pytest.approx(share, abs=0.05)
        assert drawn.std() < 0.06


def test_nodes_that_go_together_in_groups_are_drawn_in_these_groups():
    left, right = common_signal(1000, 50, 0.8), common_signal(1000, 50, 0.8)
    drawn = drawn_from(fitted(torch.cat([left, right], dim=-1), 2))
    correlation = torch.corrcoef(drawn[:, 1].T)
    within = correlation[:50, :50][~torch.eye(50, dtype=torch.bool)]
    assert float(within.mean()) == pytest.approx(0.8, abs=0.03) and within.std() < 0.04
    assert correlation[:50, 50:].abs().mean() < 0.04


@pytest.mark.parametrize("modes", [16, 5])
def test_more_modes_than_the_field_has_do_not_make_nodes_more_alike(modes):
    """16 modes for 75 nodes, the default for the flights: what they take of each node's own part is given back."""
    z = common_signal(2000, 75, 0.3)
    drawn = drawn_from(fitted(z, modes))
    assert float(between_nodes(drawn).mean()) == pytest.approx(0.3, abs=0.02)
    assert float(drawn.std()) == pytest.approx(1, abs=0.02)


def test_unwhitened_noise_has_the_covariance_over_the_horizon_and_the_spread_of_each_node():
    spread = torch.linspace(0.5, 2, 60) * torch.tensor([[1.0], [1.2], [0.8]])
    z = common_signal(2000, 60, 0.4) * spread
    drawn = drawn_from(fitted(z, 1))
    torch.testing.assert_close(drawn.std(0), spread, rtol=0.1, atol=0)
    scaled = drawn / drawn.std(0)
    for one, other, wanted in ((0, 1, 0.6), (1, 2, 0.6), (0, 2, 0.36)):
        found = (scaled[:, one] * scaled[:, other]).mean(0)
        assert float(found.mean()) == pytest.approx(wanted, abs=0.03) and found.std() < 0.06


def test_one_node_has_its_covariance_over_the_horizon():
    z = common_signal(3000, 1, 0.5)
    drawn = drawn_from(fitted(z, 16), 20_000)[..., 0]
    assert (torch.corrcoef(drawn.T) - torch.corrcoef(z[..., 0].T)).abs().max() < 0.03


def test_constant_z_do_not_break_it():
    model = fitted(torch.zeros(30, HORIZON, 8), 2, torch.zeros(30, HISTORY, 8))
    assert drawn_from(model).isfinite().all()
    assert model.whiten(torch.randn(2, HORIZON, 8), torch.zeros(2, 8)).isfinite().all()
    assert all(each.isfinite().all() for each in model.inputs(context_of(torch.randn(2, HISTORY, 8)), []))


def test_a_few_windows_are_enough():
    """Fewer windows than modes."""
    z = common_signal(3, 60, 0.5)
    model = fitted(z, 16)
    torch.testing.assert_close(model.unwhiten(model.whiten(z, one_class(z)), one_class(z)), z, rtol=0, atol=1e-3)
    assert drawn_from(model).isfinite().all()


# Classes of the fluctuation scale

LAGS = 0.1, 0.9  # correlation with the step before of small and of large errors


def persistent_where_large(windows, nodes):
    """z that persist where the scale is large, and the logarithm of the scale, of two sizes."""
    large = torch.rand(windows, nodes) < 0.5
    small_errors, large_errors = (common_signal(windows, nodes, 0.0, lag) for lag in LAGS)
    return torch.where(large.unsqueeze(1), large_errors, small_errors), 2.0 * large + 0.1 * torch.rand(windows, nodes)


def lags_of(z, log_scale):
    """Correlation with the step before of z of small and of large scale."""
    product = (z[:, 1:] * z[:, :-1]).mean(1)
    return [float(product[chosen].mean()) for chosen in (log_scale < 1, log_scale > 1)]


@pytest.mark.parametrize("modes", [0, 40])
def test_unwhitened_noise_persists_in_each_class_as_z_does(modes):
    z, log_scale = persistent_where_large(1000, 40)
    model, later = fitted(z, modes, log_scale=log_scale), log_scale[torch.randperm(1000)]
    drawn = model.unwhiten(torch.randn(1000, HORIZON, 40), later)
    assert lags_of(z, log_scale) == pytest.approx(LAGS, abs=0.02)
    assert lags_of(drawn, later) == pytest.approx(LAGS, abs=0.04)
    for chosen in (later < 1, later > 1):
        assert float(drawn.movedim(1, -1)[chosen].std()) == pytest.approx(1, abs=0.02)
    white = model.whiten(z, log_scale)
    assert lags_of(white, log_scale) == pytest.approx((0, 0), abs=0.03)
    torch.testing.assert_close(model.unwhiten(white, log_scale), z, rtol=0, atol=1e-3)
    assert lags_of(drawn_from(fitted(z, modes), 1000), later) == pytest.approx((0.5, 0.5), abs=0.05)


def test_each_node_has_its_spread_in_each_class_whatever_its_covariance_over_the_steps():
    """Half of the nodes persist, and in the other half large errors do."""
    z, log_scale = persistent_where_large(2000, 40)
    z[..., :20] = common_signal(2000, 20, 0.5, 0.95)
    drawn = fitted(z, 40, log_scale=log_scale).unwhiten(torch.randn(20_000, HORIZON, 40), log_scale.repeat(10, 1))
    for chosen in (log_scale.repeat(10, 1) < 1, log_scale.repeat(10, 1) > 1):
        counts = chosen.unsqueeze(1)
        spread = ((drawn.square() * counts).sum(0) / counts.sum(0)).sqrt()
        torch.testing.assert_close(spread, z.square().mean(0).sqrt(), rtol=0.04, atol=0)


def test_the_classes_of_a_window_are_those_of_all_its_samples():
    z, log_scale = persistent_where_large(200, 6)
    model, white = fitted(z, 6, log_scale=log_scale), torch.randn(5, HORIZON, 6)
    torch.testing.assert_close(model.unwhiten(white, log_scale[:1]), model.unwhiten(white, log_scale[:1].expand(5, -1)))


def test_few_windows_hardly_change_the_correlation_of_all():
    z, log_scale = persistent_where_large(8, 1)
    assert (fitted(z, 1, log_scale=log_scale).of_all.filters - torch.eye(HORIZON)).abs().max() < 0.3


@pytest.mark.parametrize("nodes, classes", [(8, range(8)), (4, [0, 2, 4, 6]), (1, [0])])
def test_constant_scales_of_nodes_have_classes_of_equal_size_that_rounding_does_not_change(nodes, classes):
    log_scale = torch.linspace(-3, 2, nodes).expand(50, -1)
    model = fitted(common_signal(50, nodes, 0.5), nodes, log_scale=log_scale)
    for rounded in (log_scale, log_scale - 1e-6, log_scale + 1e-6):
        found = torch.searchsorted(model.class_edges, rounded.contiguous())
        assert torch.equal(found, torch.tensor(list(classes)).expand(50, -1))


def test_later_windows_count_half_in_each_class_and_not_at_all_in_training_mode():
    (z, log_scale), later = persistent_where_large(2000, 20), common_signal(2000, 20, 0.0, 0.5)
    model = fitted(z, 20, later=later, log_scale=log_scale)
    drawn = model.unwhiten(torch.randn(2000, HORIZON, 20), log_scale)
    assert lags_of(drawn, log_scale) == pytest.approx([(lag + 0.5) / 2 for lag in LAGS], abs=0.05)
    assert lags_of(model.train().whiten(z, log_scale), log_scale) == pytest.approx((0, 0), abs=0.03)


def test_classes_differ_in_fields_with_gaps_too():
    z, log_scale = persistent_where_large(2000, 20)
    observed = torch.rand(2000, HISTORY + HORIZON, 20) > 0.1
    model = fitted(z, 20, torch.zeros(2000, HISTORY, 20), log_scale=log_scale, observed=observed)
    small, large = lags_of(model.unwhiten(torch.randn(2000, HORIZON, 20), log_scale), log_scale)
    assert small == pytest.approx(LAGS[0], abs=0.05) and large == pytest.approx(LAGS[1], abs=0.1)


# Training and later windows

def test_a_forecast_has_the_mean_of_the_covariances_of_training_and_later_windows():
    training, later = common_signal(4000, 30, 0.8, lag=0.9), 5 * common_signal(4000, 30, 0.4, lag=0.1)
    drawn = drawn_from(fitted(training, 30, later=later), 20_000)
    assert float(drawn.std()) == pytest.approx(1, abs=0.03), "the size is that of training"
    assert float(between_nodes(drawn).mean()) == pytest.approx(0.6, abs=0.03)
    steps = (drawn[:, 0] * drawn[:, 1]).mean()
    assert float(steps) == pytest.approx((0.9 + 0.1) / 2, abs=0.03)


def test_in_training_mode_training_fields_are_whitened_by_their_own_covariance():
    training, later = common_signal(4000, 30, 0.8), common_signal(4000, 30, 0.2)
    model = fitted(training, 30, later=later)
    assert float(model.train().whiten(training, one_class(training)).square().mean()) == pytest.approx(1, abs=0.02)
    forecast = drawn_from(model, 20_000)
    assert float(model.eval().whiten(forecast, one_class(forecast)).square().mean()) == pytest.approx(1, abs=0.02)
    back = model.unwhiten(model.whiten(training, one_class(training)), one_class(training))
    assert (back - training).abs().max() < 1e-3


def test_a_prediction_has_no_part_along_the_leading_modes():
    model = fitted(common_signal(1000, 40, 0.5), 40)
    predicted = torch.randn(5, HORIZON, 40)
    found = model.learned(predicted)
    assert (found @ model.axes[:, :10]).abs().max() < 1e-4, "one mode for four nodes"
    torch.testing.assert_close(found @ model.axes[:, 10:], predicted @ model.axes[:, 10:], rtol=0, atol=1e-4)
    alone = CovarianceNoise(3, HORIZON, 16)
    assert torch.equal(alone.learned(predicted[..., :3]), predicted[..., :3])


# History

def test_histories_have_spread_one_at_every_node():
    histories, anomaly = torch.randn(500, HISTORY, 30) * torch.linspace(0.2, 3, 30), torch.randn(2, HORIZON, 30)
    model = fitted(common_signal(500, 30, 0.5), 4, histories)
    seen, found = model.inputs(context_of(histories), [anomaly])
    torch.testing.assert_close(seen.square().mean((0, 1)).sqrt(), torch.ones(30), rtol=0, atol=1e-4)
    torch.testing.assert_close(found, anomaly / model.history_spread)


# Cost

@pytest.mark.parametrize("nodes", [500, 3000])
def test_what_is_stored_is_linear_in_the_nodes(nodes):
    model = CovarianceNoise(nodes, 12, 16)
    stored = sum(value.numel() for value in model.buffers())
    classes = 8
    assert stored == (12 + 16 + 1 + 2 * classes * 12) * nodes + 16 + classes - 1 + (3 * 17 + 4 * classes + 1) * 12 * 12


def test_with_fewer_z_than_nodes_no_array_of_nodes_by_nodes_is_made():
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            self.size = max([self.size, *sizes])
            return result

    nodes = 10_000
    z, histories = torch.randn(50, HORIZON, nodes), torch.randn(50, HISTORY, nodes)
    start = time.perf_counter()
    with Largest() as seen:
        model, log_scale = CovarianceNoise(nodes, HORIZON, 16), histories[:, 0]
        model.fit(*2 * [(z, context_of(histories), log_scale)])
        model.unwhiten(model.whiten(z, log_scale), log_scale)
        model.inputs(context_of(histories), [])
    assert 50 * HORIZON * nodes <= seen.size < nodes * nodes / 4
    assert time.perf_counter() - start < 20


def test_it_is_fitted_without_a_gradient_and_leaves_its_arguments_alone():
    z = common_signal(100, 10, 0.5)
    kept = z.clone()
    model = fitted(z, 3)
    assert torch.equal(z, kept)
    assert not list(model.parameters()) and not any(value.requires_grad for value in model.buffers())


def test_what_was_fitted_before_leaves_no_trace():
    z, log_scale = persistent_where_large(100, 10)
    context, models = context_of(torch.randn(100, HISTORY, 10)), [CovarianceNoise(10, HORIZON, 10) for _ in range(2)]
    models[0].fit((5 * z.flip(1), context, -log_scale), (z, context, log_scale))
    for model in models:
        model.fit(*2 * [(z, context, log_scale)])
    for name, buffer in models[0].state_dict().items():
        assert torch.equal(buffer, models[1].state_dict()[name]), name


def test_all_that_was_fitted_is_saved_and_restored():
    z = common_signal(100, 10, 0.5)
    model, other = fitted(z, 3), CovarianceNoise(10, HORIZON, 3).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.whiten(z, one_class(z)), model.whiten(z, one_class(z)))
    context = context_of(torch.randn(100, HISTORY, 10))
    assert all(map(torch.equal, other.inputs(context, [z]), model.inputs(context, [z])))


def test_independent_noise_leaves_every_value_as_it_is_and_puts_the_mean_in_gaps():
    noise, z = IndependentNoise(), torch.randn(3, HORIZON, 4)
    context, log_scale = context_of(torch.randn(3, HISTORY, 4)), torch.randn(3, 4)
    noise.fit(*2 * [(z, context, log_scale)])
    for found in (noise.whiten(z, log_scale), noise.unwhiten(z, log_scale), noise.inputs(context, [z])[1],
                  noise.learned(z)):
        assert found is z
    assert noise.inputs(context, [])[0] is context.history and not noise.state_dict()
    observed = torch.rand(3, HORIZON, 4) < 0.5
    filled = noise.impute(z, observed, torch.randn_like(z))
    assert torch.equal(filled[observed], z[observed]) and (filled[~observed] == 0).all()


# Missing values

def z_with_gaps(share, windows=4000, nodes=8):
    z = common_signal(windows, nodes, 0.6)
    return z, torch.rand(windows, HISTORY + HORIZON, nodes) >= share


def test_values_in_gaps_change_no_part_of_the_fit():
    z, observed = z_with_gaps(0.3, 300)
    histories, models = torch.randn(300, HISTORY, 8), []
    for value in (0.0, 1e9):
        torch.manual_seed(1)
        models.append(CovarianceNoise(8, HORIZON, 2))
        with_gaps = torch.where(observed[:, HISTORY:], z, value)
        context = context_of(torch.where(observed[:, :HISTORY], histories, 0.0), observed)
        models[-1].fit(*2 * [(with_gaps, context, one_class(z))])
    for name, buffer in models[0].state_dict().items():
        assert torch.equal(buffer, models[1].state_dict()[name]) and buffer.isfinite().all(), name


@pytest.mark.parametrize("share, atol", [(0.1, 0.06), (0.3, 0.17)])
def test_the_correlations_of_z_with_gaps_come_out_again(share, atol):
    z, observed = z_with_gaps(share)
    model = fitted(z, 8, torch.zeros(4000, HISTORY, 8), observed=observed)
    found, wanted = (torch.corrcoef(each.flatten(1).T) for each in (drawn_from(model, 20_000), z))
    assert (found - wanted).abs().max() < atol


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_members_of_fields_with_gaps_persist_as_the_field_does(share):
    z = common_signal(4000, 20, 0.0, 0.9)
    observed = torch.rand(4000, HISTORY + HORIZON, 20) >= share
    drawn = drawn_from(fitted(z, 20, torch.zeros(4000, HISTORY, 20), observed=observed), 10_000)
    assert float((drawn[:, 1:] * drawn[:, :-1]).mean()) == pytest.approx(0.9, abs=0.05)


def test_missing_steps_are_drawn_from_their_law_given_the_observed_ones():
    """The middle one of three steps with correlation .6: mean .6 / 1.36 of the sum, variance 1 - .72 / 1.36."""
    correlation = 0.6 ** (torch.arange(3.0).unsqueeze(1) - torch.arange(3.0)).abs()
    observed = torch.tensor([True, False, True]).view(1, 3, 1).expand(50_000, 3, 2)
    values = torch.tensor([1.0, 1e9, 2.0]).view(1, 3, 1).expand(50_000, 3, 2)
    found = _conditional_paths(values, observed, correlation, torch.randn(50_000, 3, 2))
    torch.testing.assert_close(found[:, ::2], values[:, ::2])
    assert float(found[:, 1].mean()) == pytest.approx(0.6 / 1.36 * 3, abs=0.01)
    assert float(found[:, 1].var()) == pytest.approx(1 - 0.72 / 1.36, abs=0.01)
    whole = torch.randn(4, 3, 2)
    assert torch.equal(_conditional_paths(whole, torch.ones(4, 3, 2, dtype=torch.bool), correlation, whole), whole)


def test_an_imputed_value_has_the_right_margin_and_goes_with_the_observed_nodes_of_its_step():
    z, observed = z_with_gaps(0.2)
    observed = observed[:, HISTORY:]
    model = fitted(z, 1)
    imputed = model.impute(torch.where(observed, z, 0.0), observed, torch.randn_like(z))
    assert torch.equal(imputed[observed], z[observed])
    assert float(imputed[~observed].std()) == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(between_nodes(imputed), between_nodes(z), rtol=0, atol=0.08)
