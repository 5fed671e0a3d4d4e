"""Pictures of forecasts, each drawn from given arrays; every axis has a name and a unit."""

import io
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # noqa: E402

from utils.training.checkpoint import write_atomically  # noqa: E402

INK, BLUE, ORANGE = "#222222", "#2166ac", "#d95f02"  # told apart by the colour-blind and in grey print
LOOKS = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (INK, ":", "^"))  # colour, line and marker of what is compared
MAP_COLORS, SIGNED_COLORS = (matplotlib.colormaps[name].with_extremes(bad="0.75")  # grey: no value
                             for name in ("cividis", "PuOr_r"))


def fan_chart(axes, times: np.ndarray, history: np.ndarray, truth: np.ndarray, members: np.ndarray) -> None:
    """Draw one node: history, observations, and the ensemble as median, 50 % and 90 % bands.

    Shapes: times (H + F,), history (H,), truth (F,), members (member, F). Units: physical.
    """
    past, future = times[:len(history)], times[len(history):]
    low, quarter, median, upper, high = np.quantile(members, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    axes.fill_between(future, low, high, color=BLUE, alpha=0.2, linewidth=0, label="90 % of members")
    axes.fill_between(future, quarter, upper, color=BLUE, alpha=0.35, linewidth=0, label="50 % of members")
    axes.plot(future, median, color=BLUE, label="median")
    seen = np.concatenate([history, truth])
    dots = "." if np.isnan(seen).any() else None  # else a value between two missing ones would not be seen
    axes.plot(past, history, color=INK, marker=dots, label="history")
    axes.plot(times[len(past) - 1:], seen[len(past) - 1:], color=ORANGE, linestyle="--", marker=dots, label="observed")
    locator = AutoDateLocator(minticks=2, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def draw_forecast(sample, data, path: Path, nodes: int = 4) -> None:
    """Draw the ensemble of the middle test window at the busiest nodes (highest mean of its history) as fan charts.

    sample(batch) -> members (batch, member, horizon, node), standardized.
    """
    middle = data.starts["test"][len(data.starts["test"]) // 2]
    busiest = data.batch(middle.reshape(1)).context.history[0].mean(0).argsort(descending=True)[:nodes].tolist()
    write_figure(fan_charts(**forecast_window(sample, data, middle, busiest), unit=data.field.spec.unit), path)


def forecast_window(sample, data, start: torch.Tensor, nodes: list[int] | np.ndarray) -> dict:
    """What is drawn of the window that begins at `start`: times, history, truth, members and names of some nodes.

    The arguments of `fan_charts`, in physical units, NaN where a value is missing; sample: see `draw_forecast`.
    """
    batch, first = data.batch(start.reshape(1)), int(start)
    drawn = {"history": data.field.values[first:first + data.history_len].double(), "truth": batch.truth[0],
             "members": data.scaler.physical(sample(batch))[0]}
    return {"times": data.local_times(first), "names": [data.field.node_names[node] for node in nodes]} | {
        name: values.cpu().numpy()[..., nodes] for name, values in drawn.items()}


def fan_charts(times: np.ndarray, history: np.ndarray, truth: np.ndarray, members: np.ndarray, names: list[str],
               unit: str) -> plt.Figure:
    """One window at some nodes as fan charts: the arguments of `fan_chart` with a last axis of nodes."""
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(5 * columns, 2.8 * rows), squeeze=False, layout="constrained")
    for node, (axes, name) in enumerate(zip(grid.flat, names, strict=False)):
        fan_chart(axes, times, history[:, node], truth[:, node], members[:, :, node])
        axes.set_title(name, fontsize=10)
    for axes in grid.flat[len(names):]:
        axes.set_visible(False)
    figure.supylabel(unit, fontsize=10)
    figure.supxlabel("time", fontsize=10)
    return _with_legend_above(figure)


def _with_legend_above(figure: plt.Figure) -> plt.Figure:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9)
    return figure


def write_figure(figure: plt.Figure, path: Path) -> None:
    """Write a figure in the format that the ending of `path` says, .png or .pdf; it is closed."""
    ending = path.suffix[1:].lower()
    write_atomically(path, lambda file: file.write(picture_files(figure, ending)[ending]))


def picture_files(figure: plt.Figure, *endings: str) -> dict[str, bytes]:
    """A figure as PNG and PDF, or one of them, the same bytes each time, by the ending; the figure is closed."""
    for text in figure.findobj(matplotlib.text.Text):
        text.set_parse_math(False)  # names and units are the user's: a dollar sign begins no formula
    for legend in figure.findobj(matplotlib.legend.Legend):
        legend.set_frame_on(False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not for each format
    files = {}
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        for ending in endings or ("png", "pdf"):
            file = io.BytesIO()
            figure.savefig(file, format=ending, dpi=130, metadata={"CreationDate": None} if ending == "pdf" else {})
            files[ending] = file.getvalue()
    plt.close(figure)
    return files


def maps(rows: list[dict[str, np.ndarray]], unit: str, places=None, differences: bool = False) -> plt.Figure:
    """Values of every node, as points or as images of a grid, NaN in grey; the layers of a row share their colours.

    differences: the last row has some, of both signs.
    Shapes: rows of equally many layers, (node,) each, with places (2, node), latitudes and longitudes in degrees; or
    (row, column), with places where they are known: the latitudes of the rows and the longitudes of the columns.
    """
    columns = len(rows[0])
    figure, panels = plt.subplots(len(rows), columns, figsize=(3 * columns, 2.5 * len(rows)), sharex=True, sharey=True,
                                  squeeze=False, layout="constrained")
    for line, layers in zip(panels, rows, strict=True):
        values = np.stack([*layers.values()])
        low, high, colors = np.nanmin(values), np.nanmax(values), MAP_COLORS
        if differences and layers is rows[-1]:
            low, high, colors = -max(-low, high), max(-low, high), SIGNED_COLORS
        for panel, (name, layer) in zip(line, layers.items(), strict=True):
            drawn = _map(panel, layer, places, cmap=colors, vmin=low, vmax=high)
            panel.set_title(name, fontsize=10)
        figure.colorbar(drawn, ax=line, label=unit)
    across, along = ("column (grid steps)", "row (grid steps)") if places is None else (
        "longitude (degrees)", "latitude (degrees)")
    figure.supxlabel(across, fontsize=10)
    figure.supylabel(along, fontsize=10)
    return figure


def _map(panel, values: np.ndarray, places, **look):
    if values.ndim == 1:
        return panel.scatter(places[1], places[0], c=values, s=12, rasterized=True, **look)
    if places is not None:
        return panel.pcolormesh(places[1], places[0], np.ma.masked_invalid(values), rasterized=True, **look)
    panel.yaxis.set_inverted(True)  # the first row on top, as in a print of the array
    return panel.pcolormesh(np.ma.masked_invalid(values), rasterized=True, **look)


def event_reliability(event: dict[str, list[float]]) -> plt.Figure:
    """Share of events against their probability (`reliability` of the scores); larger points hold more targets."""
    targets = np.array(event["targets"])
    return _beside_diagonal(event["probability"], event["event_rate"], "probability of the event (share of members)",
                            "events (share)", 1, 8 + 120 * np.sqrt(targets / targets.max()))


def spread_against_skill(spread: np.ndarray, error: np.ndarray, unit: str) -> plt.Figure:
    """Error of the mean in groups of targets with about the same spread of the members: (group,) each, physical."""
    return _beside_diagonal(spread, error, f"spread of the members ({unit})", f"RMSE of their mean ({unit})",
                            1.05 * max(spread.max(), error.max(), np.finfo(np.float32).tiny))


def _beside_diagonal(x, y, xlabel: str, ylabel: str, high: float, sizes: np.ndarray | float = 16) -> plt.Figure:
    """A line, beside the diagonal that a calibrated ensemble has; both axes from 0 to `high`."""
    figure, axes = plt.subplots(figsize=(4.2, 4), layout="constrained")
    axes.plot([0, high], [0, high], color=INK, linestyle=":", label="calibrated")
    axes.plot(x, y, color=BLUE, label="forecast")
    axes.scatter(x, y, sizes, color=BLUE)
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, high), ylim=(0, high), aspect="equal")
    axes.legend()
    return figure


