"""Collect what the benchmark scored into the tables of docs/results and the README.

    python -m scripts.paper.collect_results [--save_dir save]

Writes, for 12 -> 12 and whatever other lengths were run, docs/results/<H>_<F>.csv (one row per run, every score), .md
(all rows beside every published one, with paired intervals), and joint_<H>_<F>.csv and .md, the scores that see how
nodes and steps go together; docs/results/ablation.md, of 12 -> 12; and what stands between the `results` marks of
README.md: the table of 12 -> 12, and where published and simple rows are ahead of the default, from the .csv files of
12 -> 12 and 64 -> 64. No number in them is typed by hand; those of other papers come from
docs/results/published_<H>_<F>.csv.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from scripts.paper.benchmark import METHODS
from utils.config import FlagParser, TrainConfig
from utils.output.tables import markdown
from utils.program import run_main
from utils.scores.comparison import SCORES as PAIRED
from utils.scores.comparison import in_words, paired_difference
from utils.scores.metrics import perfect_qice
from utils.scores.texture import QUARTERS
from utils.training.checkpoint import csv_text, read_json, write_text

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
SCORES = ("CRPS", "QICE", "IS", "MAE", "RMSE")  # those of the published tables
OURS = (*SCORES, "QICE_ties", "MAE_median", "CRPS_fair", "CRPS_sum", "energy_score", "variogram_score", "coverage90",
        "PIT_error")
COMPARED = ("CRPS", "CRPS_sum", "energy_score", "variogram_score")
JOINT_COMPARED = ("CRPS_sum", "CRPS_regions", "CRPS_neighbourhoods", "CRPS_max", "CRPS_increments", "energy_score",
                  "variogram_score")
JOINT = (*JOINT_COMPARED, "correlation_gap", "autocorrelation_gap", "PIT_error_sum", "PIT_error_regions",
         "PIT_error_neighbourhoods", "PIT_error_max")
DEFAULT = TrainConfig.recipe
DEFAULTS = {"random": DEFAULT, "quantiles": f"{DEFAULT}_smooth"}  # its rows by the kind of their members
SHOWN = {DEFAULT: "", f"{DEFAULT}_lags": ", `--lags auto`"}  # rows of the README's table, what follows the dataset
LISTED = (*SCORES, "CRPS_sum")  # in which rows are ahead of the default or not
LENGTHS = (12, 12), (64, 64)
STEPS = ("published", "published_fast", *(name for name in METHODS if name.startswith("step_")), DEFAULT)
SWITCHES = [name for name, method in METHODS.items() if method.change and name not in STEPS]
ABLATION = {*STEPS, *SWITCHES} - {"published", "published_fast", "cost_untrained", DEFAULT}  # rows of no other table
ABLATION_SCORES = ("CRPS", "CRPS_sum", "energy_score", "QICE_ties", "coverage90")
SIMPLE = [name for name, method in METHODS.items() if method.baseline and not name.startswith("our_")]
OTHERS = [*SIMPLE, "published", "published_fast"]  # rows that are not ours
BEGIN, END = "<!-- results: written by scripts/paper/collect_results.py -->\n", "<!-- end of results -->"


def read_runs(folder: Path) -> pd.DataFrame:
    """One row per scored run on a whole split: what its .json says without nested values, and where its windows are."""
    rows = []
    for path in sorted(folder.glob("*/*.json")):
        scores = read_json(path)
        if scores.get("test_windows"):  # a part of the split
            continue
        row = {name: value for name, value in scores.items() if not isinstance(value, dict | list)}
        row["minutes_forecasting"] = row.pop("seconds_sample") / 60
        rows.append({**row, "path": path.with_suffix(".csv")})
    if not rows:
        raise ValueError(f"{folder}: no scored run; run python -m scripts.paper.benchmark first")
    return with_definitions(pd.DataFrame(rows))


def with_definitions(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with `ensemble`, QICE and QICE_ties; earlier versions called QICE_ties QICE and named no kind of members.

    Their QICE_floor tells the kind. What a run has not is NaN.
    """
    runs = runs.reindex(columns=[*runs, *({*LISTED, "QICE_ties", "ensemble", "members", "QICE_floor"} - {*runs})])
    earlier = runs.QICE_ties.isna()
    runs["QICE_ties"] = runs.QICE_ties.where(~earlier, runs.QICE)
    runs["QICE"] = runs.QICE.where(~earlier)
    equidistant = runs.QICE_floor < perfect_qice(runs.members) * 0.9
    runs["ensemble"] = runs.ensemble.astype(object).where(
        runs.ensemble.notna(), equidistant.map({True: "quantiles", False: "random"}))
    return runs


