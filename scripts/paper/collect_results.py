"""Collect what the benchmark scored into the tables of docs/results and the README.

    python -m scripts.paper.collect_results [--save_dir save] [--keep]

Writes docs/results/<H>_<F>.csv (one row per run), .md (all rows beside every published one, with paired intervals) and
joint_<H>_<F>.csv and .md; for 12 -> 12 also ablation.md and what stands between the `results` marks of README.md. With
`--keep`, runs that save lacks stay as the .csv has them. Differences of theirs that have an interval stay as printed,
with an asterisk where the other run is new; others, and those of ablation.md, are computed again without an interval.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch

from scripts.paper.benchmark import METHODS
from utils.config import FlagParser, TrainConfig
from utils.output.tables import markdown
from utils.program import run_main
from utils.scores import joint, metrics
from utils.scores.comparison import SCORES as PAIRED
from utils.scores.comparison import in_words, independent_block, paired_difference
from utils.scores.texture import QUARTERS
from utils.training.checkpoint import csv_text, read_json, write_text

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
SCORES = ("CRPS", "QICE", "IS", "MAE", "RMSE")  # those of the published tables
OURS = (*SCORES, "QICE_ties", "PIT_error", *(name for name in metrics.SCORES if name not in SCORES))
COMPARED = ("CRPS", "CRPS_sum", "energy_score", "variogram_score")
JOINT = (*joint.SCORES, "correlation_gap", "autocorrelation_gap", "PIT_error_sum", "PIT_error_regions",
         "PIT_error_neighbourhoods", "PIT_error_max")
DEFAULT = TrainConfig.recipe
DEFAULTS = {"random": DEFAULT, "quantiles": f"{DEFAULT}_smooth"}  # its rows by the kind of their members
GLANCE = ("CRPS", "QICE", "RMSE")  # scores of that table
PAPER = ("CoST", "CSDI", "TimeGrad")  # its rows of the paper
LISTED = (*SCORES, "CRPS_sum")  # in which rows are ahead of the default or not
CHANGES = {name: method.change for name, method in METHODS.items() if method.change}  # of rows of the ablation
STEPS = {name: CHANGES[name] for name in (
    "published", "published_fast", *(name for name in METHODS if name.startswith("step_")), DEFAULT)}
SWITCHES = {name: change for name, change in CHANGES.items() if name not in STEPS} | {DEFAULT: "none"}
ABLATION = CHANGES.keys() - {"published", "published_fast", "cost_untrained", DEFAULT}  # rows of no other table
ABLATION_SCORES = ("CRPS", "CRPS_sum", "energy_score", "QICE_ties", "coverage90")
RIVALS = [*(name for name, method in METHODS.items() if method.baseline),
          "published", "published_fast", "copula", "copula_smooth"]  # rows that are not ours, and the third recipe
BEGIN, END = "<!-- results: written by scripts/paper/collect_results.py -->\n", "<!-- end of results -->"
WRITTEN = "Written by `python -m scripts.paper.collect_results`."
INTERVALS = ("a paired 95 % interval (none where the windows are worth fewer than 8 independent ones), seeds averaged: "
             "negative is better")
Table = tuple[list[str], list[list[str]]]  # names of the columns, rows


def read_runs(folder: Path) -> pd.DataFrame:
    """One row per run that was scored on a whole split, without nested values, with the path of its windows."""
    rows = []
    for path in sorted(folder.glob("*/*.json")):
        scores = read_json(path)
        if not scores["test_windows"]:
            row = {name: value for name, value in scores.items() if not isinstance(value, dict | list)}
            row["minutes_forecasting"] = row.pop("seconds_sample") / 60
            rows.append({**row, "path": path.with_suffix(".csv")})
    if not rows:
        raise ValueError(f"{folder}: no scored run; run python -m scripts.paper.benchmark first")
    runs = pd.DataFrame(rows)
    return in_order(runs.reindex(columns=runs.columns.union(OURS, sort=False)))  # NaN where a run is older than a score


def read_joint(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per run whose .json has joint scores: JOINT, as control_* those of its control, and as texture_*."""
    rows = []
    for _, run in runs.iterrows():
        if found := read_json(run.path.with_suffix(".json")).get("joint"):
            texture = found.get("texture", {})
            quarters = texture.get("spectrum") or [None] * QUARTERS
            rows.append({
                **run[["data_name", "method", "seed", "windows", "members", "ensemble", "CRPS", "path"]],
                **{name: found.get(name) for name in JOINT},
                **{f"control_{name}": found["control"].get(name) for name in JOINT},
                **{f"texture_{name}": texture.get(name) for name in ("near", "step", "AUC")},
                **{f"texture_quarter_{number}": share for number, share in enumerate(quarters, 1)},
            })
    return pd.DataFrame(rows)


