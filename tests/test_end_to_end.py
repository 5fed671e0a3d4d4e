"""Both stages through their command lines, on small data."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SHARED, needs_real_data, random_values, with_gaps

import main_pretrain
import main_train
from data.synthetic import make_oracle
from data.windows import open_data
from main_train import score_ensemble
from models import PROCESSES, load_forecaster
from scripts import evaluate, score_oracle
from scripts.evaluate import open_run_data
from utils.checkpoint import load_checkpoint

TINY = ["--data_name", "Oracle", "--oracle_nodes", "6", "--oracle_steps", "300", "--epochs", "2", "--channels", "8",
        "--layers", "1", "--nsample", "8", "--sample_steps", "4", "--test_windows", "12"]
COST = ["--process", "cost", "--run_name", "cost"]  # the published process, in a folder of its own
FOLDERS = {"copula": "Oracle_12_12", "cost": "Oracle_12_12_cost"}
METRICS = {
    "data_name", "history_len", "predict_len", "split", "seed", "method", "sampler", "steps", "members", "windows",
    "CRPS", "CRPS_fair", "CRPS_sum", "QICE", "IS", "coverage90", "MAE", "RMSE", "energy_score", "variogram_score",
    "spread_skill", "seconds_train", "seconds_sample", "per_horizon",
}


def run(stage, folder, *extra):
    return stage.main([*TINY, "--save_dir", str(folder), *extra])


def bytes_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of stage 1 and of both processes on it; tests must not write into them."""
    folder = tmp_path_factory.mktemp("save")
    assert run(main_pretrain, folder) == 0 and run(main_train, folder, "--cross_check", "2") == 0
    assert run(main_train, folder, *COST, "--cross_check", "2", "--mean_run", str(folder / "mean/Oracle_12_12")) == 0
    return folder


both_processes = pytest.mark.parametrize("process", FOLDERS)


@both_processes
def test_a_run_leaves_settings_log_weights_scores_and_a_picture(runs, process):
    folder = runs / "diffusion" / FOLDERS[process]
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "log.jsonl", "model.pt", "metrics.json", "forecast.png", "windows.csv", ".lock",
        "model.pt.sha256", "last_a.pt", "last_a.pt.sha256", "last_b.pt", "last_b.pt.sha256",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["method"] == process
    assert METRICS <= set(metrics)
    assert (metrics["windows"], metrics["members"], metrics["steps"]) == (12, 8, 4)
    assert all(len(values) == 12 for values in metrics["per_horizon"].values())
    assert metrics["cross_check"]["largest_difference"] < 1e-9
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2] and lines[0]["loss"] is None
    assert metrics["best_epoch"] in (0, 1, 2) and metrics["epochs"] == 2


@both_processes
def test_the_table_of_windows_adds_up_to_the_scores(runs, process):
    folder = runs / "diffusion" / FOLDERS[process]
    metrics, table = json.loads((folder / "metrics.json").read_text()), pd.read_csv(folder / "windows.csv")
    assert len(table) == 12 and table["start"].is_monotonic_increasing and table["start"].iloc[0] == 166 + 55
    for score, above, below in (("CRPS", "crps", "abs_truth"), ("CRPS_sum", "crps_sum", "abs_truth_sum")):
        assert table[above].sum() / table[below].sum() == pytest.approx(metrics[score], rel=1e-9)
    assert table["energy_score"].mean() == pytest.approx(metrics["energy_score"], rel=1e-9)


def test_the_copula_has_a_loss_near_1_and_its_best_weights_are_no_worse_than_untrained_ones(runs):
    lines = (runs / "diffusion" / FOLDERS["copula"] / "log.jsonl").read_text().splitlines()
    scores = [json.loads(line)["score"] for line in lines]
    content = load_checkpoint(runs / "diffusion" / FOLDERS["copula"] / "model.pt")
    assert 0.5 < scores[0] < 1.5 and content["score"] == min(scores) <= scores[0]


