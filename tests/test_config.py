"""Flags: precedence, messages, and that each of them is read."""

import ast
import dataclasses
import inspect
import os
import subprocess
import sys
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
from conftest import ROOT

import main_pretrain
import main_train
from data.fields import OwnFile
from data.registry import DATASETS
from data.synthetic import OracleSettings
from data.windows import WindowSettings
from models import MEAN_MODELS
from models.diffusion import NOISE_SCHEDULES
from utils.config import (
    OF_OWN_FILE,
    PRESETS,
    RECIPES,
    WITHOUT_EFFECT,
    CommonConfig,
    PretrainConfig,
    TrainConfig,
    known_settings,
    parse_config,
    resolve,
)
from utils.pipeline import CHOICES
from utils.program import run_main
from utils.training.checkpoint import settings as checkpoint_settings
from utils.training.distributed import autocast, choose_device

STAGES = (PretrainConfig, TrainConfig)
both_stages = pytest.mark.parametrize("stage", STAGES, ids=["stage 1", "stage 2"])
every_recipe = pytest.mark.parametrize("recipe", RECIPES)
SEED_LINE = "--data_name SST --device cuda:4 --batch_size 8 --history_len 12 --predict_len 12"
RELEASE_LINE = (f"{SEED_LINE} --val_batch_size 16 --epochs 3 --patience 2 --lr 0.01 --weight_decay 1e-6 --seed 7 "
                "--nsample 10 --channels 16 --eps_model STID")


def parse(stage, line=""):
    return parse_config(stage, CHOICES, line.split())


def refusal(capsys, stage, line) -> str:
    """The one line with which a mistake ends the program, with status 2."""
    with pytest.raises(SystemExit) as caught:
        parse(stage, line)
    said = capsys.readouterr().err.strip()
    assert caught.value.code == 2 and "\n" not in said and said.startswith("error: ")
    return said


# Order

@both_stages
@every_recipe
def test_the_command_line_beats_the_preset_which_beats_the_recipe_which_beats_the_default(stage, recipe, monkeypatch):
    monkeypatch.setitem(RECIPES, recipe, {CommonConfig: dict(weight_decay=0.1, patience=7)})
    monkeypatch.setitem(PRESETS, recipe, {"TaxiBJ": {CommonConfig: dict(weight_decay=0.2)}})

    def found(line=""):
        config = parse(stage, f"--recipe {recipe} {line}")
        return config.weight_decay, config.patience, config.lr_decay

    assert found() == (0.1, 7, stage.lr_decay), "recipe, recipe, default"
    assert found("--data_name TaxiBJ") == (0.2, 7, stage.lr_decay), "preset, recipe, default"
    assert found("--weight_decay 0.3 --data_name TaxiBJ") == (0.3, 7, stage.lr_decay), "given, recipe, default"
    assert found("--patience 9 --lr_decay 0.5 --data_name TaxiBJ") == (0.2, 9, 0.5), "preset, given, given"


@both_stages
def test_values_of_a_stage_beat_those_of_both_stages_in_a_recipe_and_in_a_preset(stage, monkeypatch):
    monkeypatch.setitem(RECIPES, "copula", {CommonConfig: dict(patience=7), stage: dict(patience=8)})
    assert parse(stage, "--recipe copula").patience == 8
    monkeypatch.setitem(PRESETS, "copula", {"TaxiBJ": {CommonConfig: dict(patience=3), stage: dict(patience=4)}})
    assert parse(stage, "--recipe copula --data_name TaxiBJ").patience == 4


@both_stages
def test_a_flag_given_its_default_value_still_beats_recipe_and_preset(stage):
    assert parse(stage, "--data_name SST").batch_size == 32
    assert parse(stage, "--data_name SST --batch_size 8").batch_size == 8
    assert parse(stage, "--recipe published").lags == "none"
    assert parse(stage, "--recipe published --lags auto").lags == "auto"


