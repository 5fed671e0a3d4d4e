"""Tables hold what the runs scored, each joint score with its control, and older runs without are left out."""

import re

import pandas as pd
import pytest
from test_evaluation import MEMBERS, draw

from scripts.paper import collect_results
from scripts.paper.collect_results import (
    JOINT,
    SCORES,
    ahead,
    differences,
    joint_table,
    read_joint,
    read_runs,
    score_table,
    write_joint,
    write_tables,
)
from utils.scores.evaluation import evaluate_ensemble
from utils.training.checkpoint import read_json, write_json, write_table


@pytest.fixture
def runs(data, tmp_path):
    """Three scored runs: two with joint scores, one as they were before."""
    folder = tmp_path / "Tiny_6_4"
    folder.mkdir()
    for method, width in (("persistence", 1.0), ("cost", 1.5), ("gaussian", 2.0)):
        scores, windows = evaluate_ensemble(lambda batch, width=width: width * draw(batch), data.batches("test", 5),
                                            data.scaler.physical, MEMBERS)
        if method == "gaussian":
            del scores["joint"]
        facts = {"data_name": "Tiny", "method": method, "seed": 0, "seconds_sample": 1.0, "device": "cpu",
                 "test_windows": 0}
        write_table(folder / f"{method}_0.csv", windows)
        write_json(folder / f"{method}_0.json", {**facts, **scores})
    return read_runs(tmp_path)


def test_a_run_without_joint_scores_is_left_out_of_their_table_alone(runs):
    found = read_joint(runs)
    assert set(runs.method) == {"persistence", "cost", "gaussian"} and set(found.method) == {"persistence", "cost"}
    assert not [column for column in runs if "control" in column or "regions" in column]


def test_every_joint_score_stands_beside_its_control(runs):
    found = read_joint(runs)
    head, rows = joint_table(found)
    assert head == ["method", "members", "CRPS", *(name for name in JOINT if "neighbourhoods" not in name), "seeds"]
    row = dict(zip(head, next(row for row in rows if row[0] == "cost"), strict=True))
    numbers = found[found.method == "cost"].iloc[0]
    own, control = row["CRPS_regions"].replace("*", "").split()
    assert float(own) == pytest.approx(numbers.CRPS_regions, abs=1e-4)
    assert float(control.strip("()")) == pytest.approx(numbers.control_CRPS_regions, abs=1e-4)
    assert row["members"] == "random"
    assert sum(cell.startswith("**") for row in rows for cell in row) >= len(head) - 3


def test_the_default_is_compared_by_joint_scores_with_an_interval(runs):
    head, rows = differences(read_joint(runs), 2, ("CRPS_regions", "CRPS_max"))
    assert head == ["cost against", "members", "CRPS_regions", "CRPS_max"]
    assert [row[:2] for row in rows] == [["persistence", "random"]]
    means = read_joint(runs).set_index("method").CRPS_regions
    assert rows[0][2].startswith(f"{means.cost / means.persistence - 1:+.1%} [")
    few = differences(read_joint(runs), 5, ("CRPS_regions",))[1]
    assert few[0][2] == f"{means.cost / means.persistence - 1:+.1%} (no interval)"


def test_ensembles_of_another_kind_are_not_compared_with_intervals_and_stand_in_rows_of_their_own(runs):
    quantiles = runs[runs.method == "persistence"].assign(ensemble="quantiles", CRPS=0.1)
    both = pd.concat([runs, quantiles])
    assert [row[:2] for row in differences(both, 2)[1]] == [["persistence", "random"], ["gaussian", "random"]]
    head, rows = score_table(both, pd.DataFrame(columns=["data_name", "method", "ensemble", *SCORES]))
    assert [row[:2] for row in rows].count(["persistence", "quantiles"]) == 1 and len(rows) == 4
    assert head.index("CRPS") == 2 and rows[-1][2] == "**0.1000**"