def with_kept(runs: pd.DataFrame, page: str) -> tuple[pd.DataFrame, dict]:
    """The runs and those that a page of docs/results alone has, without paths of windows; its `printed_differences`."""
    key = ["data_name", "method", "seed"]
    if not (RESULTS / f"{page}.csv").exists():
        return runs, {}
    kept = pd.read_csv(RESULTS / f"{page}.csv").assign(path=None)
    kept = kept[~kept.set_index(key).index.isin(runs.set_index(key).index)]
    columns = [*kept, *runs.columns.difference(kept.columns, sort=False)]
    both = pd.concat([kept.dropna(axis=1, how="all"), runs]).reindex(columns=columns)
    return in_order(both), printed_differences(page)


def in_order(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs by dataset, place of the method in the tables, and seed."""
    order = {name: place for place, name in enumerate(METHODS)}
    return runs.sort_values(["data_name", "method", "seed"], ignore_index=True,
                            key=lambda column: column.map(order) if column.name == "method" else column)


def printed_differences(page: str) -> dict[tuple[str, str, str], list[str]]:
    """The differences that a page of docs/results shows, by dataset, method and kind of members."""
    found, data_name, inside = {}, "", False
    for line in (RESULTS / f"{page}.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        data_name = line.removeprefix("## ") if line.startswith("## ") else data_name
        inside = line.startswith("|") and (inside or cells[0] == f"{DEFAULT} against")
        if inside:
            found[data_name, *cells[:2]] = cells[2:]
    return found


def read_published(lengths: tuple[int, int], suffix: str = "") -> pd.DataFrame:
    """The published rows of a task, with a suffix to their names."""
    path = RESULTS / "published_{}_{}.csv".format(*lengths)
    found = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["data_name", "method", *SCORES])
    return found.assign(method=found.method + suffix, ensemble="random")


def minutes(runs: pd.DataFrame) -> str:
    """Minutes of both stages and the forecast, mean over the runs on a CPU, "" where there is none."""
    parts = runs[runs.device == "cpu"].filter(regex="^minutes")
    return f"{parts.sum(axis=1).mean():.1f}" if len(parts) else ""


def number(value: float) -> str:
    """Four decimals below 1, two above; significant digits of what is very small or large."""
    if pd.isna(value):
        return ""
    if 1e-3 <= abs(value) < 1 or value == 0:
        return f"{value:.4f}"
    return f"{value:.2f}" if 1 <= abs(value) < 1e6 else f"{value:.2g}"


def mean_and_spread(values: pd.Series) -> str:
    """Mean over seeds, and their standard deviation where there are several."""
    text = number(values.mean())
    return f"{text} ± {values.std():.1g}" if len(values) > 1 and text else text


def by_method(runs: pd.DataFrame):
    """The runs of each method and kind of members."""
    return runs.groupby(["method", "ensemble"], sort=False)


def method_rows(runs: pd.DataFrame, names: Iterable[str]) -> list[list[str]]:
    """One row per method and kind of members: mean and spread of each score, number of seeds."""
    return [[*key, *(mean_and_spread(group[name]) for name in names), str(len(group))]
            for key, group in by_method(runs)]


def best_in_bold(rows: list[list[str]], means: pd.DataFrame) -> None:
    """Mark the smallest value of each score, and those that equal it but for rounding; coverage has no smallest."""
    for column, name in enumerate(means, 2):
        if name != "coverage90":
            for place in (means[name] <= means[name].min() * (1 + 1e-6)).to_numpy().nonzero()[0]:
                rows[place][column] = f"**{rows[place][column]}**"


@functools.cache
def windows_of(path: Path) -> dict[str, torch.Tensor]:
    """The scores of every window of a run; those of the default are compared with many."""
    return {name: torch.tensor(column.to_numpy()) for name, column in pd.read_csv(path).items()}


def compared(ours: pd.DataFrame, theirs: pd.DataFrame, scores: Sequence[str], length: int) -> list[str]:
    """Relative differences on windows of `length` steps with intervals, "" where a run or score is missing.

    Without an interval where a run was kept: its windows are not there.
    """
    if not len(ours) or not len(theirs):
        return [""] * len(scores)
    if pd.concat([ours, theirs]).path.isna().any():
        relative = ours[[*scores]].mean() / theirs[[*scores]].mean() - 1
        return [in_words({"relative": relative[score], "lower": None}) if pd.notna(relative[score]) else ""
                for score in scores]
    ours, theirs = ([windows_of(path) for path in runs.path] for runs in (ours, theirs))
    block = independent_block(ours[0]["start"], length)
    return [in_words(paired_difference(ours, theirs, score, block))
            if all(run.keys() >= {*PAIRED[score]} for run in ours + theirs) else "" for score in scores]


def score_table(runs: pd.DataFrame, published: pd.DataFrame) -> Table:
    """All methods: published rows, then ours, one row per method and kind of members."""
    rows = [[row.method, row.ensemble, *(f"{row[score]:g}" if score in SCORES else "" for score in OURS), "", ""]
            for _, row in published.iterrows()]
    rows += [[*row, minutes(group)] for row, (_, group) in zip(method_rows(runs, OURS), by_method(runs), strict=True)]
    best_in_bold(rows, pd.concat([published.reindex(columns=OURS), by_method(runs)[list(OURS)].mean()]))
    return ["method", "members", *OURS, "seeds", "minutes"], rows


def joint_table(runs: pd.DataFrame) -> Table:
    """All methods: CRPS, and every joint score with that of the control in brackets."""
    names = ["CRPS", *(name for name in JOINT if runs[name].notna().any())]
    rows = method_rows(runs, names)
    best_in_bold(rows, by_method(runs)[names].mean())
    for row, (_, group) in zip(rows, by_method(runs), strict=True):
        for column, name in enumerate(names[1:], 3):
            row[column] += f" ({number(group[f'control_{name}'].mean())})"
    return ["method", "members", *names, "seeds"], rows


def texture_table(runs: pd.DataFrame) -> Table:
    """All methods whose members' texture was compared with that of the errors, means over seeds."""
    names = [name for name in runs if name.startswith("texture_") and runs[name].notna().any()]
    head = ["method", "members", *(name.removeprefix("texture_").replace("_", " ") for name in names), "seeds"]
    return head, (method_rows(runs.dropna(subset=names), names) if names else [])


def differences(runs: pd.DataFrame, length: int, scores: Sequence[str] = COMPARED, printed=None) -> Table:
    """The default against every other method, ensembles of one kind: relative differences with intervals.

    printed: see `printed_differences`, for runs whose windows are not there.
    """
    groups, rows = dict(list(by_method(runs))), []
    for (name, kind), theirs in groups.items():
        if (ours := (DEFAULTS[kind], kind)) not in groups or name in DEFAULTS.values():
            continue
        absent = pd.concat([groups[ours], theirs]).path.isna()
        found = (printed or {}).get((runs.data_name.iloc[0], name, kind), [""] * len(scores))
        if not absent.all():
            kept = absent.any() and any("[" in text for text in found)
            found = ([text and f"{text.removesuffix(' *')} *" for text in found] if kept
                     else compared(groups[ours], theirs, scores, length))
        rows.append([name, kind, *found])
    return [f"{DEFAULT} against", "members", *scores], rows


def ablation_table(runs: pd.DataFrame, changes: dict[str, str], length: int) -> Table:
    """Some rows of the ablation, each with its difference to the default over the seeds that both have."""
    rows, ours = [], runs[runs.method == DEFAULT]
    for name, change in changes.items():
        group = runs[runs.method == name]
        if len(group):
            both = set(group.seed) & set(ours.seed) if name != DEFAULT else ()
            against = compared(*(each[each.seed.isin(both)] for each in (group, ours)), ["CRPS"], length)
            rows.append([name, change, *(mean_and_spread(group[score]) for score in ABLATION_SCORES),
                         *against, str(len(group))])
    return ["row", "change", *ABLATION_SCORES, f"CRPS against {DEFAULT}", "seeds"], rows


def sections(runs: pd.DataFrame, tables: Callable[[pd.DataFrame], Iterable[str]]) -> str:
    """A section for each dataset with the `tables(its runs)`, one below the other."""
    return "".join(f"\n## {data_name}\n\n{group.windows.max()} test windows\n\n" + "\n".join(tables(group))
                   for data_name, group in runs.groupby("data_name", sort=False))


def commits(runs: pd.DataFrame) -> Iterable[str]:
    """Which commit made which rows, in a line, if they say it."""
    if "version" in runs:
        methods = runs.groupby("version", sort=False).method.unique()
        yield " ".join(f"By `{version}`: {', '.join(names)}." for version, names in methods.items()) + "\n"


def write_page(name: str, runs: pd.DataFrame, text: str, tables: Callable[[pd.DataFrame], Iterable[str]]) -> None:
    """A page of docs/results with the `tables` of each dataset, and all runs of it as .csv."""
    write_text(RESULTS / f"{name}.csv", csv_text(runs.drop(columns="path"), float_format="%.6g"))
    write_text(RESULTS / f"{name}.md", text + sections(runs[~runs.method.isin(ABLATION)], tables))


def write_tables(runs: pd.DataFrame, lengths: tuple[int, int], keep: bool = False) -> pd.DataFrame:
    """The .csv and .md of one task; the runs that they hold."""
    published, page = read_published(lengths, " (published)"), "{}_{}".format(*lengths)
    runs, printed = with_kept(runs, page) if keep else (runs, {})

    def tables(group: pd.DataFrame) -> Iterable[str]:
        yield markdown(*score_table(group, published[published.data_name == group.data_name.iloc[0]]))
        yield markdown(*differences(group, sum(lengths), printed=printed))
        yield from commits(group)

    members = ", ".join(map(str, sorted(set(runs.members))))
    write_page(page, runs, (
        f"# {lengths[0]} -> {lengths[1]}: all rows\n\n{WRITTEN} Published: single seed, from the tables of "
        f"arXiv:2502.11013, as printed there. The others: every test window, {members} members, mean ± standard "
        "deviation over seeds; minutes of network training and test forecast on one CPU core (none: run on a GPU). "
        f"Below each table the relative difference of the default, {DEFAULT}, to every method with {INTERVALS}. Only "
        f"members of one kind are compared: random ones with {DEFAULTS['random']}, equidistant quantiles with "
        f"{DEFAULTS['quantiles']}. QICE counts ties as the papers do, QICE_ties shares them "
        "([scores.md](../scores.md)). [results](README.md#rows) says what each row is.\n"), tables)
    return runs


def write_joint(runs: pd.DataFrame, lengths: tuple[int, int], keep: bool = False) -> None:
    """The joint scores of one task as .csv and .md, where any run has them."""
    if not len(runs := read_joint(runs)):
        return
    page = "joint_{}_{}".format(*lengths)
    runs, printed = with_kept(runs, page) if keep else (runs, {})

    def tables(group: pd.DataFrame) -> Iterable[str]:
        scored = [score for score in joint.SCORES if group[score].notna().any()]
        yield markdown(*joint_table(group))
        yield markdown(*differences(group, sum(lengths), scored, printed))
        if (texture := texture_table(group))[1]:
            yield ("Texture, members / observed: squared difference to four nearest nodes and to the next step, and "
                   "share of the spectrum by quarter, smooth first, each over the variance (1 is right); AUC of a "
                   "classifier that tells members from errors (.5: it cannot).\n")
            yield markdown(*texture)

    write_page(page, runs, (
        f"# {lengths[0]} -> {lengths[1]}: joint scores\n\n{WRITTEN} In brackets the score of the control: the same "
        "members in another order at every node (for increments and autocorrelation: at every step), margins without "
        "dependence. Mean ± standard deviation over seeds; [scores.md](../scores.md) defines the scores, lower is "
        f"better in each. Below each table the relative difference of the default, {DEFAULT}, to every method with "
        f"{INTERVALS}.\n"), tables)


def write_ablation(runs: pd.DataFrame, lengths: tuple[int, int]) -> None:
    """docs/results/ablation.md, where any row of it was run now; random members, as the default has."""
    runs = runs[(runs.ensemble == "random") & runs.method.isin(CHANGES)]
    runs = runs[runs.data_name.isin(runs.data_name[runs.method.isin(ABLATION)])]
    if not runs[runs.method.isin(ABLATION)].path.notna().any():
        return

    def tables(group: pd.DataFrame) -> Iterable[str]:
        yield from (markdown(*ablation_table(group, changes, sum(lengths))) for changes in (STEPS, SWITCHES))
        yield from commits(group)

    write_text(RESULTS / "ablation.md", (
        f"# Ablation, {lengths[0]} -> {lengths[1]}\n\n{WRITTEN} Two tables for each dataset: from the published system "
        f"to the default, {DEFAULT}, one change at a time; then {DEFAULT} with one change alone, by its flags. Random "
        "members, mean ± standard deviation over seeds. The last column but one is the relative difference of a row's "
        f"CRPS to that of {DEFAULT} with a paired 95 % interval, over the seeds that both have: above 0 the row is "
        "worse. No interval is given where the test windows are worth fewer than 8 independent ones, and for rows that "
        "were kept (`--keep`). Rows that were never run are left out; [scores.md](../scores.md) defines the scores, "
        "[results](README.md#rows) the rows.\n") + sections(runs, tables))


def ahead(runs: pd.DataFrame) -> str:
    """The README's table of every row of others, and of the third recipe, that has a better score than the default."""
    found, published = [], read_published((12, 12), " (published)")
    runs = runs[runs.data_name.isin(runs.data_name[runs.method.isin(DEFAULTS.values())])]
    if not len(runs):
        return "The default was not run.\n"
    for data_name, group in runs.groupby("data_name", sort=False):
        rivals = pd.concat([published[published.data_name == data_name], group[group.method.isin(RIVALS)]])
        ours = group[group.method == group.ensemble.map(DEFAULTS)].groupby("ensemble")[list(LISTED)].mean()
        for score, (kind, rows) in itertools.product(LISTED, rivals.groupby("ensemble", sort=False)):
            own = ours[score].get(kind, ours[score].mean())  # or the only kind it has
            values = rows.reindex(columns=["method", score]).groupby("method", sort=False)[score].mean()
            better = [f"{name} {number(value)}" for name, value in values.sort_values(kind="stable").items()
                      if value < own and number(value) != number(own)]
            if better:
                found.append([data_name, score, kind, number(own), ", ".join(better)])
    scores = f"{', '.join(LISTED[:-1])} and {LISTED[-1]}"
    if not found:
        return f"No published and no baseline row is ahead of the default in {scores}.\n"
    return (f"Scores in which another row is ahead of the default, of {scores}. The column `default` has the default "
            "with members of the same kind, if there is such a row. `copula` is the third recipe of this project; "
            "[all rows](docs/results/README.md#rows):\n\n"
            + markdown(["dataset", "score", "members", "default", "ahead of it, the best first"], found))


def summary(runs: pd.DataFrame) -> str:
    """The README's table, by random members: the default beside `published` and the paper's rows."""
    rows, published = [], read_published((12, 12))
    runs, published = runs[runs.ensemble == "random"], published[published.method.isin(PAPER)]
    for data_name, group in runs.groupby("data_name", sort=False):
        ours = group.groupby("method")[list(GLANCE)].mean()
        theirs = published[published.data_name == data_name].set_index("method")
        for score in GLANCE if DEFAULT in ours.index else ():
            found = [(ours[score].get(name), number) for name in (DEFAULT, "published")]
            found += [(theirs[score].get(name), "{:g}".format) for name in PAPER]  # as printed there
            lowest = min(value for value, _ in found if value is not None)
            shown = [(value, "" if value is None else text(value)) for value, text in found]
            rows.append([data_name, score, *(f"**{text}**" if value == lowest else text for value, text in shown)])
    head = ["dataset", "score", "default", "`--recipe published`", *(f"{name}, paper" for name in PAPER)]
    windows = " ".join(f"{data_name}: {count} test windows."
                       for data_name, count in runs.groupby("data_name", sort=False).windows.max().items())
    return f"{markdown(head, rows)}\n{windows}\n"


def replace_between_marks(text: str, table: str) -> str:
    before, _, between = text.partition(BEGIN)
    _, end, after = between.partition(END)
    if not end:
        raise ValueError("README.md: the marks of the results table are missing")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--save_dir", type=Path, default=ROOT / "save")
    parser.add_argument("--keep", action="store_true", default=False, help="keep the rows of docs/results that the "
                        "folder lacks")
    given = parser.parse_args(arguments)
    runs, readme = read_runs(given.save_dir / "benchmark" / "test"), ROOT / "README.md"
    for lengths, group in runs.groupby(["history_len", "predict_len"]):
        written = write_tables(group, lengths, given.keep)
        write_joint(group, lengths, given.keep)
        if lengths == (12, 12):
            write_ablation(written, lengths)
            write_text(readme, replace_between_marks(readme.read_text(), f"{summary(written)}\n{ahead(written)}"))
    print(f"{len(runs)} runs in {RESULTS} and README.md")
    return 0


if __name__ == "__main__":
    run_main(main)
