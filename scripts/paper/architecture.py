"""Draw the two stages and what passes between them: docs/architecture.png, the figure of the README.

    python -m scripts.paper.architecture [--output docs/architecture.png]
"""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from utils.config import FlagParser
from utils.program import run_main

ROOT = Path(__file__).parents[2]
INPUT, STAGE_1, STAGE_2, OUTPUT = "#eeeeee", "#d5e5f5", "#fbe3cc", "#d9ecd3"
LINE = "#444444"
BOXES = [  # left, bottom, width, height, colour, title, text
    (0.0, 3.35, 2.4, 1.1, INPUT, "context", "history, calendar, climatology,\nlags, covariates, missing values"),
    (3.6, 3.35, 2.6, 1.1, STAGE_1, "mean model", "networks and simple forecasters,\nrecalibrated; then frozen"),
    (0.0, 1.55, 2.4, 0.75, INPUT, "future", "observed, in training only"),
    (0.0, 0.35, 2.4, 0.75, OUTPUT, "ensemble", "fields of all nodes and steps"),
    (3.6, 0.35, 2.6, 1.95, STAGE_2, "margin", "future = mean + scale * shape(z)\n\nshape: of the stage-1 quantiles"),
    (7.1, 0.35, 2.3, 1.95, STAGE_2, "noise", "covariance over\nnodes and steps\n\nwhiten, unwhiten"),
    (10.3, 0.35, 2.4, 1.95, STAGE_2, "diffusion", "denoiser: learns to\nremove noise\n\nsampler: draws white"),
]
ARROWS = [  # from, to, label
    ((2.4, 3.9), (3.6, 3.9), ""), ((4.9, 3.35), (4.9, 2.3), "mean, quantiles"),
    ((11.5, 3.9), (11.5, 2.3), ""),
    ((2.4, 1.92), (3.6, 1.92), "training"), ((6.2, 1.92), (7.1, 1.92), "z"), ((9.4, 1.92), (10.3, 1.92), "white"),
    ((10.3, 0.72), (9.4, 0.72), "white"), ((7.1, 0.72), (6.2, 0.72), "z"), ((3.6, 0.72), (2.4, 0.72), "forecast"),
]
STAGES = [(3.05, 1.75, "Stage 1: main_pretrain.py"), (0.05, 2.65, "Stage 2: main_train.py")]  # bottom, height, title


def draw() -> plt.Figure:
    figure, axes = plt.subplots(figsize=(10, 3.8))
    for bottom, height, title in STAGES:
        axes.add_patch(FancyBboxPatch((3.4, bottom), 9.6, height, boxstyle="round,pad=0,rounding_size=0.1",
                                      fill=False, edgecolor="#999999", linestyle="--"))
        axes.text(8.25, bottom + height - 0.1, title, ha="center", va="top", fontsize=9, color=LINE)
    for left, bottom, width, height, colour, title, text in BOXES:
        axes.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.08",
                                      facecolor=colour, edgecolor=LINE, linewidth=0.8))
        axes.text(left + width / 2, bottom + height - 0.1, title, ha="center", va="top", weight="bold", fontsize=10)
        axes.text(left + width / 2, bottom + (height - 0.3) / 2, text, ha="center", va="center", fontsize=8)
    axes.plot([6.2, 11.5], [3.9, 3.9], color=LINE, linewidth=1.2)
    axes.text(8.85, 3.95, "context, mean, fluctuation scale", ha="center", va="bottom", fontsize=8, style="italic")
    for start, end, label in ARROWS:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": LINE, "shrinkA": 0, "shrinkB": 0})
        upright = start[0] == end[0]
        place = (start[0] + 0.1, 2.88) if upright else ((start[0] + end[0]) / 2, start[1] + 0.05)
        axes.text(*place, label, fontsize=8, style="italic", ha="left" if upright else "center",
                  va="center" if upright else "bottom")
    axes.set(xlim=(-0.1, 13.1), ylim=(-0.05, 4.9))
    axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    return figure


def main(argv=None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs/architecture.png", help="where the picture goes")
    draw().savefig(parser.parse_args(argv).output, dpi=130)
    return 0


if __name__ == "__main__":
    run_main(main)
