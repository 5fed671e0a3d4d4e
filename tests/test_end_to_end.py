"""Both stages through their command lines, on small data."""

import json
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ON_ANY_STAGE_1, ROOT, SHARED, needs_real_data, random_values, with_gaps

import main_pretrain
import main_train
from data.fields import load_field
from data.synthetic import OracleSettings, make_oracle
from data.windows import WindowedField
from models import Forecaster, load_forecaster
from scripts import evaluate, report
from scripts.paper import score_oracle
from utils import pipeline
from utils.config import RECIPES, PretrainConfig, parse_config
from utils.output import plots
from utils.pipeline import open_run_data, score_ensemble
from utils.training.checkpoint import load_checkpoint, read_json

TINY = ["--data_name", "Oracle", "--oracle_nodes", "6", "--oracle_steps", "300", "--epochs", "2", "--channels", "8",
        "--layers", "1", "--nsample", "8", "--sample_steps", "4", "--test_windows", "12"]
FOLDERS = {"cost": "Oracle_12_12", "published": "Oracle_12_12_published", "copula": "Oracle_12_12_copula"}
SHORT = {"cost": ["--networks", "1"], "copula": ["--networks", "1"], "published": ["--lr", "0.003", "--channels", "32"]}
SHORT_STAGE_2 = {"cost": [], "copula": [], "published": ["--layers", "3", "--sample_steps", "20"]}
LARGEST_RATIO = {"cost": 1.23, "copula": 1.25, "published": 2.15}
METRICS = {
    "data_name", "history_len", "predict_len", "seed", "recipe", "split", "method", "sampler", "sample_steps",
    "sample_precision", "ensemble", "members", "windows", "CRPS", "CRPS_fair", "CRPS_sum", "QICE", "IS",
    "coverage90", "MAE", "RMSE", "energy_score", "variogram_score", "spread_skill", "seconds_train", "seconds_sample",
    "best_epoch", "epochs", "mean_run", "per_horizon", "joint",
}


def run(stage, folder, *extra):
    return stage.main([*TINY, "--save_dir", str(folder), *extra])