def pit_histogram(forecasts: dict[str, np.ndarray], of: str = "") -> plt.Figure:
    """Shares (bin,) of observations in bins of equal probability, by name; a calibrated ensemble fills all alike."""
    figure, axes = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    for (name, shares), (color, style, _) in zip(forecasts.items(), LOOKS, strict=False):
        axes.stairs(shares, np.linspace(0, 1, len(shares) + 1), color=color, linestyle=style, linewidth=1.5, label=name)
    axes.axhline(1 / len(shares), color=INK, linestyle=":", label="calibrated")
    axes.set(xlabel=f"PIT{of} (share of members below)", ylabel="observations (share)", xlim=(0, 1), ylim=(0, None))
    axes.legend()
    return figure


def scores_by_horizon(forecasts: dict[str, dict], scores: dict[str, str], step: str) -> plt.Figure:
    """Scores of several forecasts along the horizon, a panel for each score.

    forecasts: `per_horizon` by name; scores: their units, by name; step: of the horizon, as "1 hour".
    """
    figure, panels = _panels(len(scores), 3.7, 3.3)
    for axes, (score, unit) in zip(panels, scores.items(), strict=True):
        lines = {name: values[score] for name, values in forecasts.items()}
        _curves(axes, 1 + np.arange(max(map(len, lines.values()))), lines)
        axes.set(xlabel=f"horizon (steps of {step})", ylabel=f"{score} ({unit})")
        axes.xaxis.get_major_locator().set_params(integer=True)
    return _with_legend_above(figure)


