"""What the README and the pages of docs/ say exists."""

import dataclasses
import json
import re

import pandas as pd
import pytest
from conftest import ROOT

from data.registry import DATASETS
from models.diffusion import NOISE_SCHEDULES, SAMPLERS
from scripts.paper.collect_results import BEGIN, END, SHOWN, markdown, replace_between_marks
from utils.config import REPLACED, PretrainConfig, TrainConfig

PAGES = [ROOT / "README.md", ROOT / "save/README.md", ROOT / "data/dataset/README.md",
         *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text()
ALL_PAGES = "\n".join(page.read_text() for page in PAGES)
OTHER_FLAGS = {  # of torchrun and docker, up to their first hyphen; one that an example misspells
    "nproc_per_node", "nnodes", "rdzv_backend", "rdzv_id", "rdzv_endpoint", "max", "build", "rm", "gpus", "epoch",
}


def flags_of_the_programs() -> set[str]:
    items = [item for config in (PretrainConfig, TrainConfig) for item in dataclasses.fields(config)]
    fields = {name for item in items for name in (item.name, item.metadata["alias"]) if name} | {*REPLACED}
    for script in [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "tests/tools").glob("*.py")]:
        fields |= set(re.findall(r'"--(\w+)"', script.read_text()))
    return fields | {"help"} | OTHER_FLAGS


def anchors(page) -> set[str]:
    """What a link to a page may end with: its headings in lower case, words joined by hyphens."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_linked_file_exists(page):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_linked_heading_exists(page):
    for file, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", page.read_text()):
        assert anchor in anchors(page.parent / file if file else page), f"{file}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_flag_that_is_named_exists(page):
    assert set(re.findall(r"--(?:no-)?([a-z]\w+)", page.read_text())) - flags_of_the_programs() == set()


def test_every_page_of_docs_is_one_click_from_the_readme():
    linked = {(ROOT / link).resolve() for link in re.findall(r"\]\((docs/[^)#]+)", README)}
    assert {page for page in (ROOT / "docs").iterdir() if page.suffix in (".md", ".ipynb")} <= linked


def test_every_script_and_module_that_is_named_exists():
    """Files of docs/results aside, which scripts write: a link to one of them must lead somewhere all the same."""
    named = r"(?<![\w./])((?:scripts|models|data|utils|tests|docs)/(?!results)[\w/]+\.(?:py|sh|json|md|csv|png))"
    paths = set(re.findall(named, ALL_PAGES)) - {"scripts/Tide.sh"}  # of an example
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []
    modules = set(re.findall(r"python -m ((?:scripts|tests)\.[\w.]+)", ALL_PAGES))
    assert len(modules) > 10 and all((ROOT / f"{name.replace('.', '/')}.py").exists() for name in modules)


def test_every_dataset_sampler_and_schedule_is_described():
    assert [name for name in DATASETS if f"`{name}`" not in README] == []
    method = (ROOT / "docs/method.md").read_text()
    for flag, choices in (("sampler", SAMPLERS), ("noise_schedule", NOISE_SCHEDULES)):
        assert [name for name in choices if f"`{name}`" not in method and f"`--{flag} {name}`" not in method] == []


def test_nothing_is_left_to_be_filled_in():
    assert not re.findall(r"\{[A-Z_]+\}|TODO|FIXME|^[A-Z]+_[A-Z_]+$", ALL_PAGES, re.MULTILINE)


def test_no_score_is_typed_into_the_model_card():
    card = (ROOT / "docs/model_card.md").read_text().replace("2502.11013", "")
    assert not re.findall(r"\d\.\d", card)


def test_the_results_in_the_readme_are_those_of_the_table():
    """A row between the marks is the mean over seeds of runs in docs/results/12_12.csv: the default's, or with lags."""
    runs = pd.read_csv(ROOT / "docs/results/12_12.csv")
    if "ensemble" not in runs:
        pytest.skip("docs/results/12_12.csv is by an earlier version: run bash scripts/paper/reproduce_12_12.sh")
    block = README.split(BEGIN)[1].split(END)[0]
    lines = [line for line in block.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    means = runs.groupby(["data_name", "method"]).CRPS.mean()
    wanted = {data_name + label: means[data_name, method] for data_name in sorted(set(runs.data_name))
              for method, label in SHOWN.items() if (data_name, method) in means}
    assert [row[1] for row in rows] == list(wanted) and {"BikeDC", "Los_Speed", "MobileNJ", "SST"} <= {*wanted}
    for row in rows:
        assert f"{wanted[row[1]]:.4f}" in row[head.index("CRPS")]


def test_the_figures_of_reliability_are_those_of_the_soak_and_of_the_benchmark_of_scale():
    block = (ROOT / "docs/reliability.md").read_text().split("## Measured")[1].split("\n## ")[0]
    soak, scale = (json.loads((ROOT / f"docs/results/{name}.json").read_text()) for name in ("soak", "scale"))
    for part in (soak["kills"], soak["inputs"]):
        assert f"| {part['tried']} | {part['survived']} | {part['lost']} |" in block
    row = scale["rows"][-1]
    assert f"{row['nodes']:,} nodes x {row['time_steps']:,} steps" in block
    assert f"{row['train_1']:.2f} and {row['train_2']:.2f} s a training window" in block
    assert f"{row['forecast']:.1f} s a forecast" in block
    assert f"{row['peak_mb'] / 1000:.1f} GB" in block and scale["linear"] and scale["memory_within_bound"]


def test_tables_replace_only_what_stands_between_the_marks():
    text = f"before\n{BEGIN}old\n{END}\nafter"
    replaced = replace_between_marks(text, markdown(["a", "b"], [["1", "2"]]))
    assert replaced == f"before\n{BEGIN}\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n{END}\nafter"
    assert replace_between_marks(replaced, "x").count("| 1 |") == 0
    with pytest.raises(ValueError, match="marks"):
        replace_between_marks("no marks", "x")