def test_the_copula_needs_a_stage_1_of_quantiles_and_cost_does_not(tmp_path):
    run(main_pretrain, tmp_path, "--mean_model", "stid", "--no-climatology", "--tokens", "0")
    with pytest.raises(ValueError, match="--mean_model quantile_stid, or choose --process cost"):
        run(main_train, tmp_path)
    assert run(main_train, tmp_path, "--process", "cost") == 0
    metrics = json.loads((tmp_path / "diffusion" / "Oracle_12_12" / "metrics.json").read_text())
    assert metrics["method"] == "cost" and metrics["CRPS"] > 0


def test_stage_1_leaves_its_errors_in_physical_units(runs):
    metrics = json.loads((runs / "mean" / "Oracle_12_12" / "metrics.json").read_text())
    assert metrics["windows"] == 277 - 166 - 55 and 1 < metrics["MAE"] < metrics["RMSE"] < 20


def test_a_second_run_on_a_finished_folder_changes_nothing(runs, capsys):
    before = bytes_below(runs)
    assert run(main_pretrain, runs) == 0 and run(main_train, runs, "--cross_check", "2") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert bytes_below(runs) == before


def test_a_finished_folder_of_other_settings_is_refused(runs):
    before = bytes_below(runs)
    with pytest.raises(ValueError, match="seed 0 .wanted 3.*--run_name"):
        run(main_train, runs, "--cross_check", "2", "--seed", "3")
    assert bytes_below(runs) == before


def test_the_same_seed_gives_the_same_run_and_overwrite_runs_it_again(runs, tmp_path):
    def weights(folder):
        return load_checkpoint(folder / "diffusion" / "Oracle_12_12" / "model.pt")["weights"]

    def scores(folder):
        run_folder = folder / "diffusion" / "Oracle_12_12"
        metrics = json.loads((run_folder / "metrics.json").read_text())
        kept = {name: value for name, value in metrics.items() if "seconds" not in name and name != "mean_run"}
        return kept, (run_folder / "windows.csv").read_bytes()

    for _ in range(2):
        run(main_pretrain, tmp_path, "--overwrite")
        run(main_train, tmp_path, "--cross_check", "2", "--overwrite")
    assert all(torch.equal(value, weights(runs)[name]) for name, value in weights(tmp_path).items())
    assert scores(tmp_path) == scores(runs)


