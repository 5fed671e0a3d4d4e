"""The context of a forecast: what its properties are of its parts, and that joining keeps every window."""

import pytest
import torch

from data.context import Context
from data.windows import Batch

BATCH, HISTORY, HORIZON, NODES = 3, 4, 2, 5


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


def make_context(batch=BATCH, **parts):
    return Context(torch.randn(batch, HISTORY, NODES), torch.randint(7, (batch, 2)),
                   torch.randn(batch, HISTORY + HORIZON, NODES), **parts)


def everything(batch=BATCH):
    steps = batch, HISTORY + HORIZON
    return make_context(batch, observed=torch.rand(batch, HISTORY, NODES) < 0.7,
                        target_mask=torch.rand(batch, HORIZON, NODES) < 0.7, covariates=torch.randn(*steps, 1, 2),
                        lags=torch.randn(*steps, NODES, 3))


def test_the_anomaly_is_the_history_less_its_climatology_and_the_rest_of_that_belongs_to_the_horizon():
    context = make_context()
    assert context.history_len == HISTORY
    assert torch.equal(context.anomaly, context.history - context.climatology[:, :4])
    assert torch.equal(context.future_climatology, context.climatology[:, 4:])


def test_what_is_missing_of_the_history_is_marked_by_1():
    context = everything()
    assert torch.equal(context.missing, 1.0 - context.observed.float())
    assert make_context().missing is None and make_context().target_mask is None


def test_features_are_the_covariates_followed_by_the_lags_of_every_node():
    context = everything()
    assert context.features.shape == (BATCH, HISTORY + HORIZON, NODES, 5)
    assert all(torch.equal(context.features[:, :, node, :2], context.covariates[:, :, 0]) for node in range(NODES))
    assert torch.equal(context.features[..., 2:], context.lags)
    assert make_context().features is None
    assert make_context(covariates=context.covariates).features is context.covariates
    assert make_context(lags=context.lags).features is context.lags


def test_joined_contexts_hold_the_windows_of_all_in_their_order():
    one, other = everything(2), everything(3)
    joined = Context.join([one, other])
    for name, value in vars(joined).items():
        assert torch.equal(value[:2], getattr(one, name)) and torch.equal(value[2:], getattr(other, name)), name
    assert Context.join([make_context(), make_context()]).observed is None


def test_a_batch_of_windows_with_gaps_holds_the_climatology_in_them():
    window, climatology = torch.randn(BATCH, HISTORY + HORIZON, NODES), torch.randn(BATCH, HISTORY + HORIZON, NODES)
    window[0, 1, 2] = window[2, HISTORY, 0] = torch.nan
    lagged = torch.randn(BATCH, HISTORY + HORIZON, NODES, 1)
    lagged[1, 3, 4] = torch.nan
    batch = Batch.of(window, HISTORY, torch.zeros(BATCH, 2, dtype=torch.long), climatology, torch.arange(BATCH), True,
                     lagged=lagged)
    assert batch.context.history[0, 1, 2] == climatology[0, 1, 2]
    assert batch.future[2, 0, 0] == climatology[2, HISTORY, 0] and not batch.target_mask[2, 0, 0]
    assert batch.context.lags[1, 3, 4, 0] == climatology[1, 3, 4]
    assert int((~batch.context.observed).sum()) == 1 and batch.target_mask.sum() == batch.future.numel() - 1


def test_a_window_whose_future_is_unknown_has_an_empty_one():
    climatology = torch.randn(BATCH, HISTORY + HORIZON, NODES)
    batch = Batch.of(torch.randn(BATCH, HISTORY, NODES), HISTORY, torch.zeros(BATCH, 2, dtype=torch.long), climatology,
                     torch.arange(BATCH), True)
    assert batch.future.shape == (BATCH, 0, NODES)
    assert batch.context.observed.shape == (BATCH, HISTORY, NODES) and batch.context.observed.all()
    assert batch.target_mask.shape == (BATCH, 0, NODES)


def test_a_future_of_which_a_part_is_known_has_a_mask_in_a_field_without_gaps():
    window, climatology = torch.randn(2, BATCH, HISTORY + HORIZON, NODES)
    window[:, -1] = torch.nan
    batch = Batch.of(window, HISTORY, torch.zeros(BATCH, 2, dtype=torch.long), climatology, torch.arange(BATCH), False,
                     part_known=True)
    assert batch.context.observed is None and torch.equal(batch.context.history, window[:, :HISTORY])
    assert batch.target_mask[:, :-1].all() and not batch.target_mask[:, -1].any()
    assert torch.equal(batch.future[:, -1], climatology[:, -1])