def test_the_published_settings_are_those_of_the_recipe_published():
    mean = parse(PretrainConfig, "--recipe published --data_name MobileNJ")
    diffusion = parse(TrainConfig, "--recipe published --data_name MobileNJ")
    assert (mean.mean_lr, mean.mean_epochs, mean.mean_ema, mean.mean_dropout) == (1e-3, 50, 0, 0.15)
    assert (diffusion.diffusion_lr, diffusion.diffusion_epochs, diffusion.diffusion_ema) == (1e-3, 50, 0)
    for config in (mean, diffusion):
        assert (config.lr_decay, config.weight_decay) == (0.4, 1e-5)
        assert (config.batch_size, config.history_len, config.predict_len) == (8, 12, 12)
        assert (config.support, config.training_span, config.lags, config.seed) == ("any", "histories", "none", 0)
    assert (mean.mean_model, mean.objective, mean.select, mean.patience) == ("stid", "mse", "mae", 50)
    assert (mean.mean_channels, mean.mean_calendar_channels, mean.mean_layers, mean.networks) == (32, 0, 4, 1)
    assert (mean.climatology, mean.tokens, mean.linear_modes, mean.recalibrate) == (False, 0, 0, False)
    assert (diffusion.margin, diffusion.noise, diffusion.prediction, diffusion.scale, diffusion.endpoint) == (
        "residual", "independent", "noise", "spectrum", "signed")
    assert not (diffusion.condition_mean or diffusion.condition_scale or diffusion.center)
    assert (diffusion.denoiser, diffusion.diffusion_channels, diffusion.diffusion_layers) == ("stid", 128, 8)
    assert (diffusion.diffusion_embedding, diffusion.diffusion_dropout) == (32, 0.15)
    beta = NOISE_SCHEDULES[diffusion.noise_schedule](diffusion.diffusion_steps)  # 0: the schedule's own bounds
    assert diffusion.beta_first == diffusion.beta_last == 0 and len(beta) == 50
    assert beta[[0, -1]].tolist() == pytest.approx([1e-4, 0.5])
    assert (diffusion.nsample, diffusion.members, diffusion.patience) == (50, "random", 5)
    assert (diffusion.sampler, diffusion.sample_steps, diffusion.noise_schedule) == ("ancestral", 50, "quadratic")


def test_the_published_presets_are_those_of_the_authors_scripts():
    sizes = {"SST": 32, "TaxiBJ": 24, "BikeDC": 24, "Los_Speed": 24, "MobileNJ": 8}
    for name, size in sizes.items():
        for stage in STAGES:
            assert parse(stage, f"--recipe published --data_name {name}").batch_size == size
    mean = parse(PretrainConfig, "--recipe published --data_name SST")
    assert (mean.mean_channels, mean.mean_calendar_channels, mean.mean_layers) == (64, 32, 8)


def test_the_defaults_are_a_mean_of_conditional_quantiles_and_a_small_network_for_its_residual():
    mean, diffusion = parse(PretrainConfig), parse(TrainConfig)
    assert (mean.recipe, mean.mean_model, mean.objective, mean.climatology, mean.tokens) == (
        "cost", "stid", "quantiles", True, 8)
    assert (mean.mean_epochs, mean.mean_lr, mean.lags) == (24, 0.003, "auto"), "the dataset's preset"
    mean = parse(PretrainConfig, "--data_name Oracle")
    assert (mean.mean_epochs, mean.mean_lr, mean.mean_ema, mean.patience, mean.lags) == (
        16, 0.003, 0.99, 5, "none")
    assert (diffusion.margin, diffusion.noise, diffusion.modes, diffusion.prediction) == (
        "auto", "covariance", 1024, "v")
    assert (diffusion.endpoint, diffusion.center, diffusion.members) == ("none", True, "random")
    assert (diffusion.diffusion_epochs, diffusion.diffusion_lr, diffusion.diffusion_ema) == (20, 0.003, 0.99)
    assert (diffusion.denoiser, diffusion.diffusion_channels, diffusion.diffusion_layers) == ("mlp", 32, 2)
    assert (diffusion.sampler, diffusion.sample_steps) == ("adams", 10)