def training_curves(stages: dict[str, list[dict]]) -> plt.Figure:
    """Training and validation loss of each epoch, a panel for each stage, from the lines of its `log.jsonl`."""
    figure, panels = _panels(len(stages), 4.6, 3.2)
    for axes, (stage, lines) in zip(panels, stages.items(), strict=True):
        _curves(axes, [line["epoch"] for line in lines],
                {name: [line[f"{name}_loss"] for line in lines] for name in ("validation", "training")})
        axes.set(xlabel="epoch (passes over the training windows)", ylabel="loss (standardized)", title=stage)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return figure


def _panels(count: int, width: float, height: float) -> tuple[plt.Figure, np.ndarray]:
    figure, panels = plt.subplots(1, count, figsize=(width * count, height), squeeze=False, layout="constrained")
    return figure, panels[0]


def _curves(axes, x, lines: dict[str, list[float | None]]) -> None:
    """Draw values at x by name; one that does not exist leaves a gap."""
    for (name, y), (color, style, marker) in zip(lines.items(), cycle(LOOKS)):
        axes.plot(x, np.array(y, dtype=float), color=color, linestyle=style, marker=marker, markersize=3.5, label=name)


def correlation_curve(curve: dict) -> plt.Figure:
    """Correlation between nodes against distance, see `joint.correlation_curve`; without, observed against forecast."""
    figure, axes = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
    axes.axhline(0, color=INK, linewidth=0.6)
    if curve["distance"]:
        _curves(axes, curve["distance"], {name: curve[name] for name in ("forecast", "observed", "control")})
        axes.set(xlabel=f"distance between nodes ({curve['unit']})", ylabel="correlation (no unit)")
    else:
        axes.axline((0, 0), slope=1, color=INK, linestyle=":", label="right dependence")
        axes.plot(curve["forecast"], curve["observed"], color=BLUE, marker="o", markersize=4, label="pairs of nodes")
        axes.set(xlabel="correlation of the members (no unit)", ylabel="correlation observed (no unit)")
    axes.legend()
    return figure


def draw_field(values: np.ndarray, times: np.ndarray, unit: str, path: Path, most: int = 1000) -> None:
    """Draw a field: median and range of its nodes over time, and every node as a row.

    Shapes: values (time, node), NaN where missing; times (time,). At most about `most` steps and nodes are drawn.
    """
    steps = slice(None, None, -(-len(values) // most))
    nodes = slice(None, None, -(-values.shape[1] // most))
    seen, when = np.ma.masked_invalid(values[steps]), times[steps]
    low, middle, high = pd.DataFrame(values[steps]).quantile([0.05, 0.5, 0.95], axis=1).to_numpy()
    figure, (over_time, image) = plt.subplots(2, 1, figsize=(9, 6), layout="constrained")
    over_time.fill_between(when, low, high, color=BLUE, alpha=0.25, linewidth=0, label="90 % of nodes")
    over_time.plot(when, middle, color=INK, linewidth=0.8, label="median of nodes")
    over_time.set(xlabel="time", ylabel=unit)
    over_time.legend(fontsize=9)
    drawn = image.pcolormesh(when, np.arange(values.shape[1])[nodes], seen[:, nodes].T, cmap=MAP_COLORS,
                             shading="nearest", rasterized=True)
    image.set(xlabel="time", ylabel="node (number)")
    figure.colorbar(drawn, ax=image, label=unit)
    write_figure(figure, path)
