"""Pictures show what they say: the quantiles, the truth, the busiest nodes, names and units."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import make_field, random_values

from data.windows import WindowedField
from utils import plots

TIMES = np.datetime64("2020-01-01T00", "m") + np.arange(10) * 60


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, left open for the test to look at."""
    drawn = []
    monkeypatch.setattr(plots.plt, "close", drawn.append)
    yield drawn
    monkeypatch.undo()
    plt.close("all")


def test_a_fan_shows_the_median_the_bands_the_history_and_the_truth():
    rng = np.random.default_rng(0)
    history, truth, members = rng.normal(size=6), rng.normal(size=4), rng.normal(size=(101, 4))
    _, axes = plt.subplots()
    plots.fan_chart(axes, TIMES, history, truth, members)
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_array_equal(lines["history"], history)
    np.testing.assert_array_equal(lines["observed"], [history[-1], *truth])
    np.testing.assert_allclose(lines["median"], np.median(members, axis=0))
    for band, (low, high) in zip(axes.collections, [(5, 95), (25, 75)], strict=True):
        corners = band.get_paths()[0].vertices[:, 1]
        for quantile in (low, high):
            for value in np.percentile(members, quantile, axis=0):
                assert np.abs(corners - value).min() < 1e-9
    assert [band.get_label() for band in axes.collections] == ["90 % of members", "50 % of members"]
    plt.close("all")


def draw(batch):
    return batch.future[:, None] + torch.linspace(-1, 1, 9)[None, :, None, None]


@pytest.mark.parametrize("nodes, panels", [(1, 1), (2, 2), (3, 3), (7, 4)])
def test_a_forecast_shows_the_middle_test_window_at_its_busiest_nodes_with_names_and_unit(
        tmp_path, figures, nodes, panels):
    values = random_values(80, nodes) + 100 * np.arange(nodes, dtype=np.float32)
    field = make_field(values)
    field = dataclasses.replace(field, spec=dataclasses.replace(field.spec, unit="furlongs"))
    plots.draw_forecast(draw, WindowedField(field, 6, 4), tmp_path / "forecast.png")

    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")
    figure, = figures
    shown = [axes for axes in figure.axes if axes.get_visible()]
    busiest = [nodes - 1 - place for place in range(panels)]
    assert [axes.get_title() for axes in shown] == [f"node {node}" for node in busiest]
    assert figure.get_supylabel() == "furlongs" and figure.get_supxlabel() == "time"
    middle = 57 + 7  # 71 windows: 43, 14, 14
    for axes, node in zip(shown, busiest, strict=True):
        lines = {line.get_label(): line.get_ydata() for line in axes.lines}
        np.testing.assert_allclose(lines["history"], values[middle:middle + 6, node], rtol=1e-4)
        np.testing.assert_allclose(lines["observed"][1:], values[middle + 6:middle + 10, node], rtol=1e-4)
        np.testing.assert_allclose(lines["median"], values[middle + 6:middle + 10, node], rtol=1e-4)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "90 % of members", "50 % of members", "median", "history", "observed"}