def test_the_copula_is_the_default_stage_1_with_normal_scores_of_its_quantiles():
    assert parse(PretrainConfig, "--recipe copula") == dataclasses.replace(parse(PretrainConfig), recipe="copula")
    config = parse(TrainConfig, "--recipe copula")
    assert (config.margin, config.noise, config.prediction, config.members) == (
        "quantile", "covariance", "v", "quantiles")


def every_layer():
    """Values of each recipe and of each of its presets, by stage: (recipe, dataset or "", stage -> values)."""
    for recipe, by_stage in RECIPES.items():
        yield recipe, "", by_stage
        for name, preset in PRESETS[recipe].items():
            yield recipe, name, preset


def test_recipes_and_presets_name_only_datasets_and_flags_that_exist_and_values_that_are_accepted():
    assert RECIPES.keys() == PRESETS.keys() == set(CommonConfig.__dataclass_fields__["recipe"].metadata["choices"])
    for recipe, name, by_stage in every_layer():
        assert name in ("", *DATASETS) and set(by_stage) <= {CommonConfig, *STAGES}
        for stage, values in by_stage.items():
            assert set(values) <= {item.name for item in dataclasses.fields(stage)}
        for stage in STAGES:
            resolved = dataclasses.asdict(resolve(stage, {"recipe": recipe, "data_name": name or "MobileNJ"}))
            typed = {flag: value for values in by_stage.values() for flag, value in values.items() if flag in resolved}
            line = " ".join(f"--{'' if resolved[flag] is not False else 'no-'}{flag}"
                            + ("" if isinstance(resolved[flag], bool) else f" {resolved[flag]}") for flag in typed)
            chosen = f"--recipe {recipe} --data_name {name or 'MobileNJ'}"
            assert parse(stage, f"{chosen} {line}") == parse(stage, chosen) == resolve(stage, {
                "recipe": recipe, "data_name": name or "MobileNJ"})


def test_no_recipe_or_preset_gives_a_flag_the_value_that_it_has_anyway():
    for recipe, name, by_stage in every_layer():
        below = RECIPES[recipe] if name else {}
        for stage, values in by_stage.items():
            for flag, value in values.items():
                others = [each for each in STAGES if stage in (CommonConfig, each)]
                before = [below.get(each, {}).get(flag, below.get(CommonConfig, {}).get(flag, getattr(each(), flag)))
                          for each in others]
                assert any(value != each for each in before) or (recipe, flag) == ("copula", "objective"), (
                    recipe, name, flag)


@both_stages
def test_flags_that_a_choice_does_not_read_are_noted(stage, capsys):
    for kind, unread in WITHOUT_EFFECT.items():
        if kind not in {item.name for item in dataclasses.fields(stage)}:
            continue
        for choice, names in unread.items():
            for name in names:
                default = getattr(stage(), name)
                given = f"--{name}" if isinstance(default, bool) else f"--{name} {default}"
                parse(stage, f"--{kind} {choice} {given}")
                assert f"note: --{name}: no effect with --{kind} {choice}" in capsys.readouterr().err
    parse(stage)
    assert capsys.readouterr().err == ""


@both_stages
def test_settings_cannot_be_changed_later(stage):
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse(stage).seed = 1


# The release's command line

@both_stages
def test_the_command_line_of_the_release_is_understood(stage):
    config = parse(stage, SEED_LINE)
    assert (config.data_name, config.device) == ("SST", "cuda:4")
    assert (config.batch_size, config.history_len, config.predict_len) == (8, 12, 12)


