"""docs/flags.md is what `utils/config.py` says."""

import dataclasses
import re

import pytest

from scripts import document_flags
from scripts.document_flags import PAGE, page
from utils.config import PRESETS, RECIPES, PretrainConfig, TrainConfig


def test_the_page_is_what_the_script_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(document_flags, "PAGE", tmp_path / "flags.md")
    assert document_flags.main([]) == 0
    assert PAGE.read_text() == (tmp_path / "flags.md").read_text(), "run python -m scripts.document_flags"


@pytest.mark.parametrize("stage, column", [(PretrainConfig, 2), (TrainConfig, 3)])
def test_every_flag_stands_there_once_for_each_stage_with_its_default(stage, column):
    rows = [line.split(" | ") for line in page().splitlines() if re.match(r"\| `--\w+` \| ", line)]
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
    assert "| `published` | SST | stage 1 | `--channels 64`, `--calendar_channels 32`, `--layers 8` |" in text
