"""What the README and the pages of docs/ say exists."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from matplotlib.image import imread

import main_pretrain
import main_train
from scripts.paper import architecture
from scripts.paper.collect_results import BEGIN, DEFAULT, END, markdown, replace_between_marks
from utils.config import PretrainConfig, TrainConfig

PAGES = [ROOT / "README.md", ROOT / "save/README.md", ROOT / "data/dataset/README.md",
         *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text()
ALL_PAGES = "\n".join(page.read_text() for page in PAGES)
OTHER_FLAGS = {  # of torchrun, docker, pip and jupyter, up to their first hyphen; one that an example misspells
    "nproc_per_node", "nnodes", "rdzv_backend", "rdzv_id", "rdzv_endpoint", "max", "build", "rm", "gpus", "index",
    "inplace", "epoch",
}


def flags_of_the_programs() -> set[str]:
    items = [item for config in (PretrainConfig, TrainConfig) for item in dataclasses.fields(config)]
    fields = {name for item in items for name in (item.name, item.metadata["alias"]) if name}
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


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in ("changelog.md", "log.md")],
                         ids=lambda page: str(page.relative_to(ROOT)))  # these two tell of earlier flags
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


def test_nothing_is_left_to_be_filled_in():
    assert not re.findall(r"\{[A-Z_]+\}|TODO|FIXME|^[A-Z]+_[A-Z_]+$", ALL_PAGES, re.MULTILINE)


def test_no_score_is_typed_into_the_model_card():
    card = (ROOT / "docs/model_card.md").read_text().replace("2502.11013", "")
    assert not re.findall(r"\d\.\d", card)


def test_the_results_in_the_readme_are_those_of_the_table():
    """A row between the marks is the mean over seeds of the default's runs in docs/results/12_12.csv."""
    runs = pd.read_csv(ROOT / "docs/results/12_12.csv")
    if "ensemble" not in runs:
        pytest.skip("docs/results/12_12.csv is by an earlier version: run bash scripts/paper/reproduce_12_12.sh")
    block = README.split(BEGIN)[1].split("Scores in which another row is ahead")[0]
    lines = [line for line in block.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    means = runs.groupby(["data_name", "method"]).CRPS.mean()
    wanted = {data_name: means[data_name, DEFAULT] for data_name in sorted(set(runs.data_name))}
    rows = [row for row in rows if row[head.index("score")] == "CRPS"]
    assert [row[1] for row in rows] == list(wanted) and {"BikeDC", "Los_Speed", "MobileNJ", "SST"} <= {*wanted}
    for row in rows:
        assert f"{wanted[row[1]]:.4f}" in row[head.index("default")]


def test_the_figures_of_reliability_are_those_of_the_soak_and_of_the_benchmark_of_speed():
    block = (ROOT / "docs/reliability.md").read_text().split("## Measured")[1].split("\n## ")[0]
    soak, *sizes = (json.loads((ROOT / f"docs/results/{name}.json").read_text())
                    for name in ("soak", "speed_1000_nodes", "speed_10000_nodes"))
    for part in (soak["kills"], soak["inputs"]):
        assert f"| {part['tried']} | {part['survived']} | {part['lost']} |" in block
    for size in sizes:
        step, forecast = (size["seconds"][what]["cost"] for what in ("training step", "forecast"))
        nodes = size["nodes"]
        assert (f"| [{nodes:,}](results/speed_{nodes}_nodes.json) | {step:.2g} s | {forecast:.2g} s | "
                f"{size['peak_memory_mb'] / 1000:.1f} GB |") in block
    small, large = (size["seconds"]["forecast"]["cost"] / size["nodes"] for size in sizes)
    assert large < 1.5 * small, "about linear"


def test_tables_replace_only_what_stands_between_the_marks():
    text = f"before\n{BEGIN}old\n{END}\nafter"
    replaced = replace_between_marks(text, markdown(["a", "b"], [["1", "2"]]))
    assert replaced == f"before\n{BEGIN}\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n{END}\nafter"
    assert replace_between_marks(replaced, "x").count("| 1 |") == 0
    with pytest.raises(ValueError, match="marks"):
        replace_between_marks("no marks", "x")


def sentences(page: str) -> list[str]:
    """Sentences of a page's prose, without code, tables, pictures and the block that a script writes."""
    prose = re.sub(r"```.*?```|<!-- results.*?end of results -->|^(?:\|| {4}).*?$|!\[.*?\]\(.*?\)", "", page,
                   flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", prose)
    return [sentence for block in re.split(r"\n\s*\n|\n- |\n\d\. |\n#+ ", prose)
            for sentence in re.split(r"[.?!]\**\s", " ".join(block.split()) + " ")]


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in (
    "changelog", "contributing", "data_contract", "datasets", "forecasting", "log", "method", "reliability", "report",
    "scores"))])
def test_no_sentence_is_longer_than_thirty_words(page):
    long = [sentence for sentence in sentences((ROOT / page).read_text()) if len(sentence.split()) > 30]
    assert long == []