@both_stages
def test_every_flag_of_the_release_is_accepted_by_both_programs(stage, capsys):
    config = parse(stage, RELEASE_LINE)
    assert (config.val_batch_size, config.patience, config.weight_decay, config.seed) == (16, 2, 1e-6, 7)
    notes = capsys.readouterr().err.splitlines()
    if stage is TrainConfig:
        assert (config.diffusion_epochs, config.diffusion_lr, config.diffusion_channels) == (3, 0.01, 16)
        assert (config.nsample, config.denoiser) == (10, "stid")
        assert notes == ["note: --eps_model is now --denoiser, --channels is now --diffusion_channels, --epochs is now "
                         "--diffusion_epochs, --lr is now --diffusion_lr"]
    else:
        assert (config.mean_epochs, config.mean_lr, config.mean_channels) == (3, 0.01, 16)
        assert notes == ["note: --channels is now --mean_channels, --epochs is now --mean_epochs, --lr is now "
                         "--mean_lr",
                         "note: --denoiser, --nsample: no effect on this stage, read by the other one"]


@pytest.mark.parametrize("stage, line, same", [
    (PretrainConfig, "--dropout 0.3 --ema=0.9 --layers 2 --calendar_channels 4",
     "--mean_dropout 0.3 --mean_ema 0.9 --mean_layers 2 --mean_calendar_channels 4"),
    (TrainConfig, "--dropout 0.3 --ema=0.9 --layers 2 --embedding 4",
     "--diffusion_dropout 0.3 --diffusion_ema 0.9 --diffusion_layers 2 --diffusion_embedding 4"),
])
def test_an_older_name_of_a_flag_is_that_of_its_stage_and_one_note_says_the_new_one(stage, line, same, capsys):
    found = parse(stage, line)
    note = capsys.readouterr().err
    assert found == parse(stage, same) and capsys.readouterr().err == ""
    assert note.startswith("note: ") and note.count("\n") == 1
    for old, new in zip(line.replace("=", " ").split()[::2], same.split()[::2], strict=True):
        assert f"{old} is now {new}" in note


@both_stages
def test_a_value_that_is_an_older_name_of_a_flag_gives_no_note(stage, capsys):
    assert parse(stage, "--run_name lr").run_name == "lr" and capsys.readouterr().err == ""


@pytest.mark.parametrize("given", ["STID", "stid", "Stid", "MLP"])
def test_the_denoiser_goes_by_its_name_of_the_release_too_in_any_case(given):
    assert parse(TrainConfig, f"--eps_model {given}") == parse(TrainConfig, f"--denoiser {given.lower()}")
    assert parse(TrainConfig, f"--denoiser {given}").denoiser == given.lower()


# Every flag works

NEEDED_BESIDE = {"diffusion_steps": "--sample_steps 1", "null_value": "--missing mask"}

@both_stages
def test_every_flag_of_the_program_takes_a_value_and_hands_it_on(stage):
    for item in dataclasses.fields(stage):
        metadata, allowed = item.metadata, item.metadata["choices"]
        if item.type is bool:
            for line, value in ((f"--{item.name}", True), (f"--no-{item.name}", False)):
                assert getattr(parse(stage, line), item.name) is value
            continue
        if allowed:
            values = list(CHOICES[allowed] if isinstance(allowed, str) else allowed)
        elif item.type is str:
            values = [{"data_name": "Oracle", "run_name": "my-run_1.0", "lags": "24,168"}.get(item.name, "/some/where")]
        else:
            low = metadata["minimum"] if metadata["minimum"] is not None else metadata["above"] or 0
            values = [item.type(low) + (0.25 if item.type is float else 1)]
        for value in values:
            line = f"--{item.name} {value} " + NEEDED_BESIDE.get(item.name, "")
            line += " --data_path /my.csv" if item.name in OF_OWN_FILE else ""
            found = getattr(parse(stage, line), item.name)
            assert found == value and type(found) is item.type, item.name


