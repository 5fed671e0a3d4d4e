"""Tables hold what the runs scored, each joint score with its control, and older runs without are left out."""

import pandas as pd
import pytest
from test_evaluation import MEMBERS, draw

from scripts import collect_results
from scripts.collect_results import JOINT, differences, joint_ladder, read_joint, read_runs, write_joint
from utils.checkpoint import write_json, write_table
from utils.evaluation import evaluate_ensemble


@pytest.fixture
def runs(data, tmp_path):
    """Three scored runs: two with joint scores, one as they were before."""
    folder = tmp_path / "Tiny_6_4"
    folder.mkdir()
    for method, width in (("persistence", 1.0), ("copula", 1.5), ("gaussian", 2.0)):
        scores, windows = evaluate_ensemble(lambda batch, width=width: width * draw(batch), data.batches("test", 5),
                                            data.scaler.physical, (MEMBERS, 4, 5))
        if method == "gaussian":
            del scores["joint"]
        facts = {"data_name": "Tiny", "method": method, "seed": 0, "seconds_sample": 1.0}
        write_table(folder / f"{method}_0.csv", windows)
        write_json(folder / f"{method}_0.json", {**facts, **scores})
    return read_runs(tmp_path)


def test_a_run_without_joint_scores_is_left_out_of_their_table_alone(runs):
    found = read_joint(runs)
    assert set(runs.method) == {"persistence", "copula", "gaussian"} and set(found.method) == {"persistence", "copula"}
    assert not [column for column in runs if "control" in column or "regions" in column]


def test_every_joint_score_stands_beside_its_control(runs):
    found = read_joint(runs)
    head, rows = joint_ladder(found)
    assert head == ["method", "CRPS", *(name for name in JOINT if "neighbourhoods" not in name), "seeds"]
    row = dict(zip(head, next(row for row in rows if row[0] == "copula"), strict=True))
    numbers = found[found.method == "copula"].iloc[0]
    own, control = row["CRPS_regions"].replace("*", "").split()
    assert float(own) == pytest.approx(numbers.CRPS_regions, abs=1e-4)
    assert float(control.strip("()")) == pytest.approx(numbers.control_CRPS_regions, abs=1e-4)
    assert sum(cell.startswith("**") for row in rows for cell in row) >= len(head) - 2


def test_the_default_is_compared_by_joint_scores_with_an_interval(runs):
    head, rows = differences(read_joint(runs), 5, ("CRPS_regions", "CRPS_max"))
    assert head == ["copula against", "CRPS_regions", "CRPS_max"] and [row[0] for row in rows] == ["persistence"]
    means = read_joint(runs).set_index("method").CRPS_regions
    assert rows[0][1].startswith(f"{means.copula / means.persistence - 1:+.1%} [")


def test_the_tables_are_written_where_there_is_something_to_write(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(collect_results, "RESULTS", tmp_path)
    write_joint(runs[runs.method == "gaussian"], (6, 4))
    assert not list(tmp_path.glob("joint*"))
    write_joint(runs, (3, 2))
    table = pd.read_csv(tmp_path / "joint_3_2.csv")
    assert list(table.method) == ["copula", "persistence"] and table.control_CRPS_sum.notna().all()
    text = (tmp_path / "joint_3_2.md").read_text()
    assert "## Tiny" in text and "| copula against | CRPS_sum | CRPS_regions | CRPS_max |" in text
