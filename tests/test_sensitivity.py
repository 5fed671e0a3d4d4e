"""Facts of the sensitivity runs: what is trained anew, what is only scored again, and what the tables say."""

import json

import pandas as pd
import pytest

from models import load_forecaster
from models.diffusion import NOISE_SCHEDULES, SAMPLERS
from scripts import benchmark, sensitivity
from utils.config import TrainConfig, parse_config

SIZE = "--oracle_nodes 4 --oracle_steps 200 --history_len 6 --predict_len 4"
BASE = f"--channels 8 --layers 1 --embedding 4 --epochs 1 --nsample 4 --sample_steps 2 {SIZE}"
FEW = {"scale_threshold": (0.1, 0.5), "sampler": ("ddim-3", "dpm2m-2"), "nsample": (3,)}
ROWS = [("base", ""), ("mean_model", "stid"), ("scale_threshold", "0.1"), ("scale_threshold", "0.5"),
        ("sampler", "ddim-3"), ("sampler", "dpm2m-2"), ("nsample", "3")]


class Done:
    """Two seeds of a toy run: its folders, its tables, and how to run it again."""

    def __init__(self, folder):
        self.folder, self.scores, self.out = folder, folder / "sensitivity" / "Oracle", folder / "out"
        self.out.mkdir()

    def run(self, base=BASE):
        return sensitivity.main(["--data_name", "Oracle", "--save_dir", str(self.folder), "--seeds", "0,1",
                                 "--factors", ",".join(FEW), "--test_windows", "3", "--base", base,
                                 "--out", str(self.out), "--overwrite"])

    def read(self, name):
        return json.loads((self.scores / f"{name}.json").read_text())


def make_small(monkeypatch):
    monkeypatch.setitem(benchmark.STAGE_1, "stid", ["--mean_model", "stid", "--epochs", "1", "--channels", "4",
                                                    *benchmark.PUBLISHED_INPUTS, *SIZE.split()])
    monkeypatch.setattr(sensitivity, "FACTORS", FEW)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    done = Done(tmp_path_factory.mktemp("save"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_small(monkeypatch)
        assert done.run() == 0
    return done


@pytest.fixture
def done(finished, monkeypatch):
    """The finished runs, at the sizes that they were made with; tests leave in place what they find."""
    make_small(monkeypatch)
    return finished


def test_only_factors_of_training_are_trained_anew_and_the_base_is_trained_once(done):
    trained = {path.name for path in (done.folder / "diffusion").iterdir()}
    assert trained == {f"Oracle_6_4_sensitivity{suffix}_{seed}" for suffix in ("", "_scale_threshold_0.5")
                       for seed in (0, 1)}
    for suffix, threshold in (("", 0.1), ("_scale_threshold_0.5", 0.5)):
        config = load_forecaster(done.folder / "diffusion" / f"Oracle_6_4_sensitivity{suffix}_0").checkpoint["config"]
        assert (config["process"], config["channels"], config["scale_threshold"]) == ("cost", 8, threshold)
    assert {path.name for path in done.scores.iterdir()} == {
        f"{name}_{seed}.json" for seed in (0, 1)
        for name in ("base", "mean_model_stid", "scale_threshold_0.5", "sampler_ddim-3", "nsample_3")}


def test_each_factor_moves_the_scores_and_nothing_is_scored_on_the_test_split(done):
    base = done.read("base_0")
    assert (base["split"], base["members"], base["windows"]) == ("validation", 4, 3)
    assert done.read("nsample_3_0")["members"] == 3
    for name in ("scale_threshold_0.5", "sampler_ddim-3", "nsample_3"):
        assert done.read(f"{name}_0")["CRPS"] != base["CRPS"], name


def test_the_mean_alone_has_an_error_and_no_score_of_an_ensemble(done):
    mean = done.read("mean_model_stid_0")
    assert 1 < mean["MAE"] < 20 and mean["CRPS"] is None and mean["best_epoch"] == 1 and mean["minutes"] > 0


def test_the_tables_have_the_base_first_and_the_means_over_the_seeds(done):
    frame = pd.read_csv(done.out / "sensitivity_Oracle.csv", keep_default_na=False, dtype={"value": str})
    assert list(frame.columns) == list(sensitivity.COLUMNS)
    assert list(zip(frame.factor, frame.value, strict=True)) == ROWS
    assert set(frame.seeds) == {2}
    by_seed = [done.read(f"base_{seed}")["CRPS"] for seed in (0, 1)]
    for place in (0, 2, 5):  # the base, and the two values that are the base's own
        assert float(frame.CRPS[place]) == pytest.approx(sum(by_seed) / 2, rel=1e-5)
    text = (done.out / "sensitivity_Oracle.md").read_text()
    assert "validation split" in text and BASE in text and "on 3 windows" in text
    assert text.index("| base |") < text.index("| mean_model |") < text.index("| scale_threshold |")


def test_what_is_done_is_left_alone_and_what_is_missing_is_made(done, monkeypatch):
    before = {path: path.read_bytes() for path in done.folder.rglob("*") if path.is_file()}
    (done.scores / "nsample_3_1.json").unlink()
    made, score = [], sensitivity.score
    monkeypatch.setattr(sensitivity, "score", lambda variant, task, *rest: (
        made.append((variant.name, task.seed)), score(variant, task, *rest))[1])
    done.run()
    assert made == [("nsample_3", 1)]
    kept = {path: content for path, content in before.items()
            if path.parent != done.out and path.name != "nsample_3_1.json"}
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_scores_of_another_base_are_refused_naming_what_differs(done):
    with pytest.raises(ValueError, match=r"base_0.json was scored with base .*choose another --save_dir"):
        done.run(base=BASE.replace("--layers 1", "--layers 2"))


def test_an_unknown_factor_and_a_missing_folder_are_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="--factors colour: choose from scale_threshold"):
        sensitivity.main(["--factors", "colour", "--save_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="--out .*nowhere: there is no such folder"):
        sensitivity.main(["--out", str(tmp_path / "nowhere"), "--save_dir", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_every_value_of_every_factor_is_one_that_stage_2_accepts():
    base = TrainConfig()
    found = sensitivity.variants_of(list(sensitivity.FACTORS), base)
    assert found[:2] == [sensitivity.BASE_RUN, sensitivity.MEAN_ALONE]
    assert len({variant.name for variant in found}) == len(found)
    for variant in found[2:]:
        flags = [text for name, value in variant.settings.items() for text in sensitivity.flag_text(name, value)]
        config = parse_config(TrainConfig, sensitivity.main_train.CHOICES, ["--process", "cost", *flags])
        assert all(getattr(config, name) == value for name, value in variant.settings.items())
    assert {variant.value for variant in found if variant.factor == "noise_schedule"} == set(NOISE_SCHEDULES)
    assert sum(variant.factor == "sampler" for variant in found) == 4 * len(SAMPLERS)


def test_steps_that_the_base_does_not_have_are_left_out():
    few = parse_config(TrainConfig, sensitivity.main_train.CHOICES, ["--diffusion_steps", "10"])
    values = {variant.value for variant in sensitivity.variants_of(["sampler"], few) if variant.factor == "sampler"}
    assert values == {f"{sampler}-{steps}" for sampler in SAMPLERS for steps in (5, 10)}