def test_stage_2_without_stage_1_names_the_command(tmp_path):
    with pytest.raises(ValueError, match="python main_pretrain.py --data_name Oracle --history_len 12"):
        run(main_train, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lags, shown", [([], False), (["--lags", "auto"], False), (["--lags", "none"], True)])
def test_the_command_of_stage_1_says_what_its_preset_does_not(tmp_path, lags, shown):
    with pytest.raises(ValueError, match="no stage-1 model") as caught:
        run(main_train, tmp_path, "--data_name", "NYCFlights", *lags)
    assert ("--lags none" in str(caught.value)) == shown and ("--lags auto" not in str(caught.value))


@pytest.mark.parametrize("other, named", [
    (["--predict_len", "6"], "predict_len 12 .wanted 6"),
    (["--oracle_nodes", "5"], "num_nodes 6 .wanted 5"),
    (["--oracle_steps", "320"], "scaler_mean"),
    (["--data_name", "NYCFlights"], "data_name Oracle .wanted NYCFlights"),
    (["--lags", "24"], "lag_steps .*it was trained with --lags none: give this stage the same, or run: .*--lags 24"),
])
def test_stage_2_refuses_a_stage_1_of_other_data_naming_what_differs(runs, tmp_path, other, named):
    with pytest.raises(ValueError, match=named):
        run(main_train, tmp_path, *other, "--mean_run", str(runs / "mean" / "Oracle_12_12"))
    assert not list(tmp_path.iterdir())


def test_stage_2_refuses_a_stage_2_run_as_its_mean(runs, tmp_path):
    with pytest.raises(ValueError, match="not a stage-1 run; run first: python main_pretrain.py"):
        run(main_train, tmp_path, "--mean_run", str(runs / "diffusion" / "Oracle_12_12"))


def test_a_dry_run_prints_settings_and_sizes_and_writes_nothing(tmp_path, capsys):
    run(main_pretrain, tmp_path, "--dry_run")
    out = capsys.readouterr().out
    assert '"batch_size": 64' in out and "166 train, 55 validation, 56 test" in out and "MiB" in out
    assert not list(tmp_path.iterdir())


@both_processes
def test_a_loaded_forecaster_repeats_the_scores_of_its_run_whatever_the_chunk(runs, process):
    trained = load_forecaster(runs / "diffusion" / FOLDERS[process])
    model, content = trained.model, trained.checkpoint
    data = open_run_data(content, "", "cpu")
    stored = json.loads((runs / "diffusion" / FOLDERS[process] / "metrics.json").read_text())
    for sample_batch in (0, 3, 16):
        scores, _ = score_ensemble(model, {**content["config"], "sample_batch": sample_batch}, data, "test",
                                   torch.device("cpu"))
        for name in ("CRPS", "CRPS_sum", "QICE", "IS", "RMSE", "energy_score", "variogram_score"):
            assert scores[name] == pytest.approx(stored[name], rel=1e-5), name


@both_processes
def test_bfloat16_sampling_scores_within_one_per_cent_of_float32(runs, process):
    """The margins of a copula are not sampled: its precision shows in the scores of joint paths."""
    trained = load_forecaster(runs / "diffusion" / FOLDERS[process])
    model, content = trained.model, trained.checkpoint
    torch.nn.init.normal_(model.denoiser.project.weight, std=0.1)  # the best of two epochs may be the untrained one
    data = open_run_data(content, "", "cpu")
    single, _ = score_ensemble(model, content["config"], data, "test", torch.device("cpu"))
    half, _ = score_ensemble(model, {**content["config"], "sample_precision": "bfloat16"}, data, "test",
                             torch.device("cpu"))
    assert half["energy_score"] != single["energy_score"]
    for name in ("CRPS", "energy_score"):
        assert half[name] == pytest.approx(single[name], rel=0.01)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm2m"])
def test_a_run_can_be_scored_again_with_another_sampler(runs, tmp_path, sampler):
    before = bytes_below(runs)
    evaluate.main([str(runs / "diffusion" / "Oracle_12_12"), "--sampler", sampler, "--sample_steps", "5", "--nsample",
                   "4", "--test_windows", "3", "--json", str(tmp_path / "scores.json")])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["split"], scores["sampler"], scores["members"], scores["windows"]) == ("validation", sampler, 4, 3)
    assert bytes_below(runs) == before


def test_the_exact_forecaster_is_calibrated_under_our_scores_and_beats_a_tiny_run(runs, tmp_path):
    score_oracle.main([str(runs / "diffusion" / "Oracle_12_12"), "--json", str(tmp_path / "ratio.json"),
                       "--table", str(tmp_path / "joint.md")])
    found = json.loads((tmp_path / "ratio.json").read_text())
    assert found["ratio"]["CRPS"] > 1 and found["joint"]["ratio"]["CRPS_regions"] > 1
    assert (tmp_path / "joint.md").read_text().count("| mlp, without dependence |") == 1
    data, oracle = open_data("Oracle", ROOT, 12, 12, "cpu", 8, 6000), make_oracle(8, 6000)
    exact = score_oracle.score_exact(data, oracle, members=50)
    assert exact["QICE"] == pytest.approx(exact["QICE_floor"], abs=0.003)
    assert exact["coverage90"] == pytest.approx(exact["coverage90_floor"], abs=0.01)
    assert exact["spread_skill"] == pytest.approx(1, abs=0.02)
    joint = score_oracle.compare_joint(exact["joint"], exact["joint"], score_oracle.law_curve(data, oracle))
    assert joint["gap"]["forecast"] < 0.01 and joint["gap"]["control"] > 0.3
    assert joint["control_ratio"]["CRPS_regions"] > 1.01 and joint["ratio"]["CRPS_regions"] == 1


def test_averaged_weights_half_precision_and_float32_training_all_run(tmp_path):
    run(main_pretrain, tmp_path, "--amp", "--ema", "0.9")
    for process in FOLDERS:
        run(main_train, tmp_path, "--amp", "--ema", "0.9", "--sample_precision", "bfloat16", "--val_windows", "10",
            "--process", process, "--overwrite")
        metrics = json.loads((tmp_path / "diffusion" / "Oracle_12_12" / "metrics.json").read_text())
        assert (metrics["precision"], metrics["method"]) == ("bfloat16", process) and metrics["CRPS"] > 0