@both_stages
def test_help_shows_every_flag_with_its_default_under_its_group(stage, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(stage, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    for item in dataclasses.fields(stage):
        words = item.metadata["help"].replace("%%", "%")
        default = "none" if item.default in ("", None) else item.default
        assert f"--{item.name}" in text and f"{words} (default: {default})" in text
        assert f" {item.metadata['group']}: --" in text
    hidden = {item.name for other in STAGES for item in dataclasses.fields(other)} - {
        item.name for item in dataclasses.fields(stage)}
    assert not [name for name in hidden if f"--{name} " in text]


# Every flag is read

SHARED_CODE = [file for file in sorted((ROOT / "utils").rglob("*.py")) if file.name != "config.py"]
SHARED_CODE += [ROOT / "models/build.py", ROOT / "models/pretrained.py"]
READERS = {
    PretrainConfig: [ROOT / "main_pretrain.py", *SHARED_CODE],
    TrainConfig: [ROOT / "main_train.py", ROOT / "main_pretrain.py", *SHARED_CODE],
}


def flags_read(source: str, holders=("config", "settings", "self.config")) -> set[str]:
    """Names read as `config.name`, `settings["name"]` or `settings.get("name")`; f"na{...}" is the pattern na*."""
    def words(node):
        if isinstance(node, ast.JoinedStr):
            pattern = "".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values)
            return {pattern} if pattern.strip("*") else set()
        return {node.value} if isinstance(node, ast.Constant) else set()

    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in holders:
            found.add(node.attr)
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) in holders:
            found |= words(node.slice)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in [f"{holder}.get" for holder in holders]:
            found |= words(node.args[0])
    return found


@both_stages
def test_every_flag_is_read_by_the_code_of_its_stage(stage):
    read = set().union(*(flags_read(file.read_text()) for file in READERS[stage]))
    read |= {prefix + item.name for prefix, settings in (
        ("", OwnFile), ("", WindowSettings), ("oracle_", OracleSettings)) for item in dataclasses.fields(settings)}
    if stage is PretrainConfig:
        read |= {f"{prefix}{name}" for backbone in MEAN_MODELS.values()
                 for name in inspect.signature(backbone).parameters for prefix in ("", "mean_")}
    assert not [item.name for item in dataclasses.fields(stage) if not any(fnmatch(item.name, each) for each in read)]


def test_the_search_for_flags_that_nothing_reads_finds_one():
    assert flags_read("x = config.lr + settings['seed'] + settings.get('ema')") == {"lr", "seed", "ema", "get"}
    assert flags_read("settings[f'beta_{name}'], settings[f'{name}'], settings[name]") == {"beta_*"}
    assert flags_read("lr = 1\nargs.lr\nprint('epochs')\n# config.patience") == set()
    source = (ROOT / "utils/training/loop.py").read_text()
    assert "weight_decay" in flags_read(source)
    assert "weight_decay" not in flags_read(source.replace("config.weight_decay", "1e-5"))


def test_only_flags_that_exist_are_read():
    existing = {item.name for stage in STAGES for item in dataclasses.fields(stage)}
    for file in [*ROOT.glob("*.py"), *SHARED_CODE]:
        assert flags_read(file.read_text(), ("config",)) <= existing, file


# What is refused

@pytest.mark.parametrize("stage, line, near", [
    (PretrainConfig, "--mean_epoch 3", "--mean_epochs"), (TrainConfig, "--epoch 3", "--epochs"),
    (PretrainConfig, "--batchsize 3", "--batch_size"),
    (TrainConfig, "--batch-size 3", "--batch_size"), (TrainConfig, "--num_sample=3", "--nsample"),
    (TrainConfig, "--sample_step 3", "--sample_steps"),
])
def test_an_unknown_flag_is_answered_with_near_ones(capsys, stage, line, near):
    said = refusal(capsys, stage, line)
    assert "unknown argument --" in said and near in said.split("did you mean")[1]


@both_stages
def test_an_unknown_flag_far_from_all_and_a_stray_word_are_named(capsys, stage):
    for word in ("--zzzzqqqq", "stray"):
        said = refusal(capsys, stage, word)
        assert f"unknown argument {word}" in said and "did you mean" not in said


