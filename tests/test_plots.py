"""Pictures show what they say: the quantiles, the truth, the busiest nodes, names and units on every axis."""

import dataclasses
import warnings

import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import make_field, random_values, with_gaps

from data.windows import WindowedField
from utils.output import plots

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


def test_a_missing_value_is_a_gap_in_the_picture_and_not_what_stands_in_for_it():
    values = with_gaps(random_values(80, 3))
    data = WindowedField(make_field(values), 6, 4)
    start = data.starts["test"][3]
    window = plots.forecast_window(lambda batch: batch.future[:, None].expand(-1, 9, -1, -1), data, start, [2, 0])
    np.testing.assert_allclose(np.concatenate([window["history"], window["truth"]]),
                               values[int(start):int(start) + 10, [2, 0]], rtol=1e-4)
    assert np.isnan(window["truth"]).any() and np.isfinite(window["members"]).all()
    assert window["names"] == ["node 2", "node 0"]
    figure = plots.fan_charts(**window, unit="mph")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["observed"].get_marker() == "." and lines["median"].get_marker() == "None"
    plt.close(figure)


NODES = 6
VALUES = np.arange(NODES, dtype=float)
IMAGE, AXES = VALUES.reshape(2, 3), (np.array([10.0, 20.0]), np.array([100.0, 110.0, 120.0]))
LINE = np.linspace(0.1, 0.9, 5)
CURVE = {"unit": "km", **dict.fromkeys(("distance", "observed", "forecast", "control"), LINE.tolist())}
LOG = [{"epoch": 0, "training_loss": None, "validation_loss": 1.0},
       {"epoch": 1, "training_loss": 0.8, "validation_loss": 0.7}]
BY_HORIZON = {"this run": {"CRPS": [0.1, 0.2, 0.3]}, "persistence": {"CRPS": [0.2, None, 0.4]}}
PICTURES = {
    "fan_charts": lambda: plots.fan_charts(TIMES, np.zeros((6, 3)), np.ones((4, 3)), np.ones((9, 4, 3)), list("abc"),
                                           "mph"),
    "maps of a grid": lambda: plots.maps([{"mean": IMAGE, "spread": IMAGE}], "mph"),
    "maps of latitudes and longitudes": lambda: plots.maps([{"mean": IMAGE, "spread": IMAGE}], "mph", AXES),
    "maps of points": lambda: plots.maps([{"mean": VALUES, "spread": VALUES}], "mph", np.ones((2, NODES))),
    "members on a grid": lambda: plots.maps([{"member 1": IMAGE}, {"member 1 - mean": IMAGE}], "mph", None, True),
    "pit_histogram": lambda: plots.pit_histogram({"forecast": np.full(10, 0.1)}),
    "spread_against_skill": lambda: plots.spread_against_skill(LINE, LINE, "mph"),
    "scores_by_horizon": lambda: plots.scores_by_horizon(BY_HORIZON, {"CRPS": "share"}, "1 hour"),
    "training_curves": lambda: plots.training_curves({"stage 1": LOG, "stage 2": LOG[1:]}),
    "correlation_curve": lambda: plots.correlation_curve(CURVE),
    "correlation_curve without distances": lambda: plots.correlation_curve(CURVE | {"distance": None, "unit": None}),
    "pit_histogram of regions": lambda: plots.pit_histogram({"forecast": LINE, "control": LINE}, " of means"),
}
every_picture = pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)


def named(label: str) -> bool:
    """Whether an axis says what it shows and in which unit; time stamps carry theirs."""
    return label in ("time", "mph") or (label.endswith(")") and " (" in label)


@every_picture
def test_every_axis_has_a_name_and_a_unit(picture):
    figure = picture()
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        labels = [axes.get_xlabel() or figure.get_supxlabel(), axes.get_ylabel() or figure.get_supylabel()]
        if axes.get_label() == "<colorbar>":
            assert "mph" in labels
        elif axes.get_title() == "spread":  # beside another map with the same rows
            assert named(labels[0])
        else:
            assert all(map(named, labels)), labels
    plt.close(figure)


@every_picture
def test_lines_that_are_compared_differ_in_more_than_colour(picture):
    figure = picture()
    for axes in figure.axes:
        named_lines = [line for line in axes.lines if not line.get_label().startswith("_")]
        styles = [(line.get_linestyle(), line.get_marker()) for line in named_lines]
        if "median" not in [line.get_label() for line in named_lines]:  # in a fan, history and median do not overlap
            assert len(set(styles)) == len(styles)
    plt.close(figure)