def test_every_published_and_simple_row_that_is_ahead_of_the_default_is_named_from_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(collect_results, "RESULTS", tmp_path)
    rows = [  # method, members, CRPS, IS, CRPS_sum; two seeds of the default
        ("cost", "random", 0.05, 2.0, 0.04), ("cost", "random", 0.07, 2.0, 0.04),
        ("cost_smooth", "quantiles", 0.055, 1.8, 0.04), ("climatology", "random", 0.062, 1.9, 0.05),
        ("quantile", "quantiles", 0.056, 1.7, 0.039), ("step_1", "quantiles", 0.01, 0.1, 0.01)]
    ours = pd.DataFrame(rows, columns=["method", "ensemble", "CRPS", "IS", "CRPS_sum"]).assign(
        data_name="Tiny", QICE=0.01, MAE=float("nan"), RMSE=float("nan"))
    assert "No published and no baseline row" in ahead(ours[ours.method == "cost"])
    assert ahead(ours[ours.method == "climatology"]) == "The default was not run.\n"
    pd.DataFrame({"data_name": ["Tiny", "Other"], "method": "Old", "CRPS": [0.059, 0.001], "IS": [3.0, 0.1],
                  "QICE": [0.02, 0.0]}).to_csv(tmp_path / "published_12_12.csv", index=False)
    assert ahead(ours).splitlines()[4:] == [
        "| Tiny | CRPS | random | 0.0600 | Old (published) 0.0590 |",
        "| Tiny | IS | random | 2.00 | climatology 1.90 |",
        "| Tiny | IS | quantiles | 1.80 | quantile 1.70 |",
        "| Tiny | CRPS_sum | quantiles | 0.0400 | quantile 0.0390 |"]
    alone = ours[(ours.ensemble == "quantiles") | (ours.method == "climatology")]  # the default has one kind
    assert ahead(alone.assign(IS=[1.8, 1.5, 1.9, 9.0])).splitlines()[4:] == [
        "| Tiny | IS | random | 1.80 | climatology 1.50 |",
        "| Tiny | CRPS_sum | quantiles | 0.0400 | quantile 0.0390 |"]


def test_the_commit_of_each_row_stands_below_the_table(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(collect_results, "RESULTS", tmp_path)
    collect_results.write_tables(runs.assign(version=["abc1234", "def5678", "abc1234"]), (6, 4))
    first, *others = runs.method
    text = f"By `abc1234`: {first}, {others[1]}. By `def5678`: {others[0]}.\n"
    assert (tmp_path / "6_4.md").read_text().endswith(text)


def test_rows_that_are_kept_stay_as_they_are_and_their_differences_to_a_new_run_are_marked(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(collect_results, "RESULTS", tmp_path)
    runs = runs.assign(version="abc1234")
    assert len(write_tables(runs, (9, 9), keep=True)) == len(runs)  # there is nothing to keep yet
    for write, name in ((write_tables, "6_4"), (write_joint, "joint_6_4")):
        write(runs, (6, 4))
        table, page = pd.read_csv(tmp_path / f"{name}.csv"), (tmp_path / f"{name}.md").read_text()
        write(runs[runs.method == "persistence"], (6, 4), keep=True)
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / f"{name}.csv"), table)
        assert (tmp_path / f"{name}.md").read_text() == page, "differences without an interval are computed again"
        line, = (line for line in page.splitlines() if re.match(r"\| persistence \| random \| [-+]\d", line))
        earlier = line.replace("(no interval)", "[+1.0%, +2.0%]")
        (tmp_path / f"{name}.md").write_text(page.replace(line, earlier))
        write(runs[runs.method == "persistence"], (6, 4), keep=True)
        kept = (tmp_path / f"{name}.md").read_text()
        assert kept == page.replace(line, earlier.replace("] |", "] * |")) != page
        write(runs, (6, 4), keep=True)
        assert (tmp_path / f"{name}.md").read_text() == page


