"""The report of a run: complete, with warnings, and safe against what is inserted."""

import dataclasses
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from string import Template
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, random_values

import main_pretrain
import main_train
from data.registry import DATASETS, get_spec
from scripts import report
from scripts.report import cautions, independent_block, spread_out
from utils.output.forecasts import in_space
from utils.output.report import number, table
from utils.scores.comparison import in_words
from utils.training import checkpoint

NASTY = ["</script><script>document.title='owned'</script>", "<img src=http://example.org/x>", "a & b \"c\" 'd'",
         "$x$ $y", "ä –", "", "${script}", "<!-- x"]
UNIT = "<i>cars</i> & trucks"
TINY = ["--data_name", "Tiny", "--history_len", "6", "--predict_len", "4", "--epochs", "1", "--channels", "8",
        "--layers", "1", "--networks", "1", "--batch_size", "32", "--nsample", "8", "--sample_steps", "2",
        "--test_windows", "10"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run on a 2 x 4 grid whose names and unit try to break out of the page, reported."""
    folder = tmp_path_factory.mktemp("report with space")
    values = 20 + 5 * np.sin(np.arange(300) / 4)[:, None] + random_values(300, 8) / 5
    np.savez(folder / "values.npz", values=values.astype(np.float32).reshape(300, 8), node_names=np.array(NASTY))
    spec = dataclasses.replace(get_spec("Oracle"), synthetic=False, files=("values.npz",), num_nodes=8, grid=(2, 4),
                               shape=((300, 8),), unit=UNIT, source=NASTY[0])
    places = ["--save_dir", str(folder), "--data_dir", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "Tiny", spec)
        assert main_pretrain.main([*TINY, *places]) == main_train.main([*TINY, *places, "--threshold", "20"]) == 0
        run_folder = folder / "diffusion/Tiny_6_4"
        before = {path.name: path.read_bytes() for path in run_folder.iterdir()}
        assert report.main([str(run_folder), "--data_dir", str(folder)]) == 0
        assert all((run_folder / name).read_bytes() == content for name, content in before.items())
        yield run_folder


class Page(HTMLParser):
    """What a page holds: its elements with their attributes, and its text."""

    VOID = {"meta", "link", "img", "path", "rect", "br"}

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def read(run):
    return Page(run / "report.html")


def test_the_page_is_whole_and_every_element_is_closed(read):
    assert read.open == []
    names = Template((ROOT / "utils/output/report.html").read_text()).get_identifiers()
    assert len(names) == 5 and not [name for name in names if f"${name}" in "".join(read.text)]
    assert [tag for tag, _ in read.elements if re.fullmatch(r"h\d", tag)][:2] == ["h1", "h2"]
    assert {"header", "main", "nav"} <= {tag for tag, _ in read.elements}
    assert read.all("html") == [{"lang": "en"}]


def test_nothing_in_the_page_is_fetched(read):
    addresses = [value for _, attributes in read.elements for name, value in attributes.items()
                 if name in ("src", "href", "srcset", "data", "action", "poster", "background")]
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert {tag for tag, _ in read.elements}.isdisjoint({"iframe", "object", "embed", "base", "form"})
    assert "url(" not in "".join(read.text) and "@import" not in "".join(read.text)


def test_every_link_leads_to_a_place_and_every_place_has_a_name_of_its_own(read):
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"].removeprefix("#") for link in read.all("a")} <= set(ids)
    assert {attributes["aria-labelledby"] for attributes in read.all("section")} <= set(ids)


def test_every_picture_is_described_and_every_table_explained(read):
    assert len(read.all("img")) == 10 and all(image["alt"] for image in read.all("img"))
    assert len(read.all("figcaption")) == len(read.all("figure")) == 10
    assert len(read.all("table")) == len([each for each in read.all("div") if each["class"] == "scroll"]) == 10


def test_nothing_inserted_becomes_part_of_the_page(read):
    assert not read.all("script") and not read.all("i")
    assert all("src" in image and image["src"].startswith("data:image/png") for image in read.all("img"))
    for name in NASTY:
        assert name in read.text or not name or any(name in text for text in read.text)


def test_simple_forecasters_are_scored_again_for_other_windows_only(run, tmp_path, monkeypatch):
    scored = []
    monkeypatch.setattr(report, "draw_pictures", lambda *_: [])
    monkeypatch.setattr(report, "score_simple", lambda *given: scored.append(given) or {})
    arguments = [str(run), "--data_dir", str(run.parents[1])]
    assert report.main([*arguments, "--output", str(tmp_path / "same.html")]) == 0 and not scored
    assert report.main([*arguments, "--output", str(tmp_path / "few.html"), "--windows", "3"]) == 0 and len(scored) == 1
    found = checkpoint.read_json(run / "metrics.json")["simple"]["persistence"]
    text = (tmp_path / "same.html").read_text()
    assert number(found["CRPS"]) in text and f"persistence {in_words(found['difference'])}" in text


def test_the_scores_are_those_of_the_run(read, run):
    metrics = checkpoint.read_json(run / "metrics.json")
    shown_in_page = {text.strip() for text in read.text}
    shown = [*(metrics[name] for name in report.SCORES), *metrics["per_horizon"]["CRPS"],
             *(side["CRPS_regions"] for side in (metrics["joint"], metrics["joint"]["control"]))]
    assert all(number(value) in shown_in_page for value in shown)
    assert "persistence" in read.text and "climatology" in read.text


def test_the_pictures_lie_beside_the_page_as_png_and_pdf(run):
    names = {path.name for path in (run / "pictures").iterdir()}
    assert names == {f"{name}.{ending}" for name in report.CAPTIONS for ending in ("png", "pdf")}


def test_data_settings_and_versions_are_told(read):
    text = " ".join(read.text)
    for fact in ("quantiles", "covariance", "history_len", torch.__version__, "2020-01-06", "licence"):
        assert fact in text


def test_no_script_may_run(read):
    policy, = (meta["content"] for meta in read.all("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_another_split_fewer_windows_and_another_place(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "draw_pictures", lambda *_: [])
    output = tmp_path / "other.html"
    arguments = [str(run), "--data_dir", str(run.parents[1]), "--split", "validation", "--windows", "3"]
    assert report.main([*arguments, "--output", str(output)]) == 0
    text = output.read_text()
    assert "3 windows of the validation split" in text and str(output) in capsys.readouterr().out
    assert "Few windows: 3 were scored" in text
    assert [path.name for path in tmp_path.iterdir()] == ["other.html"]


def test_a_stage_1_run_and_a_place_that_is_not_there_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match="not a stage-2 run"):
        report.main([str(run.parents[1] / "mean/Tiny_6_4")])
    for wrong in (["--output", str(tmp_path / "no/report.html")], ["--windows", "-1"], ["--split", "train"]):
        with pytest.raises(SystemExit, match="2"):
            report.main([str(run), *wrong])


def test_a_page_elsewhere_leaves_a_run_that_cannot_be_written_as_it_is(run, tmp_path, monkeypatch):
    def files():
        return {path: path.stat().st_mtime_ns for path in run.rglob("*")}

    before, mode = files(), run.stat().st_mode
    arguments, output = [str(run), "--data_dir", str(run.parents[1]), "--windows", "2"], tmp_path / "other.html"

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "check_writable", refuse)
        with pytest.raises(ValueError, match="Permission denied: .*report.html'; give --output FILE"):
            report.main(arguments)
    run.chmod(0o555)
    try:
        assert report.main([*arguments, "--output", str(output)]) == 0
    finally:
        run.chmod(mode)
    assert files() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.html", "other_pictures"]
    assert (tmp_path / "other_pictures/pit.png").is_file()
    with pytest.raises(ValueError, match="other.html: it exists; choose another name, or --overwrite"):
        report.main([*arguments, "--output", str(output)])


def test_a_checkpoint_never_leads_out_of_the_folder_of_its_runs(run, tmp_path, capsys):
    log = run.parents[1] / "mean" / run.name / "log.jsonl"
    assert set(report.read_logs(run, str(log.parent))) == {"stage 1", "stage 2"} and not capsys.readouterr().err
    relative = Path(run.parents[1].name, "mean", run.name)  # training ran beside the folder of the runs
    assert set(report.read_logs(run, str(relative))) == {"stage 1", "stage 2"} and not capsys.readouterr().err
    elsewhere = tmp_path / "mean" / run.name
    shutil.copytree(log.parent, elsewhere)
    (run.parents[1] / "mean/link").symlink_to(elsewhere)
    for foreign in (elsewhere, run.parents[1] / "mean/link", run, "/"):
        assert set(report.read_logs(run, str(foreign))) == {"stage 2"}
        assert "note: the log of stage 1 is left out" in capsys.readouterr().err


def test_numbers_have_four_digits_and_long_text_is_whole():
    assert [number(value) for value in (0.123456, 12345.6, None, float("nan"))] == ["0.1235", "1.235e+04", "–", "–"]
    rows = [[f"{'long' * 50} <i> & {k}", 0.123456, None] for k in range(100)] + [["b", float("nan"), 1.0]]
    text = table("caption", ["node", "CRPS", "MAE"], rows)
    assert text.count("<tr") == 102 and text.count("<td>0.1235</td>") == 100 and text.count("<td>–</td>") == 101
    assert f"{'long' * 50} &lt;i&gt; &amp; 99" in text and "<i>" not in text


def test_nodes_stand_in_their_places_of_the_grid():
    whole, parts = (SimpleNamespace(grid=(2, 2), kept=kept) for kept in (None, np.array([1, 2])))
    assert in_space(whole, np.arange(4.0)).tolist() == [[0, 1], [2, 3]]
    np.testing.assert_array_equal(in_space(parts, np.array([5.0, 6.0])), [[np.nan, 5], [6, np.nan]])


def test_the_nodes_shown_are_spread_from_best_to_worst():
    values = np.random.default_rng(0).permutation(100).astype(float)
    values[7] = np.nan
    chosen = spread_out(values, 10)
    assert len(chosen) == 10 and 7 not in chosen and (np.diff(chosen) > 0).all()
    assert {np.nanargmin(values), np.nanargmax(values)} <= set(chosen)
    assert np.diff(np.sort(values[chosen])).max() < 15
    assert spread_out(values[:3], 10).tolist() == [0, 1, 2]


def test_windows_far_apart_are_independent():
    assert independent_block(torch.arange(50), 24) == 24
    assert independent_block(torch.arange(50) * 10, 24) == 3
    assert independent_block(torch.arange(50) * 30, 24) == 1


GOOD = {"CRPS": 0.1, "QICE_ties": 0.004, "QICE_floor": 0.0032, "coverage90": 0.88, "coverage90_floor": 0.882,
        "spread_skill": 1.0, "windows": 500, "members": 50}


@pytest.mark.parametrize("change, baseline, trained, word", [
    ({}, 0.2, {"best_epoch": 3}, None), ({"windows": 30}, 0.2, {"best_epoch": 3}, "Few windows"),
    ({}, 0.1, {"best_epoch": 3}, "Persistence"), ({"QICE_ties": 0.01}, 0.2, {"best_epoch": 3}, "QICE"),
    ({"coverage90": 0.8}, 0.2, {"best_epoch": 3}, "80.0 %"), ({"coverage90": 0.95}, 0.2, {"best_epoch": 3}, "95.0 %"),
    ({"spread_skill": 0.7}, 0.2, {"best_epoch": 3}, "too narrow"),
    ({"spread_skill": 1.3}, 0.2, {"best_epoch": 3}, "too wide"), ({}, 0.2, {}, "not finished"),
    ({}, 0.2, {"best_epoch": 5}, "longer training"), ({}, 0.2, {"best_epoch": 0}, "No epoch"),
])
def test_a_reader_is_warned_of_what_is_off_and_of_nothing_else(data, change, baseline, trained, word):
    simple = {"persistence": {"CRPS": baseline}, "climatology": {"CRPS": 0.3}}
    *special, seed = cautions(GOOD | change, simple, trained, {"diffusion_epochs": 5, "seed": 3}, data, 10)
    assert "One seed (3)" in seed
    assert (word is None and special == []) or (len(special) == 1 and word in special[0])


def test_a_page_of_windows_without_observed_targets_says_so(data):
    nothing = dict.fromkeys(("CRPS", "QICE_ties", "coverage90", "spread_skill"))
    assert cautions(GOOD | nothing, {}, {}, {"seed": 3}, data, 10) == [
        "No target of these windows was observed: there are no scores."]