@pytest.mark.parametrize("stage, line, words", [
    (TrainConfig, "--sampler zzzz", "'zzzz' is unknown. Choose one of "),
    (TrainConfig, "--sampler adam", "did you mean adams?"), (TrainConfig, "--eps_model unet", "'unet' is unknown. "),
    (TrainConfig, "--noise_schedule liner", "did you mean linear?"),
    (TrainConfig, "--endpoint positive", "Choose one of none, signed"),
    (TrainConfig, "--sample_precision float16", "Choose one of float32, bfloat16"),
    (PretrainConfig, "--mean_model sti", "did you mean stid?"), (TrainConfig, "--recipe cos", "did you mean cost?"),
    (PretrainConfig, "--recipe zzzz", "Choose one of cost, published, copula"),
])
def test_an_unknown_choice_is_answered_with_the_choices(capsys, stage, line, words):
    said = refusal(capsys, stage, line)
    assert words in said and line.split()[0] in said


@pytest.mark.parametrize("main", [main_pretrain.main, main_train.main], ids=["stage 1", "stage 2"])
def test_an_unknown_dataset_is_answered_with_near_ones_and_the_list(capsys, main, tmp_path):
    with pytest.raises(SystemExit) as caught:
        run_main(lambda: main(["--data_name", "SSTT", "--device", "cpu", "--save_dir", str(tmp_path)]))
    said = capsys.readouterr().err
    assert caught.value.code == 2 and "did you mean SST? The names are " in said and said.count("\n") == 1


@both_stages
@pytest.mark.parametrize("line, words", [
    ("--epochs 0", "at least 1"), ("--epochs -3", "at least 1"), ("--epochs 2.5", "not a whole number"),
    ("--epochs 1e3", "not a whole number"), ("--lr 0", "above 0"), ("--lr -0.1", "above 0"), ("--lr nan", "finite"),
    ("--lr inf", "finite"), ("--lr fast", "not a number"), ("--batch_size 0", "at least 1"),
    ("--val_batch_size 0", "at least 1"), ("--history_len 0", "at least 1"), ("--predict_len -1", "at least 1"),
    ("--patience 0", "at least 1"), ("--dropout 1", "at most 0.9"), ("--dropout -0.1", "at least 0"),
    ("--weight_decay -1", "at least 0"), ("--ema 1", "at most"), ("--seed -1", "at least 0"),
    (f"--seed {2**64}", "at most"), ("--channels 0", "at least 1"), ("--layers -1", "at least 0"),
    ("--oracle_nodes 0", "at least 1"), ("--oracle_steps 0", "at least 1"), ("--lr_decay 2", "at most 1"),
    ("--lr", "expected one argument"), ("--amp=maybe", "ignored explicit argument"),
])
def test_a_value_out_of_range_is_refused_with_the_range(capsys, stage, line, words):
    said = refusal(capsys, stage, line)
    assert line.split("=")[0].split()[0] in said and words in said


@pytest.mark.parametrize("line, words", [
    ("--nsample 1", "at least 2"), ("--sample_steps 0", "at least 1"), ("--diffusion_steps 0", "at least 1"),
    ("--sample_steps 51", "choose 1 to 50"),
    ("--diffusion_steps 10 --sample_steps 20", "--sample_steps 20: choose 1 to 10"),
    ("--beta_last 1", "at most 0.999"), ("--run_name ../x", "letters, digits"), ("--run_name ..", "letters, digits"),
    ("--beta_first -0.1", "at least 0"), ("--scale_threshold 0", "above 0"), ("--test_windows -1", "at least 0"),
    ("--sample_batch -1", "at least 0"), ("--cross_check -1", "at least 0"), ("--val_windows -1", "at least 0"),
    ("--modes -1", "at least 0"),
])
def test_a_value_out_of_range_of_stage_2_is_refused_with_the_range(capsys, line, words):
    assert words in refusal(capsys, TrainConfig, line)