def in_ladder_order(runs: pd.DataFrame) -> pd.DataFrame:
    place = {name: place for place, name in enumerate(METHODS)}
    return runs.sort_values(["data_name", "method", "seed"], key=lambda column: column.map(place)
                            if column.name == "method" else column, ignore_index=True)


def number(value: float) -> str:
    """Four decimals below 1, two above; significant digits of what is very small or large."""
    if pd.isna(value):
        return ""
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1 or value == 0 else f"{value:.2f}" if 1 <= abs(value) < 1e6 \
        else f"{value:.2g}"


def mean_and_spread(values: pd.Series) -> str:
    """Mean over seeds, and their standard deviation where there are several."""
    text = number(values.mean())
    return f"{text} ± {values.std():.1g}" if len(values) > 1 and text else text


def best_in_bold(frame: pd.DataFrame, rows: list[list[str]], names: tuple[str, ...], first: int) -> None:
    """Mark the smallest value of each score, and those that equal it but for rounding; coverage has no smallest."""
    for column, name in enumerate(names, first):
        if name in frame and name != "coverage90" and frame[name].notna().any():
            for place in (frame[name] <= frame[name].min() * (1 + 1e-6)).to_numpy().nonzero()[0]:
                rows[place][column] = f"**{rows[place][column]}**"


