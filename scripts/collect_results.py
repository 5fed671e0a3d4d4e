"""Collect the scores of finished stage-2 runs into the tables of docs/results and the README.

    python -m scripts.collect_results [--save_dir save] [--run_name NAME]

Writes docs/results/12_12.csv (one row per run, every score), docs/results/12_12.md (ours beside every published
row) and the table between the `results` marks of README.md. No number in them is typed by hand; those of other papers
come from docs/results/published_12_12.csv.
"""

from pathlib import Path

import pandas as pd

from utils.checkpoint import CONFIG, METRICS, read_json, write_atomically
from utils.config import FlagParser, run_main

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
SCORES = ("CRPS", "QICE", "IS", "MAE", "RMSE")
BEGIN, END = "<!-- results: written by scripts/collect_results.py -->\n", "<!-- end of results -->"


def read_runs(save_dir: Path, run_name: str) -> pd.DataFrame:
    """One row per finished 12 -> 12 run on the whole test split: what metrics.json says, without nested values."""
    rows = []
    for path in sorted(save_dir.glob(f"diffusion/*/{METRICS}")):
        metrics, config = read_json(path), read_json(path.parent / CONFIG)["config"]
        if (metrics["history_len"], metrics["predict_len"]) != (12, 12) or config["test_windows"]:
            continue
        if config["run_name"] != run_name:
            continue
        stage_1 = read_json(save_dir / "mean" / Path(metrics["mean_run"]).name / METRICS)
        row = {name: value for name, value in metrics.items() if not isinstance(value, dict | list)}
        row["minutes_stage_1"] = stage_1["seconds_train"] / 60
        row["minutes_stage_2"] = metrics["seconds_train"] / 60
        row["minutes_forecasting"] = metrics["seconds_sample"] / 60
        rows.append(row)
    if not rows:
        raise ValueError(f"--save_dir {save_dir}: no finished 12 -> 12 run on a whole test split with --run_name "
                         f"{run_name or '(none)'}; run scripts/SST.sh, ... first")
    return pd.DataFrame(rows).drop(columns=["mean_run", "seconds_train", "seconds_sample"])


def number(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.2f}"


def beside(ours: float, published: float | None) -> str:
    """Our score, bold where it is the lower one, and the published one in brackets."""
    if published is None:
        return number(ours)
    return f"{f'**{number(ours)}**' if ours < published else number(ours)} ({published:g})"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summary(runs: pd.DataFrame, published: pd.DataFrame) -> str:
    """The README's table: each run beside the paper's row, and how it was made."""
    rows = []
    for _, run in runs.iterrows():
        paper = published[(published.data_name == run.data_name) & (published.method == "CoST")]
        theirs = paper.iloc[0] if len(paper) else None
        minutes = run.minutes_stage_1 + run.minutes_stage_2 + run.minutes_forecasting
        rows.append([
            run.data_name,
            *(beside(run[name], theirs[name] if theirs is not None else None) for name in SCORES),
            number(run.CRPS_sum), f"{run.coverage90:.3f}", f"{run.windows}", f"{run.seed}",
            f"{run.sampler}, {run.steps} steps, {run.precision}", f"{minutes:.0f}",
        ])
    head = ["dataset", *SCORES, "CRPS_sum", "coverage 90", "test windows", "seed", "sampler",
            "minutes"]
    return markdown(head, rows)


def full_table(runs: pd.DataFrame, published: pd.DataFrame) -> str:
    """Every published row of the datasets that were run, then ours, one table per dataset."""
    parts = ["# 12 -> 12: our runs beside the published rows\n\nWritten by `python -m scripts.collect_results`. "
             "Published: single seed, from the tables of arXiv:2502.11013, as printed there. Ours: every test window, "
             f"{', '.join(map(str, sorted(set(runs.members))))} members.\n"]
    for name, group in runs.groupby("data_name", sort=False):
        rows = [[f"{row.method}, published", *(f"{row[score]:g}" for score in SCORES), "", ""]
                for _, row in published[published.data_name == name].iterrows()]
        rows += [[f"**ours**, seed {run.seed}, {run.sampler} {run.steps}", *(number(run[score]) for score in SCORES),
                  number(run.CRPS_fair), number(run.CRPS_sum)] for _, run in group.iterrows()]
        parts.append(f"\n## {name}\n\n" + markdown(["method", *SCORES, "CRPS_fair", "CRPS_sum"], rows))
    return "".join(parts)


def replace_between_marks(text: str, table: str) -> str:
    before, found, rest = text.partition(BEGIN)
    after = rest.partition(END)
    if not found or not after[1]:
        raise ValueError("README.md: the marks of the results table are missing")
    return before + BEGIN + "\n" + table + "\n" + END + after[2]


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--save_dir", type=Path, default=ROOT / "save")
    parser.add_argument("--run_name", default="", help="only runs with this --run_name")
    given = parser.parse_args(arguments)
    runs, published = read_runs(given.save_dir, given.run_name), pd.read_csv(RESULTS / "published_12_12.csv")
    readme = ROOT / "README.md"
    text = replace_between_marks(readme.read_text(), summary(runs, published))
    write_text(RESULTS / "12_12.csv", runs.to_csv(index=False, float_format="%.6g"))
    write_text(RESULTS / "12_12.md", full_table(runs, published))
    write_text(readme, text)
    print(f"{len(runs)} runs in docs/results/12_12.csv, docs/results/12_12.md and README.md")
    return 0


if __name__ == "__main__":
    run_main(main)