@both_stages
def test_a_file_of_ones_own_names_the_run_and_its_paths_are_kept_whole(stage, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = parse(stage, "--data_path my/Städte-2024,v1.csv.gz --graph edges.csv")
    assert config.data_name == "Städte-2024_v1" and config.batch_size == 8
    assert config.data_path == str(tmp_path / "my/Städte-2024,v1.csv.gz")
    assert config.graph == str(tmp_path / "edges.csv") and config.node_table == ""
    assert parse(stage, "--data_path a.csv --data_name mine").data_name == "mine"


@both_stages
@pytest.mark.parametrize("line, words", [
    ("--freq 1h", "--freq: describes a file of your own; give it by --data_path"),
    ("--graph a.csv --unit mm", "--graph, --unit: describes a file of your own"),
    ("--data_path a.csv --data_name a/b", "--data_name 'a/b': choose letters"),
    ("--support positive", "Choose one of auto, any, nonnegative"),
])
def test_flags_of_a_file_of_ones_own_that_do_not_fit_together_are_refused(capsys, stage, line, words):
    assert words in refusal(capsys, stage, line)


def test_the_ends_of_a_range_are_accepted():
    assert parse(TrainConfig, "--sample_steps 50").sample_steps == 50
    assert parse(TrainConfig, "--diffusion_steps 1 --sample_steps 1").diffusion_steps == 1
    config = parse(TrainConfig, f"--diffusion_dropout 0 --weight_decay 0 --diffusion_layers 0 --seed {2**63 - 1}")
    assert (config.diffusion_dropout, config.diffusion_layers, config.seed) == (0, 0, 2**63 - 1)


def test_a_negative_number_may_have_an_exponent():
    config = parse_config(TrainConfig, {}, ["--missing", "mask", "--null_value", "-1e20", "--threshold", "-.5E-3"])
    assert (config.null_value, config.threshold) == (-1e20, -5e-4)


# Device and programs

def test_a_gpu_that_is_not_there_is_refused_with_what_torch_sees(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="--device cuda:4: torch sees no GPU; use --device auto or --device cpu"):
        choose_device("cuda:4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"torch sees 2 GPUs \(cuda:0 to cuda:1\)"):
        choose_device("cuda:4")
    assert choose_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("there, chosen", [(True, "cuda:0"), (False, "cpu")])
def test_auto_takes_the_first_gpu_when_there_is_one(monkeypatch, there, chosen):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(there))
    assert choose_device("auto") == torch.device(chosen)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "mps", "meta", ""])
def test_a_device_that_is_none_is_refused_with_the_accepted_ones(name):
    with pytest.raises(ValueError, match="use auto, cpu or cuda:N"):
        choose_device(name)


