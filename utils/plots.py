"""Pictures of forecasts; every axis has a name and a unit."""

from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # noqa: E402

INK, BLUE, ORANGE = "#222222", "#2166ac", "#d95f02"  # told apart by the colour-blind and in grey print


def fan_chart(axes, times: np.ndarray, history: np.ndarray, truth: np.ndarray, members: np.ndarray) -> None:
    """Draw one node: history, what came, and the ensemble as median, 50 % and 90 % bands.

    Shapes: times (H + F,), history (H,), truth (F,), members (member, F). Units: physical.
    """
    past, future = times[:len(history)], times[len(history):]
    low, quarter, median, upper, high = np.quantile(members, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    axes.fill_between(future, low, high, color=BLUE, alpha=0.2, linewidth=0, label="90 % of members")
    axes.fill_between(future, quarter, upper, color=BLUE, alpha=0.35, linewidth=0, label="50 % of members")
    axes.plot(future, median, color=BLUE, label="median")
    axes.plot(past, history, color=INK, label="history")
    axes.plot(np.concatenate([past[-1:], future]), np.concatenate([history[-1:], truth]), color=ORANGE,
              linestyle="--", label="observed")
    locator = AutoDateLocator(maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def draw_forecast(draw, data, path: Path, nodes: int = 4) -> None:
    """Draw the ensemble of the middle test window at the busiest nodes (highest mean of its history) as fan charts.

    draw(batch) -> members (batch, member, horizon, node), standardized.
    """
    middle = data.starts["test"][len(data.starts["test"]) // 2]
    batch = data.batch(middle.reshape(1))
    physical = data.scaler.physical
    members, history, future = (physical(values)[0].float().cpu().numpy()
                                for values in (draw(batch), batch.history, batch.future))
    busiest = torch.as_tensor(history.mean(0)).argsort(descending=True)[:nodes].tolist()
    times = data.times(int(middle))
    columns = min(2, len(busiest))
    rows = -(-len(busiest) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(5 * columns, 2.8 * rows), squeeze=False, layout="constrained")
    for axes, node in zip(grid.flat, busiest, strict=False):
        fan_chart(axes, times, history[:, node], future[:, node], members[:, :, node])
        axes.set_title(data.field.node_names[node], fontsize=10)
    for axes in grid.flat[len(busiest):]:
        axes.set_visible(False)
    figure.supylabel(data.field.spec.unit, fontsize=10)
    figure.supxlabel("time", fontsize=10)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_field(values: np.ndarray, times: np.ndarray, periods: np.ndarray, shares: np.ndarray, step: str, unit: str,
               path: Path, most: int = 1000) -> None:
    """Draw a whole field: how its nodes lie over time, every node as a row (missing values grey), and its periods.

    Shapes: values (time, node), NaN where missing; times (time,); periods in steps of length `step` and their shares
    of the variance (line,). At most about `most` steps and nodes are drawn, evenly spread.
    """
    steps = slice(None, None, -(-len(values) // most))
    nodes = slice(None, None, -(-values.shape[1] // most))
    seen, when = np.ma.masked_invalid(values[steps]), times[steps]
    some = seen.count(axis=1) > 0  # a step may have no value at all
    low, middle, high = (np.full(len(seen), np.nan) for _ in range(3))
    low[some], middle[some], high[some] = np.nanquantile(values[steps][some], (0.05, 0.5, 0.95), axis=1)
    figure, (over_time, image, spectrum) = plt.subplots(3, 1, figsize=(9, 9), layout="constrained")
    over_time.fill_between(when, low, high, color=BLUE, alpha=0.25, linewidth=0, label="90 % of nodes")
    over_time.plot(when, middle, color=INK, linewidth=0.8, label="median of nodes")
    over_time.set_xlabel("time")
    over_time.set_ylabel(unit)
    over_time.legend(frameon=False, fontsize=9)
    colors = plt.get_cmap("cividis").with_extremes(bad="0.75")
    drawn = image.pcolormesh(when, np.arange(values.shape[1])[nodes], seen[:, nodes].T, cmap=colors, shading="nearest",
                             rasterized=True)
    image.set_xlabel("time")
    image.set_ylabel("node (number)")
    figure.colorbar(drawn, ax=image, label=unit)
    spectrum.semilogx(periods, 100 * shares, color=INK, linewidth=0.8)
    spectrum.set_xlabel(f"period (steps of {step})")
    spectrum.set_ylabel("share of the variance\nof the node mean (%)")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_sampler_curves(rows: list[dict], members: int, path: Path) -> None:
    """Draw CRPS and CRPS_sum against the milliseconds of a forecast: a line per sampler, dashed in bfloat16.

    rows: sampler, steps (written beside the points), precision, CRPS, CRPS_sum, milliseconds; in order of steps.
    """
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))
    looks = dict(zip(samplers, zip(cycle((BLUE, ORANGE, INK)), cycle("os^D")), strict=False))
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axes, score, whole in zip(panels, ("CRPS", "CRPS_sum"), ("truth", "sum over nodes"), strict=True):
        for name, (color, marker) in looks.items():
            for precision, style in (("float32", "-"), ("bfloat16", "--")):
                line = [row for row in rows if (row["sampler"], row["precision"]) == (name, precision)]
                axes.plot([row["milliseconds"] for row in line], [row[score] for row in line], style, color=color,
                          marker=marker, markersize=4, label=f"{name}, {precision}")
                for row in line:
                    axes.annotate(str(row["steps"]), (row["milliseconds"], row[score]), xytext=(2, 3),
                                  textcoords="offset points", fontsize=7, color=color)
        axes.set_xscale("log")
        axes.set_xlabel(f"milliseconds of a forecast ({members} members of one window)")
        axes.set_ylabel(f"{score} (unit: mean |{whole}|)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(samplers), fontsize=9, frameon=False,
                  title="steps are written beside the points", title_fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)