def test_the_colours_are_told_apart_in_grey_and_from_paper():
    luminance = [np.dot(matplotlib.colors.to_rgb(color), [0.2126, 0.7152, 0.0722]) for color, _, _ in plots.LOOKS]
    assert all(0.05 < abs(one - other) for k, one in enumerate(luminance) for other in [*luminance[:k], 1.0])


@every_picture
def test_a_picture_is_written_in_three_formats(picture):
    files = plots.picture_files(picture())
    assert list(files) == ["png", "pdf"]
    assert files["png"].startswith(b"\x89PNG") and files["pdf"].startswith(b"%PDF")
    assert not plt.get_fignums()


def test_a_picture_is_the_same_bytes_each_time():
    assert plots.picture_files(PICTURES["maps of a grid"]()) == plots.picture_files(PICTURES["maps of a grid"]())


def test_dollars_in_names_and_units_are_no_formula():
    figure = plots.fan_charts(TIMES, np.zeros((6, 1)), np.ones((4, 1)), np.ones((9, 4, 1)), [r"$\frac$ 5"], "$ of $")
    assert len(plots.picture_files(figure)["png"]) > 1000


def test_a_map_shows_each_node_in_its_place_and_a_row_in_the_same_colours():
    rows = [{"mean": IMAGE, "observed": IMAGE - 1}, {"spread": IMAGE, "error": 2 * IMAGE},
            {"a": IMAGE, "b": -2 * IMAGE}]
    figure = plots.maps(rows, "mph", differences=True)
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    images = [axes.collections[0] for axes in panels]
    np.testing.assert_array_equal(images[0].get_array(), IMAGE)
    assert all(axes.get_ylim() == (2, 0) for axes in panels)  # the first row on top
    assert [image.get_clim() for image in images] == [(-1, 5)] * 2 + [(0, 10)] * 2 + [(-10, 10)] * 2
    plt.close(figure)


def test_a_map_with_latitudes_has_the_north_on_top_whatever_their_order():
    for latitudes in (AXES[0], AXES[0][::-1]):
        figure = plots.maps([{"mean": IMAGE}], "mph", (latitudes, AXES[1]))
        assert figure.axes[0].get_ylim() == (5, 25) and figure.axes[0].get_xlim() == (95, 125)
        plt.close(figure)


def test_points_lie_at_their_coordinates():
    places = np.array([[10.0, 20.0]] * NODES) + VALUES[:, None]
    figure = plots.maps([{"mean": VALUES}], "mph", places.T)
    points = figure.axes[0].collections[0]
    np.testing.assert_array_equal(points.get_offsets(), places[:, ::-1])  # longitude runs along x
    np.testing.assert_array_equal(points.get_array(), VALUES)
    plt.close(figure)


def test_a_place_without_a_value_stays_grey_on_the_map():
    values = np.where(IMAGE == 2, np.nan, IMAGE)
    with warnings.catch_warnings(action="error"):
        figure = plots.maps([{"mean": values, "spread": values}], "mph")
    assert figure.axes[0].collections[0].get_array().mask.sum() == 1
    plt.close(figure)


def test_lines_show_the_values_given_and_a_score_that_does_not_exist_leaves_a_gap():
    figure = plots.scores_by_horizon(BY_HORIZON, {"CRPS": "share"}, "1 hour")
    ours, other = figure.axes[0].lines
    assert ours.get_xdata().tolist() == [1, 2, 3] and ours.get_ydata().tolist() == [0.1, 0.2, 0.3]
    assert np.isnan(other.get_ydata()).tolist() == [False, True, False]
    plt.close(figure)
    figure = plots.training_curves({"stage 2": LOG})
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines}
    assert lines["validation"] == ([0, 1], [1.0, 0.7])
    assert lines["training"] == ([0, 1], [pytest.approx(np.nan, nan_ok=True), 0.8])
    plt.close(figure)


def test_steps_stand_between_their_quantiles_beside_the_line_of_a_calibrated_ensemble():
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    axes = plots.pit_histogram({"forecast": shares}).axes[0]
    values, edges, _ = axes.patches[0].get_data()
    assert values.tolist() == shares.tolist() and edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert axes.lines[0].get_ydata() == [0.25, 0.25]
    plt.close(axes.figure)