@pytest.mark.parametrize("arguments, message", [
    (["main_train.py", "--data_name", "SSTT"], "did you mean SST"),
    (["main_train.py", "--data_name", "TaxiBJ"], "get_data --download TaxiBJ"),
    (["main_pretrain.py", "--device", "cuda:99"], "--device cuda:99: torch sees"),
    (["main_pretrain.py", "--history_len", "9000"], "no train window: 8760 steps in all"),
])
def test_a_users_mistake_is_one_line_and_exit_status_2(arguments, message, tmp_path):
    done = subprocess.run([sys.executable, *arguments, "--save_dir", str(tmp_path)], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


@needs_real_data
@pytest.mark.parametrize("name", ["SST", "MobileNJ", "BikeDC", "Los_Speed"])
def test_the_published_datasets_open_with_sensible_sizes(name, tmp_path, capsys):
    main_pretrain.main(["--data_name", name, "--data_dir", str(SHARED), "--save_dir", str(tmp_path), "--dry_run"])
    counts = {"SST": "1957 train, 337 validation, 639 test", "MobileNJ": "289 train, 96 validation, 96 test",
              "BikeDC": "850 train, 283 validation, 284 test", "Los_Speed": "1196 train, 399 validation, 398 test"}
    assert counts[name] in capsys.readouterr().out


def test_scoring_again_refuses_a_stage_1_run_and_other_data(runs, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="not a stage-2 run"):
        evaluate.main([str(runs / "mean" / "Oracle_12_12")])
    content = load_checkpoint(runs / "diffusion" / "Oracle_12_12" / "model.pt")
    content["data"]["scaler_mean"] += 1
    with pytest.raises(ValueError, match="other data than the run was trained on"):
        open_run_data(content, "", "cpu")


def test_a_dry_run_of_stage_2_needs_no_stage_1(tmp_path, capsys):
    run(main_train, tmp_path, "--dry_run")
    out = capsys.readouterr().out
    assert "no stage-1 model yet" in out and '"sampler": "dpm2m"' in out
    assert not list(tmp_path.iterdir())


def test_a_new_stage_1_model_makes_the_finished_stage_2_run_another_one(tmp_path):
    run(main_pretrain, tmp_path)
    run(main_train, tmp_path)
    run(main_pretrain, tmp_path, "--overwrite", "--seed", "5")
    with pytest.raises(ValueError, match="finished run with mean_model"):
        run(main_train, tmp_path)


def test_scores_survive_a_failing_picture(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError("disk full")

    run(main_pretrain, tmp_path)
    monkeypatch.setattr(main_train, "draw_forecast", fail)
    assert run(main_train, tmp_path) == 0
    assert "warning: forecast.png could not be drawn: disk full" in capsys.readouterr().err
    folder = tmp_path / "diffusion" / "Oracle_12_12"
    assert json.loads((folder / "metrics.json").read_text())["CRPS"] > 0 and (folder / "model.pt").exists()


def test_noise_variances_that_fall_are_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="fall from 0.6 to 0.5"):
        run(main_train, tmp_path, "--beta_first", "0.6", "--mean_run", str(runs / "mean" / "Oracle_12_12"))


@pytest.mark.parametrize("steps, batch_size", [(10, 64), (10, 1), (12, 3)])
def test_one_window_a_batch_larger_than_the_data_and_a_last_batch_of_one_work(registered, tmp_path, steps, batch_size):
    """faults 16: windows of 6 + 1 steps, 2 of 4 or 4 of 6 for training and 1 for the test."""
    folder = registered(random_values(steps, 3))
    arguments = ["--data_name", "Tiny", "--data_dir", str(folder), "--save_dir", str(tmp_path), "--device", "cpu",
                 "--history_len", "6", "--predict_len", "1", "--epochs", "2", "--channels", "4", "--layers", "1",
                 "--batch_size", str(batch_size), "--nsample", "4", "--sample_steps", "2"]
    assert main_pretrain.main(arguments) == main_train.main(arguments) == 0
    metrics = json.loads((tmp_path / "diffusion" / "Tiny_6_1" / "metrics.json").read_text())
    assert metrics["windows"] == 1 and metrics["CRPS"] > 0


# Missing values

GAPPY = ["--data_name", "Tiny", "--epochs", "2", "--channels", "8", "--layers", "1", "--nsample", "8",
         "--sample_steps", "4", "--test_windows", "12"]


@pytest.fixture
def gappy(registered, tmp_path):
    """Runs a stage on waves with a constant node, one a billion times larger, and the gaps that are asked for."""
    def run_gappy(stage, *extra, share=0.2, name="run", change=lambda values: values):
        values = random_values(300, 5) + 4 * np.sin(np.arange(300, dtype=np.float32) / 4)[:, None]
        values[:, 3], values[:, 4] = 7, values[:, 4] * 1e9
        folder = registered(change(with_gaps(values, share)))
        missing = ["--missing", "mask"] if share else []
        arguments = [*GAPPY, "--data_dir", str(folder), "--save_dir", str(tmp_path / name), *missing, *extra]
        return stage.main(arguments), tmp_path / name
    return run_gappy


@pytest.mark.parametrize("process", main_train.PROCESSES)
def test_both_stages_run_on_a_field_with_gaps_and_say_how_much_is_missing(gappy, process, capsys):
    assert gappy(main_pretrain)[0] == 0
    _, folder = gappy(main_train, "--process", process, "--cross_check", "2")
    assert "% of the values missing" in capsys.readouterr().out
    metrics = json.loads((folder / "diffusion/Tiny_12_12/metrics.json").read_text())
    assert 0.1 < metrics["missing_share"] < 0.3 and metrics["CRPS"] > 0
    assert metrics["cross_check"]["largest_difference"] < 1e-9 * metrics["cross_check"]["ours"]
    assert load_checkpoint(folder / "diffusion/Tiny_12_12/model.pt")["data"]["masked"]
    model = load_forecaster(folder / "diffusion/Tiny_12_12").model
    assert model.mean_model.networks[0].extra.gaps.weight.abs().max() > 0, "stage 1 learned what a gap is"


def test_stage_2_refuses_a_stage_1_model_of_data_without_gaps(gappy):
    gappy(main_pretrain, share=0)
    with pytest.raises(ValueError, match="masked False .wanted True.*--missing mask"):
        gappy(main_train)


def test_a_null_value_must_be_missing_on_purpose(capsys):
    with pytest.raises(SystemExit):
        main_pretrain.main([*TINY, "--null_value", "0"])
    assert "--null_value 0 says what is missing: add --missing mask" in capsys.readouterr().err


def test_values_after_the_training_part_change_no_weight_of_stage_1(gappy):
    """With gaps and without; 300 steps, 166 windows train: 189 steps. Validation chooses the epoch: it is the last."""
    def after(values):
        return np.where(np.arange(300)[:, None] < 189, values, values * -3 + 1)

    for share in (0, 0.2):
        weights = []
        for change in (lambda values: values, after):
            _, folder = gappy(main_pretrain, "--no-recalibrate", "--linear_modes", "0", "--epochs", "1", share=share,
                              change=change, name=f"{change.__name__}{share}")
            weights.append(load_checkpoint(folder / "mean/Tiny_12_12/model.pt")["weights"])
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@both_processes
def test_stage_1_asked_once_or_at_every_step_trains_the_same_model(runs, process, tmp_path, monkeypatch):
    flags = ["--mean_run", str(runs / "mean/Oracle_12_12"), *(COST if process == "cost" else [])]
    ask, asked, logs = PROCESSES[process].prepare, [], []
    monkeypatch.setattr(PROCESSES[process], "prepare",
                        lambda self, future, *known: asked.append(len(future)) or ask(self, future, *known))
    for limit in (main_train.PREPARED_BYTES, 0):
        asked.clear()
        monkeypatch.setattr(main_train, "PREPARED_BYTES", limit)
        assert run(main_train, tmp_path / str(limit), *flags) == 0
        logs.append(pd.read_json(tmp_path / str(limit) / "diffusion" / FOLDERS[process] / "log.jsonl", lines=True))
        assert (sum(asked) == 166 + 55) if limit else (sum(asked) > 2 * 166 + 3 * 55)
    np.testing.assert_allclose(*(log[["loss", "score"]] for log in logs), rtol=1e-4)