@pytest.mark.parametrize("enabled, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_amp_computes_linear_layers_in_bfloat16(enabled, dtype):
    with autocast(torch.device("cpu"), enabled):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


@pytest.mark.parametrize("error", [ValueError("a"), FileNotFoundError("a"), PermissionError("a"),
                                   FloatingPointError("a")])
def test_a_mistake_ends_a_program_with_one_line_and_status_2(capsys, monkeypatch, error):
    def main():
        raise error

    monkeypatch.delenv("COST_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as caught:
        run_main(main)
    assert caught.value.code == 2 and capsys.readouterr().err == "error: a\n"
    monkeypatch.setenv("COST_TRACEBACK", "1")
    with pytest.raises(type(error)):
        run_main(main)


@pytest.mark.parametrize("work", [lambda: np.empty((2**40, 2**10)), lambda: torch.empty(2**50),
                                  lambda: torch.empty(2**40, 2**40)], ids=["numpy", "torch", "overflow"])
def test_a_lack_of_memory_is_one_line_that_names_flags(capsys, monkeypatch, work):
    monkeypatch.delenv("COST_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as caught:
        run_main(work)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1
    assert said.startswith("error: not enough memory") and "--batch_size" in said


@both_stages
def test_a_whole_number_too_large_for_anything_is_refused(capsys, stage):
    with pytest.raises(SystemExit):
        parse(stage, "--batch_size 2147483648")
    assert "--batch_size: 2147483648 is out of range; choose a value at most 2147483647" in capsys.readouterr().err
    assert parse(stage, f"--seed {2**62}").seed == 2**62


@both_stages
@pytest.mark.parametrize("name, value", [("_channels", -1), ("_channels", "abc"), ("_channels", None),
                                         ("_dropout", [1]), ("_layers", 10**9), ("_lr", float("nan")), ("amp", 1)])
def test_settings_of_a_checkpoint_that_no_command_line_could_give_are_refused(stage, name, value):
    settings = checkpoint_settings(stage())
    name = name if name in settings else {PretrainConfig: "mean", TrainConfig: "diffusion"}[stage] + name
    assert known_settings(settings, stage, CHOICES, "model.pt") == settings
    with pytest.raises(ValueError, match=f"^model.pt: its --{name} cannot be: "):
        known_settings({**settings, name: value}, stage, CHOICES, "model.pt")


def test_settings_in_python_are_read_as_on_the_command_line():
    settings = checkpoint_settings(TrainConfig())
    names = {"sampler": "ADAMS", "members": "Quantiles", "sample_precision": "BFloat16", "nsample": np.int64(7)}
    read = {"sampler": "adams", "members": "quantiles", "sample_precision": "bfloat16", "nsample": 7}
    assert known_settings({**settings, **names}, TrainConfig, CHOICES, "forecast") == settings | read
    for name, value in (("nsample", 50.0), ("nsample", True), ("seed", False), ("sampler", None)):
        with pytest.raises(ValueError, match=f"^forecast: its --{name} cannot be: {value!r} is not of type"):
            known_settings({**settings, name: value}, TrainConfig, CHOICES, "forecast")


@both_stages
def test_a_setting_that_a_checkpoint_does_not_know_yet_has_its_default(stage):
    settings = checkpoint_settings(stage())
    older = {name: value for name, value in settings.items() if name != "lr_decay"}
    assert known_settings(older, stage, CHOICES, "model.pt") == settings


def test_a_mistake_with_a_line_break_in_it_is_one_line_too(capsys, monkeypatch):
    monkeypatch.delenv("COST_TRACEBACK", raising=False)
    with pytest.raises(SystemExit):
        run_main(lambda: choose_device("cuda\n0"))
    assert capsys.readouterr().err.splitlines() == ["error: --device cuda 0: use auto, cpu or cuda:N"]
    with pytest.raises(SystemExit):
        parse_config(PretrainConfig, CHOICES, ["--nothing\nelse"])
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_slip_of_ours_keeps_its_traceback():
    def main():
        raise AssertionError("ours")

    with pytest.raises(AssertionError):
        run_main(main)


def test_the_seed_command_line_on_a_machine_without_that_gpu_is_one_line_and_status_2(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "main_train.py", *SEED_LINE.split(), "--save_dir", str(tmp_path)], cwd=ROOT,
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and list(tmp_path.iterdir()) == []
    assert done.stderr == "error: --device cuda:4: torch sees no GPU; use --device auto or --device cpu\n"


@pytest.mark.parametrize("config_class, other", [(PretrainConfig, TrainConfig), (TrainConfig, PretrainConfig)])
def test_every_flag_of_the_other_stage_is_accepted_in_each_of_its_spellings(config_class, other, capsys):
    own = {item.name for item in dataclasses.fields(config_class)}
    aliases = {item.metadata["alias"] for item in dataclasses.fields(config_class)}
    for item in dataclasses.fields(other):
        if item.name in own:
            continue
        spellings = [[f"--no-{item.name}"], [f"--{item.name}"]] if item.type is bool else [
            [f"--{name}", str(item.default or 0)] for name in {item.name, item.metadata["alias"]} - {None} - aliases]
        for line in spellings:
            assert parse_config(config_class, CHOICES, line) == parse_config(config_class, CHOICES, [])
            assert f"--{item.name}: no effect on this stage" in capsys.readouterr().err