def ladder(runs: pd.DataFrame, published: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """All methods on one dataset: published rows, then ours, one row per method."""
    head = ["method", "members", *OURS, "seeds", "minutes"]
    theirs = [(f"{row.method} (published)", row, ["random", *(f"{row[score]:g}" for score in SCORES)]
               + [""] * (len(head) - len(SCORES) - 2)) for _, row in published.iterrows()]
    ours = []
    for (name, kind), group in runs.groupby(["method", "ensemble"], sort=False):
        minutes = group[[column for column in group if column.startswith("minutes")]].sum(axis=1).mean()
        cells = [kind, *(mean_and_spread(group[score]) for score in OURS), str(len(group)), f"{minutes:.1f}"]
        ours.append((name, group[list(OURS)].mean(), cells))
    rows = [[name, *cells] for name, _, cells in theirs + ours]
    best_in_bold(pd.DataFrame([values for _, values, _ in theirs + ours]).reset_index(drop=True), rows, OURS, 2)
    return head, rows


def read_joint(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per run whose .json has joint scores: JOINT, and as control_* those of its members without dependence."""
    rows = []
    for _, run in runs.iterrows():
        if joint := read_json(run.path.with_suffix(".json")).get("joint"):
            rows.append(run[["data_name", "method", "seed", "windows", "members", "ensemble", "CRPS",
                             "path"]].to_dict())
            rows[-1] |= {name: joint.get(name) for name in JOINT}
            rows[-1] |= {f"control_{name}": joint["control"].get(name) for name in JOINT}
            texture = joint.get("texture", {})
            spectrum = texture.get("spectrum") or [None] * QUARTERS
            rows[-1] |= {f"texture_{name}": texture.get(name) for name in ("near", "step", "AUC")}
            rows[-1] |= {f"texture_quarter_{number}": share for number, share in enumerate(spectrum, 1)}
    return pd.DataFrame(rows)


def texture_table(runs: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """All methods on one dataset whose members' texture was compared with that of the errors, means over seeds."""
    names = [name for name in runs if name.startswith("texture_") and runs[name].notna().any()]
    groups = runs.dropna(subset=names).groupby(["method", "ensemble"], sort=False)
    return (["method", "members", *(name.removeprefix("texture_").replace("_", " ") for name in names), "seeds"],
            [[*method, *(mean_and_spread(group[name]) for name in names), str(len(group))] for method, group in groups]
            if names else [])


def joint_ladder(runs: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """All methods on one dataset: CRPS, and every joint score with that of the control in brackets."""
    names = ["CRPS", *(name for name in JOINT if runs[name].notna().any())]
    groups = dict(list(runs.groupby(["method", "ensemble"], sort=False)))
    rows = [[*method, *(mean_and_spread(group[name]) for name in names), str(len(group))]
            for method, group in groups.items()]
    best_in_bold(pd.DataFrame([group[names].mean() for group in groups.values()]), rows, names, 2)
    for row, group in zip(rows, groups.values(), strict=True):
        for column, name in enumerate(names[1:], 3):
            row[column] += f" ({number(group[f'control_{name}'].mean())})"
    return ["method", "members", *names, "seeds"], rows


def differences(runs: pd.DataFrame, block: int, scores: Sequence[str] = COMPARED) -> tuple[list[str], list[list[str]]]:
    """The default against every other method on one dataset, ensembles of one kind: relative difference, interval."""
    windows = {key: windows_of(group) for key, group in runs.groupby(["method", "ensemble"], sort=False)}
    rows = []
    for (name, kind), theirs in windows.items():
        ours = windows.get((DEFAULTS[kind], kind))
        if name not in DEFAULTS.values() and ours:
            rows.append([name, kind, *(compared(ours, theirs, score, block) for score in scores)])
    return [f"{DEFAULT} against", "members", *scores], rows


def windows_of(runs: pd.DataFrame) -> list[dict]:
    """The scores of every window of some runs, as `paired_difference` takes them."""
    return [pd.read_csv(path).to_dict("list") for path in runs.path]


def compared(ours: list[dict], theirs: list[dict], score: str, block: int) -> str:
    """The relative difference of a score with its interval; empty without runs, or if one is older than the score."""
    if not ours or not theirs or not all(PAIRED[score][0] in run for run in ours + theirs):
        return ""
    return in_words(paired_difference(ours, theirs, score, block))


def ablation_table(runs: pd.DataFrame, names: Sequence[str], block: int) -> tuple[list[str], list[list[str]]]:
    """Some rows of the ablation on one dataset; the difference is that of a row to the default, above 0 if it is worse.

    It is taken over the seeds that both have.
    """
    rows, ours = [], runs[runs.method == DEFAULT]
    for name in names:
        group = runs[runs.method == name]
        if not len(group):
            continue
        both = set(group.seed) & set(ours.seed) if name != DEFAULT else ()
        against = compared(*(windows_of(each[each.seed.isin(both)]) for each in (group, ours)), "CRPS", block)
        rows.append([name, METHODS[name].change, *(mean_and_spread(group[score]) for score in ABLATION_SCORES),
                     against, str(len(group))])
    return ["row", "change", *ABLATION_SCORES, f"CRPS against {DEFAULT}", "seeds"], rows


def ahead() -> str:
    """Every published or simple row that has a better score than the default, from the .csv files, in sentences.

    The default's row is that of the same kind of members (random ones beside published rows), or the only one it has.
    """
    lines = []
    for lengths in LENGTHS:
        path, published = (RESULTS / f"{kind}{lengths[0]}_{lengths[1]}.csv" for kind in ("", "published_"))
        if not path.exists():
            continue
        runs = with_definitions(pd.read_csv(path))
        theirs = pd.read_csv(published) if published.exists() else pd.DataFrame(columns=["data_name", "method"])
        theirs = theirs.assign(ensemble="random", method=theirs.method + " (published)")
        for data_name, group in runs.groupby("data_name", sort=False):
            rows = pd.concat([theirs[theirs.data_name == data_name], group[group.method.isin(OTHERS)]])
            rows = rows.reindex(columns=["method", "ensemble", *LISTED])
            rows = rows.groupby(["method", "ensemble"], sort=False)
            ours = group[group.method == group.ensemble.map(DEFAULTS)].groupby("ensemble")[list(LISTED)].mean()
            found = []
            for score in LISTED:
                better = []
                for (name, kind), value in rows[score].mean().items():
                    own = ours[score].get(kind, ours[score].mean())
                    if value < own:
                        better.append(f"{name} {number(value)} ({number(own)})")
                if better:
                    found.append(f"in {score} {', '.join(better)}")
            if found:
                lines.append(f"- {data_name}, {lengths[0]} to {lengths[1]}: {'; '.join(found)}.\n")
    scores = f"{', '.join(LISTED[:-1])} and {LISTED[-1]}"
    if not lines:
        return f"No published and no simple row is ahead of the default in {scores}.\n"
    return f"Where others are ahead of the default in {scores}, its score in brackets:\n\n{''.join(lines)}"


def summary(runs: pd.DataFrame, published: pd.DataFrame) -> str:
    """The README's table: the default beside the paper's row and the best of the simple forecasters; then with lags.

    All of them by random members, as those of the paper.
    """
    rows = []
    for (data_name, group), (method, label) in product(runs.groupby("data_name", sort=False), SHOWN.items()):
        paper = published[(published.data_name == data_name) & (published.method == "CoST")]
        group = group[group.ensemble == "random"]
        ours = group[group.method == method]
        if not len(ours):
            continue
        row = [data_name + label]
        for score in SCORES:
            value = ours[score].mean()
            theirs = paper.iloc[0][score] if len(paper) else float("-inf")
            shown = f"**{number(value)}**" if value < theirs else number(value)
            row.append(f"{shown} ({theirs:g})" if len(paper) else shown)
        floor = group[group.method.isin(SIMPLE)].groupby("method").CRPS.mean()
        row += [f"{number(floor.min())} {floor.idxmin()}" if len(floor) else "", number(ours.CRPS_sum.mean()),
                f"{ours.coverage90.mean():.3f}", str(ours.windows.iloc[0]), str(len(ours)),
                f"{ours[[c for c in ours if c.startswith('minutes')]].sum(axis=1).mean():.1f}"]
        rows.append(row)
    return markdown(["dataset", *SCORES, "best simple CRPS", "CRPS_sum", "coverage 90", "test windows",
                     "seeds", "minutes"], rows)


def replace_between_marks(text: str, table: str) -> str:
    before, found, rest = text.partition(BEGIN)
    after = rest.partition(END)
    if not found or not after[1]:
        raise ValueError("README.md: the marks of the results table are missing")
    return before + BEGIN + "\n" + table + "\n" + END + after[2]


def write_tables(runs: pd.DataFrame, lengths: tuple[int, int]) -> pd.DataFrame:
    """The .csv and .md of one task; returns the published rows that stand in them."""
    name = "{}_{}".format(*lengths)
    path = RESULTS / f"published_{name}.csv"
    published = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["data_name", "method", *SCORES])
    members = ", ".join(map(str, sorted(set(runs.members))))
    text = (f"# {lengths[0]} -> {lengths[1]}: all rows\n\nWritten by `python -m scripts.paper.collect_results`. "
            "Published: single seed, from the tables of arXiv:2502.11013, as printed there. The rest: every test "
            f"window, {members} members, mean ± standard deviation over seeds; minutes of one run on one CPU core. "
            f"Below each table the relative difference of the default, {DEFAULT}, to every method with a paired "
            "95 % interval (none where the windows are worth fewer than 8 independent ones), seeds averaged: negative "
            f"is better. Only members of one kind are compared: random ones with {DEFAULTS['random']}, equidistant "
            f"quantiles with {DEFAULTS['quantiles']}. QICE counts ties as the papers do, QICE_ties shares them "
            "([scores.md](../scores.md)). scripts/paper/benchmark.py says what each row is.\n")
    for data_name, group in runs[~runs.method.isin(ABLATION)].groupby("data_name", sort=False):
        table = ladder(group, published[published.data_name == data_name])
        text += (f"\n## {data_name}\n\n{group.windows.iloc[0]} test windows\n\n{markdown(*table)}\n"
                 f"{markdown(*differences(group, sum(lengths)))}")
    write_text(RESULTS / f"{name}.csv", csv_text(runs.drop(columns="path"), float_format="%.6g"))
    write_text(RESULTS / f"{name}.md", text)
    return published


def write_joint(runs: pd.DataFrame, lengths: tuple[int, int]) -> None:
    """The joint scores of one task as .csv and .md, where any run has them."""
    runs = read_joint(runs)
    if not len(runs):
        return
    text = (f"# {lengths[0]} -> {lengths[1]}: joint scores\n\nWritten by `python -m scripts.paper.collect_results`. In "
            "brackets the score of the control: the same members in another order at every node (for increments and "
            "autocorrelation: at every step), margins without dependence. Mean ± standard deviation over seeds; "
            "[scores.md](../scores.md) defines the scores, lower is better in each. Below each table the relative "
            f"difference of the default, {DEFAULT}, to every method with a paired 95 % interval (none where the "
            "windows are worth fewer than 8 independent ones), seeds averaged: negative is better.\n")
    for data_name, group in runs[~runs.method.isin(ABLATION)].groupby("data_name", sort=False):
        known = [score for score in JOINT_COMPARED if group[score].notna().all()]
        text += (f"\n## {data_name}\n\n{group.windows.iloc[0]} test windows\n\n{markdown(*joint_ladder(group))}\n"
                 f"{markdown(*differences(group, sum(lengths), known))}")
        head, rows = texture_table(group)
        if rows:
            text += ("\nTexture, members / observed: squared difference to four nearest nodes and to the next step, "
                     "and share of the spectrum by quarter, smooth first, each over the variance (1 is right); AUC of "
                     f"telling members from errors (.5: impossible).\n\n{markdown(head, rows)}\n")
    path = RESULTS / "joint_{}_{}.csv".format(*lengths)
    write_text(path, csv_text(runs.drop(columns="path"), float_format="%.6g"))
    write_text(path.with_suffix(".md"), text)


def write_ablation(runs: pd.DataFrame, lengths: tuple[int, int]) -> None:
    """docs/results/ablation.md, where any row of it was run; random members, as the default has."""
    text = (f"# Ablation, {lengths[0]} -> {lengths[1]}\n\nWritten by `python -m scripts.paper.collect_results`. Two "
            f"tables for each dataset: from the published system to the default, {DEFAULT}, one change at a time; then "
            f"{DEFAULT} with one change alone, by its flags. Random members, mean ± standard deviation over seeds. The "
            f"last column but one is the relative difference of a row's CRPS to that of {DEFAULT} with a paired 95 % "
            "interval, over the seeds that both have: above 0 the row is worse. No interval is given where the test "
            "windows are worth fewer than 8 independent ones. Rows that were not run are left out; "
            "[scores.md](../scores.md) defines the scores, scripts/paper/benchmark.py the rows.\n")
    runs = runs[runs.ensemble == "random"]
    for data_name, group in runs.groupby("data_name", sort=False):
        if group.method.isin(ABLATION).any():
            tables = (ablation_table(group, names, sum(lengths)) for names in (STEPS, (*SWITCHES, DEFAULT)))
            text += f"\n## {data_name}\n\n{group.windows.iloc[0]} test windows\n\n" + "\n".join(
                markdown(*table) for table in tables)
    if "\n## " in text:
        write_text(RESULTS / "ablation.md", text)


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--save_dir", type=Path, default=ROOT / "save")
    given = parser.parse_args(arguments)
    runs = in_ladder_order(read_runs(given.save_dir / "benchmark" / "test"))
    readme, table = ROOT / "README.md", ""
    for lengths, group in runs.groupby(["history_len", "predict_len"]):
        published = write_tables(group, lengths)
        write_joint(group, lengths)
        if lengths == (12, 12):
            table = summary(group, published)
            write_ablation(group, lengths)
    if table:
        write_text(readme, replace_between_marks(readme.read_text(), f"{table}\n{ahead()}"))
    print(f"{len(runs)} runs in {RESULTS} and README.md")
    return 0


if __name__ == "__main__":
    run_main(main)
