"""Facts of the sampler curve: what is scored and timed, what a budget buys, and what the picture shows."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

import main_pretrain
import main_train
from models import load_forecaster
from models.diffusion import SAMPLERS
from scripts import evaluate, sampler_curve
from scripts.sampler_curve import CURVE, MEMBERS, SCORES, choose
from utils import plots

TINY = ["--data_name", "Oracle", "--oracle_nodes", "5", "--oracle_steps", "300", "--epochs", "1", "--channels", "8",
        "--layers", "1", "--nsample", "4", "--sample_steps", "2", "--test_windows", "2", "--device", "cpu"]
STEPS = (1, 2, 3)  # of STEPS those that four diffusion steps allow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the published process whose curve was measured; the table and the picture lie beside it."""
    folder = tmp_path_factory.mktemp("save")
    main_pretrain.main([*TINY, "--save_dir", str(folder), "--mean_model", "stid"])
    main_train.main([*TINY, "--save_dir", str(folder), "--process", "cost", "--diffusion_steps", "4"])
    run = folder / "diffusion" / "Oracle_12_12"
    outputs = [text for name, file in (("table", "curve.csv"), ("picture", "curve.png"), ("json", "curve.json"))
               for text in (f"--{name}", str(folder / file))]
    assert sampler_curve.main([str(run), "--windows", "2", "--device", "cpu", *outputs]) == 0
    return run


@pytest.fixture
def curve(run):
    return json.loads((run / CURVE).read_text())


def row(sampler, milliseconds, energy_score, steps=5, precision="float32"):
    return {"sampler": sampler, "steps": steps, "precision": precision, "milliseconds": milliseconds,
            "energy_score": energy_score}


ROWS = [row("slow", 100, 1.0), row("good", 30, 2.0), row("near", 20, 2.0 * 1.0049), row("far", 10, 2.0 * 1.0101)]


@pytest.mark.parametrize("budget, chosen", [
    (1000, "slow"), (100, "slow"), (99.9, "near"), (30, "near"), (20, "near"), (19, "far"), (10, "far"),
])
def test_a_budget_buys_the_lowest_energy_score_and_of_equal_ones_the_cheapest(budget, chosen):
    assert choose(ROWS, budget)["sampler"] == choose(ROWS[::-1], budget)["sampler"] == chosen


def test_a_budget_under_every_cost_names_the_cheapest():
    with pytest.raises(ValueError, match="--budget_ms 9.5: .* cheapest is far, 5 steps, float32: 10.0 ms"):
        choose(ROWS, 9.5)


