"""The panel: its fields can be read as own files, its halves are of the same kinds, its table is right by hand."""

import importlib.util
import json
import math

import numpy as np
import pandas as pd
import pytest

from scripts.paper import panel
from utils.config import PretrainConfig, parse_config
from utils.pipeline import CHOICES, open_windows

TINY = "--channels 8 --layers 1 --epochs 1 --networks 1 --nsample 4 --sample_steps 2 --device cpu"


def run(crps, by_node, seed=0, **more):
    return {"seed": seed, "CRPS": crps, "CRPS_by_node": dict(zip("abc", by_node, strict=False)), "nodes": 3,
            "steps": 900, "windows": 7, "members": 50, "coverage90": 0.8, "coverage90_floor": 0.86,
            "minutes_stage_1": 1.0, "minutes_stage_2": 0.5, "seconds_sample": 30.0, **more}


FIRST = {  # ours is better in all, worse at b than the climatology
    panel.OURS: [run(0.2, [1.0, 3.0, None]), run(0.4, [3.0, 3.0, None], 1, coverage90=0.9)],
    "persistence": [run(0.5, [4.0, 9.0, None]), run(0.7, [4.0, 9.0, None], 1)],
    "climatology": [run(0.8, [9.0, 1.0, None]), run(0.8, [9.0, 2.0, None], 1)],
}
SECOND = {  # worse in all; a has no error in any row
    panel.OURS: [run(1.0, [0.0, 3.0, 2.0])],
    "persistence": [run(0.5, [0.0, 1.5, 2.0])],
    "climatology": [{"refused": "too short"}],
}


def test_a_field_is_compared_with_its_best_simple_row_and_a_node_with_its_own():
    line = panel.compare(FIRST)
    assert line["best_simple"] == "persistence" and line["ratio"] == pytest.approx(0.3 / 0.6)
    assert line["worst_node"] == "b" and line["worst_node_ratio"] == pytest.approx(3 / 1.5)  # c is never observed
    assert line["node_ratio"] == pytest.approx(math.sqrt(2 / 4 * 3 / 1.5))
    assert line["coverage90"] == pytest.approx(0.85) and line["seeds"] == 2 and line["minutes"] == pytest.approx(2)
    assert line["CRPS_climatology"] == pytest.approx(0.8)


def test_a_row_that_a_field_cannot_have_and_a_node_without_error_are_left_in_peace():
    line = panel.compare(SECOND)
    assert line["ratio"] == 2 and line["best_simple"] == "persistence" and math.isnan(line["CRPS_climatology"])
    assert line["worst_node"] == "b" and line["worst_node_ratio"] == 2
    assert line["node_ratio"] == pytest.approx(2 ** (1 / 3))  # 1, 2, 1


def test_the_summary_is_a_geometric_mean_with_the_worst_named():
    table = pd.DataFrame([{"field": "first", **panel.compare(FIRST)}, {"field": "second", **panel.compare(SECOND)}])
    found = panel.summary(table)
    assert found["geometric mean of ratios"] == "1.000" and found["worst field"] == "2.000 second"
    assert found["fields above 1.02"] == "1" and found["fields with a node above 1.10"] == "2"
    assert found["largest error of coverage"] == "0.060 second"


def test_every_kind_is_in_both_halves_and_there_are_enough_fields():
    kinds = {half: sorted(entry.kind for entry in panel.FIELDS.values() if entry.half == half)
             for half in panel.HALVES}
    assert kinds["choice"] == kinds["report"] and len(panel.FIELDS) >= 12


def test_each_package_is_required_with_a_lower_bound_and_a_reason():
    lines = (panel.ROOT / "requirements-panel.txt").read_text().splitlines()[1:]
    assert [line.split(">=")[0] for line in lines] == sorted({entry.package for entry in panel.FIELDS.values()})
    assert all(line.split("#")[1].strip() for line in lines)