def bytes_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of both stages of every recipe; tests must not write into them."""
    folder = tmp_path_factory.mktemp("save")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main_train, "draw_forecast", plots.draw_forecast)
        for recipe in RECIPES:
            assert run(main_pretrain, folder, "--recipe", recipe) == 0
            assert run(main_train, folder, "--recipe", recipe, "--cross_check", "2") == 0
    return folder


every_recipe = pytest.mark.parametrize("recipe", RECIPES)


@every_recipe
def test_a_run_leaves_settings_log_weights_scores_and_a_picture(runs, recipe):
    folder = runs / "diffusion" / FOLDERS[recipe]
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "log.jsonl", "model.pt", "metrics.json", "forecast.png", "windows.csv", ".lock",
    }
    assert (folder / "forecast.png").read_bytes().startswith(b"\x89PNG")
    metrics = read_json(folder / "metrics.json")
    assert METRICS <= set(metrics) and metrics["recipe"] == metrics["method"] == recipe
    assert metrics["ensemble"] == ("quantiles" if recipe == "copula" else "random")
    assert metrics["sampler"] == ("ancestral" if recipe == "published" else "adams")
    assert (metrics["windows"], metrics["members"], metrics["sample_steps"]) == (12, 8, 4)
    assert metrics["mean_run"] == str(runs / "mean" / FOLDERS[recipe])
    assert all(len(values) == 12 for values in metrics["per_horizon"].values())
    assert metrics["cross_check"]["largest_difference"] < 1e-9
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2] and lines[0]["training_loss"] is None
    assert metrics["best_epoch"] in (0, 1, 2) and metrics["epochs"] == 2


def test_a_recipe_other_than_the_default_is_a_suffix_of_both_folders(runs):
    for stage in ("mean", "diffusion"):
        assert {path.name for path in (runs / stage).iterdir()} == set(FOLDERS.values())
        for recipe, name in FOLDERS.items():
            assert read_json(runs / stage / name / "config.json")["config"]["recipe"] == recipe


@every_recipe
def test_the_table_of_windows_adds_up_to_the_scores(runs, recipe):
    folder = runs / "diffusion" / FOLDERS[recipe]
    metrics, table = read_json(folder / "metrics.json"), pd.read_csv(folder / "windows.csv")
    assert len(table) == 12 and table["start"].is_monotonic_increasing and table["start"].iloc[0] == 166 + 55
    for score, above, below in (("CRPS", "crps", "abs_truth"), ("CRPS_sum", "crps_sum", "abs_truth_sum"),
                                ("energy_score", "energy_score", "fields")):
        assert table[above].sum() / table[below].sum() == pytest.approx(metrics[score], rel=1e-9)


@every_recipe
def test_the_loss_is_near_1_and_the_best_weights_are_no_worse_than_untrained_ones(runs, recipe):
    """A network that predicts v starts as the Gaussian forecast, whose loss is 1; one of the noise starts anywhere."""
    folder = runs / "diffusion" / FOLDERS[recipe]
    scores = [json.loads(line)["validation_loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert load_checkpoint(folder / "model.pt")["validation_loss"] == min(scores) <= scores[0]
    assert 0.5 < scores[0] < 1.5


def test_a_quantile_margin_needs_a_stage_1_of_quantiles_and_a_scaled_residual_does_not(tmp_path):
    run(main_pretrain, tmp_path, "--objective", "mse", "--no-climatology", "--tokens", "0")
    with pytest.raises(ValueError, match="found a stage-1 model of --objective mse: train one with --objective "
                                         "quantiles, or choose --margin scaled"):
        run(main_train, tmp_path, "--margin", "quantile")
    assert run(main_train, tmp_path, "--scale", "cycle") == 0
    assert read_json(tmp_path / "diffusion/Oracle_12_12/metrics.json")["CRPS"] > 0


@pytest.mark.parametrize("mine, other", [("cost", "published"), ("published", "cost"), ("copula", "cost")])
def test_stage_2_refuses_a_stage_1_of_another_recipe_with_both_and_the_command(runs, tmp_path, mine, other):
    shutil.copytree(runs / "mean" / FOLDERS[other], tmp_path / "mean" / FOLDERS[mine])
    with pytest.raises(ValueError) as caught:
        run(main_train, tmp_path, "--recipe", mine)
    said, suffix = str(caught.value), "" if mine == "cost" else f" --recipe {mine}"
    assert f"stage 1 was trained with --recipe {other}, this stage has --recipe {mine}: give both the same" in said
    command = shlex.split(said.split("run: python main_pretrain.py ")[1])
    assert parse_config(PretrainConfig, pipeline.CHOICES, command) == parse_config(PretrainConfig, pipeline.CHOICES, [
        *TINY[:6], "--save_dir", str(tmp_path), *suffix.split(), "--overwrite"])
    assert not (tmp_path / "diffusion").exists()


def test_a_recipe_takes_the_stage_1_of_another_where_it_is_named(runs, tmp_path, capsys):
    assert run(main_train, tmp_path, "--recipe", "published", *ON_ANY_STAGE_1, "--mean_run",
               str(runs / "mean/Oracle_12_12")) == 0
    content = load_checkpoint(tmp_path / "diffusion/Oracle_12_12_published/model.pt")
    assert (content["config"]["recipe"], content["mean_config"]["recipe"]) == ("published", "cost")
    assert read_json(tmp_path / "diffusion/Oracle_12_12_published/metrics.json")["CRPS"] > 0


def test_a_variant_of_stage_2_takes_the_stage_1_without_its_name_and_notes_it(runs, tmp_path, capsys):
    (tmp_path / "mean").symlink_to(runs / "mean")
    for recipe, folder in FOLDERS.items():
        assert run(main_train, tmp_path, "--recipe", recipe, "--run_name", "wide", "--dropout", "0.5") == 0
        missing, shared = tmp_path / "mean" / f"{folder}_wide", tmp_path / "mean" / folder
        assert f"note: {missing} is not there: stage 1 is that of {shared}\n" in capsys.readouterr().err
        metrics = read_json(tmp_path / "diffusion" / f"{folder}_wide" / "metrics.json")
        assert metrics["mean_run"] == str(shared)


def test_a_variant_of_stage_2_takes_a_stage_1_of_its_own_name_first(runs, tmp_path, capsys):
    for name in ("Oracle_12_12", "Oracle_12_12_wide"):
        shutil.copytree(runs / "mean/Oracle_12_12", tmp_path / "mean" / name)
    assert run(main_train, tmp_path, "--run_name", "wide") == 0
    assert "is not there" not in capsys.readouterr().err
    assert read_json(tmp_path / "diffusion/Oracle_12_12_wide/metrics.json")["mean_run"] == str(
        tmp_path / "mean/Oracle_12_12_wide")


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


@every_recipe
def test_a_loaded_forecaster_repeats_the_scores_of_its_run_whatever_the_chunk(runs, recipe):
    trained = load_forecaster(runs / "diffusion" / FOLDERS[recipe])
    model, content = trained.model, trained.checkpoint
    data = open_run_data(content, "", "cpu")
    stored = json.loads((runs / "diffusion" / FOLDERS[recipe] / "metrics.json").read_text())
    for sample_batch in (0, 3, 16):
        scores, _ = score_ensemble(model, {**content["config"], "sample_batch": sample_batch}, data, "test",
                                   torch.device("cpu"))
        for name in ("CRPS", "CRPS_sum", "QICE", "IS", "RMSE", "energy_score", "variogram_score"):
            assert scores[name] == pytest.approx(stored[name], rel=1e-5), name


@every_recipe
def test_bfloat16_sampling_scores_within_one_per_cent_of_float32(runs, recipe):
    """The quantiles of a copula are not sampled: its precision shows in the scores of joint paths."""
    trained = load_forecaster(runs / "diffusion" / FOLDERS[recipe])
    model, content = trained.model, trained.checkpoint
    torch.nn.init.normal_(model.denoiser.project.weight, std=0.1)  # the best of two epochs may be the untrained one
    data = open_run_data(content, "", "cpu")
    single, _ = score_ensemble(model, content["config"], data, "test", torch.device("cpu"))
    half, _ = score_ensemble(model, {**content["config"], "sample_precision": "bfloat16"}, data, "test",
                             torch.device("cpu"))
    assert half["energy_score"] != single["energy_score"]
    for name in ("CRPS", "energy_score"):
        assert half[name] == pytest.approx(single[name], rel=0.01)


@pytest.mark.parametrize("sampler", ["ancestral", "dpm2m", "adams"])
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
    settings = OracleSettings(8, 6000)
    data, oracle = WindowedField(load_field("Oracle", ROOT, oracle=settings), 12, 12), make_oracle(settings)
    exact = score_oracle.score_exact(data, oracle, members=50)
    assert exact["QICE"] == pytest.approx(exact["QICE_floor"], abs=0.003)
    assert exact["coverage90"] == pytest.approx(exact["coverage90_floor"], abs=0.01)
    assert exact["spread_skill"] == pytest.approx(1, abs=0.02)
    joint = score_oracle.compare_joint(exact["joint"], exact["joint"], score_oracle.exact_curve(data, oracle))
    assert joint["gap"]["forecast"] < 0.01 and joint["gap"]["control"] > 0.3
    assert joint["control_ratio"]["CRPS_regions"] > 1.01 and joint["ratio"]["CRPS_regions"] == 1


@every_recipe
def test_averaged_weights_half_precision_and_float32_training_all_run(tmp_path, recipe):
    flags = ["--amp", "--ema", "0.9", "--recipe", recipe, "--epochs", "1", "--test_windows", "4"]
    run(main_pretrain, tmp_path, *flags)
    run(main_train, tmp_path, *flags, "--sample_precision", "bfloat16", "--val_windows", "10")
    metrics = read_json(tmp_path / "diffusion" / FOLDERS[recipe] / "metrics.json")
    assert (metrics["sample_precision"], metrics["recipe"]) == ("bfloat16", recipe) and metrics["CRPS"] > 0


@every_recipe
def test_a_small_run_of_every_recipe_stays_near_the_exact_forecaster(tmp_path, recipe):
    """Its CRPS over that of the exact forecaster on the same windows; bounds: what was seen, and about a tenth more."""
    flags = ["--data_name", "Oracle", "--oracle_nodes", "8", "--oracle_steps", "1500", "--device", "cpu", "--save_dir",
             str(tmp_path), "--epochs", "5", "--recipe", recipe, *SHORT[recipe]]
    assert main_pretrain.main(flags) == 0
    assert main_train.main([*flags, "--nsample", "20", "--test_windows", "60", *SHORT_STAGE_2[recipe]]) == 0
    assert score_oracle.compare(tmp_path / "diffusion" / FOLDERS[recipe])["ratio"]["CRPS"] < LARGEST_RATIO[recipe]


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
    assert "no stage-1 model yet" in out and '"sampler": "adams"' in out
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
         "--sample_steps", "4", "--test_windows", "12", "--networks", "1", "--batch_size", "32"]


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


@every_recipe
def test_both_stages_run_on_a_field_with_gaps_and_say_how_much_is_missing(gappy, recipe, capsys):
    assert gappy(main_pretrain, "--recipe", recipe)[0] == 0
    _, save = gappy(main_train, "--recipe", recipe, "--cross_check", "2")
    assert "% of the values missing" in capsys.readouterr().out
    folder = save / "diffusion" / FOLDERS[recipe].replace("Oracle", "Tiny")
    metrics = read_json(folder / "metrics.json")
    assert 0.1 < metrics["missing_share"] < 0.3 and metrics["CRPS"] > 0
    assert metrics["cross_check"]["largest_difference"] < 1e-9 * metrics["cross_check"]["ours"]
    assert load_checkpoint(folder / "model.pt")["data"]["masked"]
    weights = load_forecaster(folder).model.mean_model.state_dict()
    learned = [weight.abs().max() for name, weight in weights.items() if name.endswith("extra.gaps.weight")]
    assert learned and min(learned) > 0, "stage 1 learned what a gap is"


def test_a_test_part_without_observations_leaves_a_finished_run_without_scores(gappy, capsys):
    def silent(values):
        values[221 + 12:] = np.nan  # of 277 windows the last 56 are those of the test
        return values

    event = ["--threshold", "1", "--cross_check", "2"]
    assert gappy(main_pretrain, change=silent)[0] == 0
    _, save = gappy(main_train, *event, change=silent)
    metrics = read_json(save / "diffusion/Tiny_12_12/metrics.json")
    assert metrics["CRPS"] is None and metrics["Brier"] is None and metrics["cross_check"] == {}
    assert "no observed value of the test windows differs from 0" in capsys.readouterr().out
    run_folder, data_dir = str(save / "diffusion/Tiny_12_12"), str(save.with_name("Tiny_data"))
    assert report.main([run_folder, "--data_dir", data_dir]) == 0
    assert evaluate.main([run_folder, "--data_dir", data_dir, "--split", "test", *event[:2]]) == 0


def test_stage_2_has_the_bound_of_stage_1(gappy):
    gappy(main_pretrain, "--highest", "1e12")
    with pytest.raises(ValueError, match=r"does not fit: highest 1000000000000\.0 .wanted None.; "):
        gappy(main_train)
    assert gappy(main_train, "--highest", "1e12")[0] == 0


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
            _, folder = gappy(main_pretrain, "--no-recalibrate", "--linear_modes", "0", "--base", "none", "--epochs",
                              "1", share=share, change=change, name=f"{change.__name__}{share}")
            weights.append(load_checkpoint(folder / "mean/Tiny_12_12/model.pt")["weights"])
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@every_recipe
def test_stage_1_asked_once_or_at_every_step_trains_the_same_model(runs, recipe, tmp_path, monkeypatch):
    ask, asked, logs = Forecaster.prepare, [], []
    monkeypatch.setattr(Forecaster, "prepare",
                        lambda self, future, context: asked.append(len(future)) or ask(self, future, context))
    for limit in (pipeline.PREPARED_BYTES, 0):
        asked.clear()
        (tmp_path / str(limit)).mkdir()
        (tmp_path / str(limit) / "mean").symlink_to(runs / "mean")
        monkeypatch.setattr(pipeline, "PREPARED_BYTES", limit)
        assert run(main_train, tmp_path / str(limit), "--recipe", recipe) == 0
        logs.append(pd.read_json(tmp_path / str(limit) / "diffusion" / FOLDERS[recipe] / "log.jsonl", lines=True))
        statistics = 166 + 55  # the training windows and those of calibration, once
        assert (sum(asked) == statistics + 166 + 55) if limit else (sum(asked) >= statistics + 2 * 166 + 3 * 55)
    np.testing.assert_allclose(*(log[["training_loss", "validation_loss"]] for log in logs), rtol=1e-4)