def test_every_sampler_is_measured_at_all_steps_that_the_run_has_in_both_precisions(curve):
    found = [(row["sampler"], row["steps"], row["precision"]) for row in curve["rows"]]
    assert sorted(found) == sorted((sampler, steps, precision) for sampler in SAMPLERS for steps in STEPS
                                   for precision in ("float32", "bfloat16"))
    assert (curve["split"], curve["windows"], curve["members"], curve["device"]) == ("validation", 2, 50, "cpu")
    assert all(row["milliseconds"] > 0 for row in curve["rows"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_row_has_the_scores_of_scoring_the_run_again_with_that_sampler(run, curve, tmp_path, precision):
    evaluate.main([str(run), "--sampler", "ancestral", "--sample_steps", "3", "--sample_precision", precision,
                   "--nsample", str(MEMBERS), "--test_windows", "2", "--json", str(tmp_path / "again.json")])
    again = json.loads((tmp_path / "again.json").read_text())
    measured, = (row for row in curve["rows"]
                 if (row["sampler"], row["steps"], row["precision"]) == ("ancestral", 3, precision))
    assert {name: measured[name] for name in SCORES} == pytest.approx({name: again[name] for name in SCORES})


def test_what_is_timed_is_the_median_of_forecasts_of_one_window_by_fifty_members(run, monkeypatch):
    shapes = []

    def measure(call, device, budget):
        shapes.append(tuple(call().shape))
        return [0.3, 0.1, 0.002]

    def score_ensemble(model, settings, data, split, device):
        return dict.fromkeys(SCORES, split), {}

    monkeypatch.setattr(sampler_curve, "measure", measure)
    monkeypatch.setattr(sampler_curve, "score_ensemble", score_ensemble)
    trained = load_forecaster(run)
    data = evaluate.open_run_data(trained.checkpoint, "", "cpu")
    rows = sampler_curve.sampler_curve(trained.model, trained.checkpoint["config"], data, torch.device("cpu"), 2)
    assert shapes == [(1, 50, 12, 5)] * len(rows)
    assert {row["milliseconds"] for row in rows} == {100.0} and {row["CRPS"] for row in rows} == {"validation"}


def test_the_table_and_the_copy_hold_the_same_rows_as_the_run_folder(run, curve):
    folder = run.parents[1]
    assert json.loads((folder / "curve.json").read_text()) == curve
    written = pd.read_csv(folder / "curve.csv").to_dict("records")
    assert [list(row.values()) for row in written] == [pytest.approx(list(row.values())) for row in curve["rows"]]
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_scoring_within_a_budget_takes_the_choice_and_prints_it(run, curve, tmp_path, capsys):
    best = choose(curve["rows"], 1e9)
    evaluate.main([str(run), "--budget_ms", "1e9", "--test_windows", "2", "--json", str(tmp_path / "scores.json")])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [scores[name] for name in ("sampler", "steps", "precision")] == [
        best[name] for name in ("sampler", "steps", "precision")]
    assert f"{best['sampler']}, {best['steps']} steps, {best['precision']}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--budget_ms 0: no sampler is that cheap"):
        evaluate.main([str(run), "--budget_ms", "0"])


@pytest.mark.parametrize("flags", [["--sampler", "ddim"], ["--sample_steps", "2"], ["--sample_precision", "float32"]])
def test_a_budget_and_a_flag_that_it_decides_are_refused_together(run, flags):
    with pytest.raises(ValueError, match=f"{flags[0]}: --budget_ms decides that"):
        evaluate.main([str(run), "--budget_ms", "1e9", *flags])


def test_a_run_that_was_not_measured_or_was_trained_again_names_the_command(run, curve, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"other weights")
    with pytest.raises(ValueError, match=f"not been measured; run first: python -m scripts.sampler_curve {tmp_path}"):
        evaluate.main([str(tmp_path), "--budget_ms", "40"])
    (tmp_path / CURVE).write_text(json.dumps(curve))
    with pytest.raises(ValueError, match="other weights .* run first: python -m scripts.sampler_curve"):
        evaluate.main([str(tmp_path), "--budget_ms", "40"])


def test_the_picture_shows_both_scores_against_time_with_a_line_per_sampler_and_precision(
        tmp_path, curve, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots.plt, "close", drawn.append)
    plots.draw_sampler_curves(curve["rows"], 50, tmp_path / "curve.png")
    monkeypatch.undo()
    figure, = drawn
    for axes, score in zip(figure.axes, ("CRPS", "CRPS_sum"), strict=True):
        assert axes.get_xscale() == "log" and "milliseconds" in axes.get_xlabel() and "50 members" in axes.get_xlabel()
        assert axes.get_ylabel().startswith(f"{score} (")
        assert [text.get_text() for text in axes.texts] == ["1", "2", "3"] * 6
        looks = set()
        for line in axes.lines:
            sampler, precision = line.get_label().split(", ")
            rows = [row for row in curve["rows"] if (row["sampler"], row["precision"]) == (sampler, precision)]
            assert line.get_xydata().tolist() == [[row["milliseconds"], row[score]] for row in rows]
            assert line.get_linestyle() == {"float32": "-", "bfloat16": "--"}[precision]
            looks.add((line.get_color(), line.get_marker()))
        assert len(axes.lines) == 2 * len(SAMPLERS) and len(looks) == len(SAMPLERS)
    plt.close("all")