def test_the_tables_are_written_where_there_is_something_to_write(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(collect_results, "RESULTS", tmp_path)
    write_joint(runs[runs.method == "gaussian"], (6, 4))
    assert not list(tmp_path.glob("joint*"))
    write_joint(runs, (3, 2))
    table = pd.read_csv(tmp_path / "joint_3_2.csv")
    assert list(table.method) == ["persistence", "cost"] and table.control_CRPS_sum.notna().all()
    text = (tmp_path / "joint_3_2.md").read_text()
    assert "## Tiny" in text and "| cost against | members | CRPS_sum | CRPS_regions | CRPS_max |" in text


def test_the_ablation_leads_from_published_to_the_default_and_then_names_each_switch(tmp_path, monkeypatch):
    monkeypatch.setattr(collect_results, "RESULTS", tmp_path)
    few = ablation_runs(tmp_path, windows=20, methods={"cost": (0, 1), "persistence": (0,)})
    collect_results.write_ablation(few, (12, 12))
    assert not (tmp_path / "ablation.md").exists()  # nothing of it was run
    runs = ablation_runs(tmp_path, windows=200, methods={
        "cost": (0, 1), "published_fast": (0,), "step_2": (0, 1), "without_v": (1,), "cost_untrained": (2,)})
    collect_results.write_ablation(runs, (12, 12))
    text = (tmp_path / "ablation.md").read_text()
    way, alone = text.split("## Tiny\n\n200 test windows\n\n")[1].split("\n\n")
    rows = {part: [line.strip("| ").split(" | ") for line in table.splitlines()]
            for part, table in (("way", way), ("alone", alone))}
    head = "row", "change", "CRPS", "CRPS_sum", "energy_score", "QICE_ties", "coverage90", "CRPS against cost", "seeds"
    assert tuple(rows["way"][0]) == tuple(rows["alone"][0]) == head
    assert [row[0] for row in rows["way"][2:]] == ["published_fast", "step_2", "cost"]
    assert [row[0] for row in rows["alone"][2:]] == ["cost_untrained", "without_v", "cost"]
    found = {row[0]: row for row in rows["way"] + rows["alone"]}
    assert found["without_v"][1] == "`--prediction noise`" and found["step_2"][1].startswith("a small denoiser")
    assert found["step_2"][-1] == "2" and found["step_2"][2] == "0.2000 ± 0.1"
    assert found["step_2"][-2] == "+0.0% [+0.0%, +0.0%]" and found["without_v"][-2].startswith("-66.7% [")
    assert found["cost"][-2] == found["cost_untrained"][-2] == ""  # no seed of cost_untrained is one of cost
    assert [table[-1][1] for table in rows.values()] == ["mean and scale as inputs of the denoiser", "none"]
    kept = runs.method.isin(("published_fast", "without_v"))
    collect_results.write_ablation(runs.assign(path=runs.path.mask(kept), version="abc1234"), (12, 12))
    text = (tmp_path / "ablation.md").read_text()
    assert "| -66.7% (no interval) | 1 |" in text.split("| without_v |")[1].split("\n")[0]
    assert "| +0.0% [+0.0%, +0.0%] | 2 |" in text.split("| step_2 |")[1].split("\n")[0]
    assert text.endswith("\nBy `abc1234`: cost, published_fast, step_2, without_v, cost_untrained.\n")
    collect_results.write_ablation(runs.assign(path=None, CRPS=5.0), (12, 12))
    assert (tmp_path / "ablation.md").read_text() == text  # nothing of it was run again
    short = ablation_runs(tmp_path, windows=20, methods={"cost": (0,), "without_v": (0,)})
    assert collect_results.ablation_table(short, {"without_v": "change"}, 24)[1][0][-2] == "+0.0% (no interval)"


def test_rows_of_the_ablation_stand_in_no_other_table(tmp_path, monkeypatch):
    monkeypatch.setattr(collect_results, "RESULTS", tmp_path)
    runs = ablation_runs(tmp_path, windows=20, methods={"cost": (0,), "without_v": (0,), "cost_untrained": (0,)})
    collect_results.write_tables(runs, (12, 12))
    assert "| cost_untrained |" in (text := (tmp_path / "12_12.md").read_text()) and "without_v" not in text
    assert "without_v" in set(pd.read_csv(tmp_path / "12_12.csv").method)


def test_a_run_on_some_windows_is_left_out(runs, tmp_path):
    path = tmp_path / "Tiny_6_4/gaussian_0.json"
    write_json(path, read_json(path) | {"test_windows": 5})
    assert set(read_runs(tmp_path).method) == {"persistence", "cost"}


def ablation_runs(folder, windows, methods):
    """Runs of some seeds by method; CRPS is 0.1, of seed 1 of cost and step_2 0.3, the same in every window."""
    rows = []
    for method, seeds in methods.items():
        for seed in seeds:
            crps = 0.3 if seed == 1 and method in ("cost", "step_2") else 0.1
            path = folder / f"{method}_{seed}_{windows}.csv"
            write_table(path, {"start": list(range(windows)), "crps": [crps] * windows, "abs_truth": [1.0] * windows})
            scores = dict.fromkeys((*collect_results.OURS, "QICE_floor"), 0.01)
            rows.append({"data_name": "Tiny", "method": method, "seed": seed, "windows": windows, "members": 50,
                         "ensemble": "random", "device": "cpu", "minutes_forecasting": 1.0, **scores, "CRPS": crps,
                         "path": path})
    return pd.DataFrame(rows)
