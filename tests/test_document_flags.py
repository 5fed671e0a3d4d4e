"""docs/flags.md, the table of datasets and their scripts are what `utils/config.py` and the registry say."""

import dataclasses
import re
import shlex

import pytest
from conftest import ROOT

from data.registry import DATASETS
from tests.tools import document_flags
from tests.tools.document_flags import PAGE, page
from utils.config import PRESETS, RECIPES, FlagParser, PretrainConfig, TrainConfig, resolve
from utils.pipeline import CHOICES


def test_the_page_and_the_scripts_are_what_the_tool_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(document_flags, "PAGE", tmp_path / "flags.md")
    monkeypatch.setattr(document_flags, "SCRIPTS", tmp_path)
    monkeypatch.setattr(document_flags, "DATASETS_PAGE", tmp_path / "datasets.md")
    (tmp_path / "datasets.md").write_text((ROOT / "docs/datasets.md").read_text().replace("| `SST` |", "| `Old` |"))
    assert document_flags.main([]) == 0
    pairs = {PAGE: tmp_path / "flags.md", ROOT / "docs/datasets.md": tmp_path / "datasets.md"}
    pairs |= {ROOT / f"scripts/{name}.sh": tmp_path / f"{name}.sh" for name in DATASETS}
    for committed, written in pairs.items():
        assert committed.read_text() == written.read_text(), "run python -m tests.tools.document_flags"


@pytest.mark.parametrize("stage, line", [(PretrainConfig, "# stage 1: "), (TrainConfig, "# stage 2: ")])
@pytest.mark.parametrize("name", DATASETS)
def test_the_settings_that_a_script_shows_are_all_that_differs_from_the_defaults(name, stage, line):
    shown, = [text for text in (ROOT / f"scripts/{name}.sh").read_text().splitlines() if text.startswith(line)]
    parser = FlagParser(name)
    parser.add_flags(stage, CHOICES)
    given = vars(parser.parse_args(shlex.split(shown.removeprefix(line))))
    prefix = "mean" if stage is PretrainConfig else "diffusion"
    assert {"recipe", "batch_size", f"{prefix}_epochs", f"{prefix}_lr"} <= given.keys()
    assert dataclasses.replace(stage(), data_name=name, **given) == resolve(stage, {"data_name": name})


@pytest.mark.parametrize("stage, column", [(PretrainConfig, 2), (TrainConfig, 3)])
def test_every_flag_stands_there_once_for_each_stage_with_its_default(stage, column):
    lines = page().split("## Recipes")[0].splitlines()
    rows = [line.split(" | ") for line in lines if re.match(r"\| `--\w+` \| ", line)]
    found = {row[0][2:].strip("` -"): row[column - 1].strip("`") for row in rows if row[column - 1].strip()}
    of_stage = dataclasses.fields(stage)
    assert len([row for row in rows if row[column - 1].strip()]) == len(of_stage)
    words = {True: "on", False: "off", None: "none", "": "none"}
    assert found == {item.name: str(words.get(item.default, item.default) if item.default in ("", None)
                                    or item.type is bool else item.default) for item in of_stage}


def test_every_recipe_and_preset_stands_there_with_its_flags():
    text = page()
    assert all(f"| `{name}` | " in text for name in RECIPES)
    assert all(f" | {name} | " in text for presets in PRESETS.values() for name in presets)
    assert "| `published` | stage 1 | `--objective mse`, `--select mae`, `--patience 50`, `--no-climatology`" in text
    assert "| SST | stage 1 | `--mean_channels 64`, `--mean_calendar_channels 32`, `--mean_layers 8` |" in text
