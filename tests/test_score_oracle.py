"""The exact forecaster in either kind of ensemble, which ours is compared with like for like."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy.stats import norm

from data.fields import load_field
from data.synthetic import OracleSettings, make_oracle
from data.windows import WindowedField
from scripts.paper.score_oracle import exact_members, score_exact


@pytest.fixture(scope="module")
def oracle():
    settings = OracleSettings(6, 3000)
    return WindowedField(load_field("Oracle", ROOT, oracle=settings), 12, 12), make_oracle(settings)


def test_the_quantiles_of_the_exact_law_are_those_of_its_normal_margins_in_the_order_of_its_draws(oracle):
    data, field = oracle
    batch = next(iter(data.batches("test", 2)))
    law = field.predictive(data.scaler.physical(batch.context.history), batch.start, 12)
    drawn, found = (exact_members(law, 20, torch.Generator().manual_seed(3), kind) for kind in ("random", "quantiles"))
    assert torch.equal(found.argsort(1), drawn.argsort(1))
    wanted = norm.ppf((np.arange(20)[:, None, None] + 0.5) / 20, law.values(law.z)[1], (law.spread * law.z_std)[1])
    np.testing.assert_allclose(found[1].sort(dim=0).values, wanted, rtol=1e-6)


def test_exact_quantiles_score_about_one_part_in_m_below_random_draws_of_the_same_law(oracle):
    data, field = oracle
    scores = {kind: score_exact(data, field, 50, ensemble=kind) for kind in ("random", "quantiles")}
    assert {kind: each["ensemble"] for kind, each in scores.items()} == {kind: kind for kind in scores}
    assert scores["quantiles"]["CRPS"] / scores["random"]["CRPS"] == pytest.approx(1 - 1 / 50, abs=0.004)
    for each in scores.values():
        assert each["coverage90"] == pytest.approx(each["coverage90_floor"], abs=0.015)


def test_the_exact_law_around_a_wrong_mean_is_worse_and_around_its_own_better_as_its_mean_has_no_sampling_error(oracle):
    data, field = oracle

    def own_mean(context):  # of the test windows, one batch of 8 after the other
        batch = next(batches)
        law = field.predictive(data.scaler.physical(batch.context.history), batch.start, 12)
        return data.scaler.standardize(law.values(law.z))

    batches = iter(data.batches("test", 8, limit=40))
    exact = score_exact(data, field, 20, limit=40)["CRPS"]
    assert 0.95 < score_exact(data, field, 20, limit=40, mean_model=own_mean)["CRPS"] / exact < 1
    assert score_exact(data, field, 20, limit=40, mean_model=lambda context: context.future_climatology)[
        "CRPS"] > 1.05 * exact