@pytest.mark.parametrize("name", panel.FIELDS)
def test_a_field_is_read_as_an_own_file_as_its_package_holds_it(name, tmp_path):
    entry = panel.FIELDS[name]
    if not importlib.util.find_spec(entry.package):
        pytest.skip(f"the package {entry.package} is not installed: pip install -r requirements-panel.txt")
    frame, path = entry.frame(), tmp_path / f"{name}.csv"
    panel.write_file(frame, path)
    lengths = ["--history_len", str(entry.lengths[0]), "--predict_len", str(entry.lengths[1])]
    config = parse_config(PretrainConfig, CHOICES, ["--data_path", str(path), *lengths, *entry.flags.split()])
    data = open_windows(vars(config), "", "cpu")
    assert list(data.field.node_names) == list(map(str, frame.columns))
    values = data.field.values.numpy()
    found, expected = (each[~np.isnan(each)] for each in (values, frame.to_numpy(np.float32)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # gaps may be more: rows that the file lacks
    assert min(map(len, data.starts.values())) >= 10


def made_up() -> pd.DataFrame:
    """A daily field of two nodes, one a hundred times the other, with gaps."""
    values = np.random.default_rng(0).normal(20, 5, (200, 2)) * [1, 100]
    values[::37] = np.nan
    return panel.stamped(values, "2020-01-01", "D", ["small", "large"])


@pytest.fixture
def one_field(monkeypatch, tmp_path):
    """Runs the panel on a made-up field, with tiny networks; gives the table and the folder of the scores."""
    entry = panel.PanelField("choice", "counts", "statsmodels", (6, 4), f"--missing mask {TINY}", "Made up", made_up)
    monkeypatch.setattr(panel, "FIELDS", {"made_up": entry})
    monkeypatch.setattr(panel.importlib.util, "find_spec", lambda package: True)
    table = tmp_path / "panel.md"

    def start(*more):
        assert panel.main(["--seeds", "0", "--save_dir", str(tmp_path), "--table", str(table), "--test_windows", "5",
                           "--overwrite", *more]) == 0
        return pd.read_csv(table.with_suffix(".csv")).iloc[0], tmp_path / "panel/scores/made_up"
    start.table = table
    return start


def test_both_stages_and_every_simple_row_are_scored_on_an_own_file(one_field):
    line, folder = one_field()
    assert {path.stem for path in folder.iterdir()} == {f"{row}_0" for row in (*panel.SIMPLE, panel.OURS)}
    assert (line.windows, line.members, line.nodes, line.steps) == (5, 4, 2, 200)
    ours, simple = (json.loads((folder / f"{row}_0.json").read_text()) for row in (panel.OURS, line.best_simple))
    assert line.ratio == pytest.approx(ours["CRPS"] / simple["CRPS"], rel=1e-4)
    assert line.worst_node in ("small", "large") and len(ours["CRPS_by_node"]) == 2
    assert "made_up" in one_field.table.read_text()


def test_what_is_scored_is_not_scored_again_and_a_simple_row_may_be_refused(one_field, monkeypatch):
    scored, refused = [], panel.SIMPLE[-1]

    def fake(row, task):
        scored.append(row)
        if row == refused and len(scored) <= len(panel.SIMPLE) + 1:
            raise ValueError("no season")
        return {**run(0.5, []), "per_node": {"CRPS_physical": {"small": 1.0, "large": 2.0}}}, {}

    monkeypatch.setattr(panel, "score", fake)
    line, folder = one_field()
    assert scored == [*panel.SIMPLE, panel.OURS] and line.refused == "no season" and math.isnan(line[f"CRPS_{refused}"])
    with pytest.raises(ValueError, match="_0.json was scored with --test_windows 5; choose another --save_dir"):
        one_field("--test_windows", "0")
    scored.clear()
    (folder / f"{panel.OURS}_0.json").unlink()
    one_field()
    assert scored == [panel.OURS]


def test_an_error_of_our_own_row_is_an_error_of_the_run(one_field, monkeypatch):
    def broken(row, task):
        raise ValueError("broken")

    monkeypatch.setattr(panel, "score", broken)
    with pytest.raises(ValueError, match="broken"):
        one_field()


def test_a_package_that_is_not_there_is_named(one_field, monkeypatch):
    monkeypatch.setattr(panel.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=r"not installed: statsmodels; run pip install -r requirements-panel\.txt"):
        one_field()
