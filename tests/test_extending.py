"""The worked examples of docs/extending.md are the whole change: a copy of the code runs and passes tests with them."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, random_values

PAGE = (ROOT / "docs/extending.md").read_text()
CODE = ("data", "docs", "models", "scripts", "tests", "utils", "main_pretrain.py", "main_train.py", "pyproject.toml")
BOTH_STAGES = """
import sys, main_pretrain, main_train
flags = sys.argv[1:]
sys.exit(main_pretrain.main(flags) or main_train.main(flags))
"""
TINY = ["--data_name", "Tide", "--mean_model", "linear", "--sampler", "heun", "--denoiser", "convolution", "--epochs",
        "1", "--history_len", "6", "--predict_len", "4", "--channels", "8", "--layers", "1", "--nsample", "6",
        "--sample_steps", "3", "--test_windows", "8", "--device", "cpu", "--networks", "1", "--batch_size", "32"]


def changes() -> list[tuple[str, str, str]]:
    """(file, text before, text after) of every diff on the page; the file is the last one named above it.

    The end of a line may be missing in the text: what follows there stays, so that other entries of a dict may stand.
    """
    found = []
    for match in re.finditer(r"```diff\n(.*?)```", PAGE, re.DOTALL):
        file = re.findall(r"^In `([\w/]+\.py)`", PAGE[:match.start()], re.MULTILINE)[-1]
        lines = match.group(1).splitlines(keepends=True)
        found.append((file, *("".join(line[1:] for line in lines if line[0] in kept).rstrip("\n")
                              for kept in (" -", " +"))))
    return found


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the code with every example of the page in it."""
    copy = tmp_path_factory.mktemp("copy")
    for name in CODE:
        if (ROOT / name).is_dir():
            aside = shutil.ignore_patterns("dataset", "results", "__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=aside)
        else:
            shutil.copy(ROOT / name, copy)
    for file, before, after in changes():
        source = (copy / file).read_text()
        assert source.count(before) == 1, f"{file} no longer holds:\n{before}"
        (copy / file).write_text(source.replace(before, after))
    return copy


def test_each_example_of_the_page_changes_one_or_two_files():
    examples = PAGE.split("worked examples")[1].split("\n### ")[1:]
    files = {text.splitlines()[0]: {*re.findall(r"^In `([\w/]+\.py)`", text, re.MULTILINE)} for text in examples}
    assert {"A dataset", "A sampler", "A mean model", "A denoiser", "A score"} <= files.keys()
    assert all(1 <= len(changed) <= 2 for changed in files.values())


def test_both_stages_run_with_the_examples(changed):
    """The new score is in metrics.json; an interval score is the width of its interval and a penalty."""
    (changed / "here/Climate").mkdir(parents=True)
    np.save(changed / "here/Climate/Tide.npy", random_values(240, 3))
    command = [sys.executable, "-c", BOTH_STAGES, *TINY, "--data_dir", "here"]
    run = subprocess.run(command, cwd=changed, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    metrics = json.loads((changed / "save/diffusion/Tide_6_4/metrics.json").read_text())
    assert metrics["sampler"] == "heun" and 0 < metrics["width90"] <= metrics["IS"]
    assert len(metrics["per_horizon"]["width90"]) == 4


def test_tests_that_go_over_all_entries_take_the_examples_and_pass(changed):
    assert in_copy(changed, "-m", "tests.tools.document_flags") == 0
    chosen = ("linear or heun or convolution or denoisers or flags or imports or registered or exactly_its_keys or "
              "(unit_of_the_field and around)")
    tests = (f"tests/test_{name}.py" for name in (
        "networks", "diffusion", "document_flags", "structure", "registry", "metrics", "evaluation"))
    assert in_copy(changed, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests, "-k", chosen) == 0


def in_copy(folder, *command) -> int:
    return subprocess.run([sys.executable, *command], cwd=folder, stdout=sys.stderr).returncode


def test_every_file_of_the_table_and_the_map_exists():
    named = re.findall(r"`((?:data|models|utils|scripts|tests)/[\w/]+\.(?:py|sh))`", PAGE)
    assert len(named) > 8 and [file for file in named if not (ROOT / file).exists() and file != "scripts/Tide.sh"] == []