def test_the_claim_of_the_first_lines_is_that_of_the_tables():
    """CRPS of the default below that of the paper's CoST, on each dataset that both have."""
    ours, paper = (pd.read_csv(ROOT / f"docs/results/{name}.csv") for name in ("12_12", "published_12_12"))
    ours = ours[ours.method == TrainConfig.recipe].groupby("data_name").CRPS.mean()
    ratio = (ours / paper[paper.method == "CoST"].set_index("data_name").CRPS).dropna()
    words = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}[len(ratio)]
    claim = (f"On the {words} datasets of the paper measured so far, the CRPS of the default is "
             f"{1 - ratio.max():.0%} to {1 - ratio.min():.0%} lower")
    assert claim.replace("%", " %") in " ".join(README.split())


def test_what_is_said_of_files_of_ones_own_is_what_the_panel_shows():
    table = pd.read_csv(ROOT / "docs/results/panel.csv")
    ratio, node = table.ratio, table.worst_node_ratio
    assert (f"On {(node > 1.1).sum()} the CRPS of at least one node is more than 10 % higher, "
            f"at most {node.max():.1f} times as high") in " ".join(README.split())
    lower, worst = round(100 * (1 - np.exp(np.log(ratio).mean()))), round(100 * (ratio.max() - 1))
    assert f"On {len(ratio)} public fields of many kinds, the CRPS of the default is {lower} % lower" in README
    assert f"On {(ratio > 1.02).sum()} of them it is more than 2 % higher, at most {worst} %" in README
    series = pd.read_csv(ROOT / "docs/results/m3.csv")
    ratio = series.cost / series[["persistence", "climatology", "seasonal_naive", "ridge"]].min(axis=1)
    theta, ets = (round(100 * (np.exp(np.log(series[name] / series.cost).mean()) - 1)) for name in ("theta", "ets"))
    lower, worst = round(100 * (1 - np.exp(np.log(ratio).mean()))), round(100 * (ratio.max() - 1))
    text = (f"On {len(series)} monthly series of the M3 competition that were held out, one seed, it is {lower} % "
            f"lower. On {(ratio > 1.02).sum()} of these it is more than 2 % higher, at most {worst} %. Theta and ETS, "
            f"fitted again before every forecast, have a CRPS {theta} % and {ets} % higher than the default")
    assert text in " ".join(README.split())
    series = pd.read_csv(ROOT / "docs/results/tourism.csv").query("part == 'held'")
    ratio = series.cost / series[["persistence", "climatology", "seasonal_naive", "ridge"]].min(axis=1)
    lower, worst = round(100 * (1 - np.exp(np.log(ratio).mean()))), round(100 * (ratio.max() - 1))
    assert (f"On {len(series)} monthly series of the Tourism competition that were held out, one seed, it is {lower} % "
            f"lower than that of each series' best simple forecaster. On {(ratio > 1.02).sum()} of these it is more "
            f"than 2 % higher, at most {worst} %") in " ".join(README.split())


def test_what_the_trained_network_gains_is_what_the_joint_scores_show():
    runs = pd.read_csv(ROOT / "docs/results/joint_12_12.csv")
    mean = runs[runs.ensemble == "random"].groupby(["data_name", "method"]).mean(numeric_only=True)
    ours, start = (mean.xs(name, level="method") for name in ("cost", "cost_untrained"))
    increments, maxima = (round(100 * (1 - ours[name] / start[name])["Los_Speed"])
                          for name in ("CRPS_increments", "CRPS_max"))
    near, before = (each.texture_near["SST"] for each in (ours, start))
    assert f"lowers that of increments by {increments} % and that of regional maxima by {maxima} %." in README
    assert f"between neighbours are {near:.2f} times those of the errors, without it {before:.2f} times." in README


def test_the_limit_that_the_skewed_oracle_shows_is_its_ratio():
    runs = json.loads((ROOT / "docs/results/oracle_skew.json").read_text())["runs"]
    assert f"CRPS is {100 * (runs[0]['ratio']['CRPS'] - 1):.1f} % above that of the exact forecaster" in README


def test_the_lines_of_python_run_as_typed(tmp_path):
    """After the demo: here a small run on the first hours of its dataset, under the name of the demo's folder."""
    program, = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    values = np.load(ROOT / "data/dataset/NYCFlights.npz")["values"]
    np.save(tmp_path / "hours.npy", values[:1200])
    flags = ["--data_path", str(tmp_path / "hours.npy"), "--freq", "1h", "--start", "2013-01-01", "--data_name",
             "flights", "--run_name", "demo", "--save_dir", str(tmp_path / "save"), "--epochs", "1", "--channels", "4",
             "--layers", "1", "--networks", "1", "--nsample", "4", "--sample_steps", "2", "--test_windows", "4",
             "--batch_size", "128", "--device", "cpu"]
    assert main_pretrain.main(flags) == 0 and main_train.main(flags) == 0
    (tmp_path / "save/diffusion/flights_12_12_demo").rename(tmp_path / "save/diffusion/NYCFlights_12_12_demo")
    (tmp_path / "data").symlink_to(ROOT / "data")
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stderr
    assert "2013-10-2" in run.stdout  # the steps of a history after 2013-10-20


def test_the_figure_of_the_two_stages_is_what_its_script_draws(tmp_path):
    assert architecture.main(["--output", str(tmp_path / "drawn.png")]) == 0
    stored, drawn = imread(ROOT / "docs/architecture.png"), imread(tmp_path / "drawn.png")
    assert stored.shape == drawn.shape and abs(stored - drawn).mean() < 0.02
