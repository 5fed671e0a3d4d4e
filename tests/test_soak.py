"""The soak finds nothing to report, and reports a loader or a resume that is broken on purpose."""

import json
import os

import numpy as np
import pytest
import torch

from data import fields
from tests.tools import bad_inputs, soak
from tests.tools.bad_inputs import BadInput, fault, pick
from utils.training import loop
from utils.training.checkpoint import TEMPORARY


@pytest.fixture(autouse=True, scope="module")
def threads():
    """As many threads after these tests as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def soaked(tmp_path_factory):
    """A tiny soak, both parts by the program itself: exit status and figures."""
    path = tmp_path_factory.mktemp("soak") / "soak.json"
    status = soak.main(["--kills", "2", "--inputs", "20", "--json", str(path)])
    return status, json.loads(path.read_text())


def test_a_tiny_soak_tries_what_it_was_asked_for_and_loses_nothing(soaked):
    status, figures = soaked
    assert status == 0
    for part, count in (("kills", 2), ("inputs", 20)):
        assert (figures[part]["tried"], figures[part]["survived"], figures[part]["lost"]) == (count, count, 0)
        assert sum(kind["tried"] for kind in figures[part]["by_kind"].values()) == count
    assert set(figures["inputs"]["by_kind"]) == set(soak.KINDS)
    assert figures["versions"]["torch"] == torch.__version__


def test_a_run_that_does_not_resume_bit_exactly_is_lost(tmp_path, monkeypatch):
    """Steps whose randomness depends on the process: after a kill another run comes out."""
    monkeypatch.setattr(loop, "seed_step", lambda *index: torch.manual_seed(os.getpid()))
    figures = soak.soak_kills(1, 0, tmp_path)
    assert figures["lost"] == figures["tried"] == 1 and figures["trainings"] >= 1
    assert any("weights" in place for place in figures["what_was_lost"][0]["differs"])


def test_a_loader_that_lets_infinite_values_through_or_crashes_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "KINDS", {"array": bad_inputs.bad_array})
    assert soak.soak_inputs(6, 0, tmp_path, tmp_path)["lost"] == 0
    monkeypatch.setattr(fields, "read_file", lambda path, variable: {}["slip"])
    figures = soak.soak_inputs(6, 0, tmp_path, tmp_path)
    assert figures["lost"] > 0 and "exit status" in figures["what_was_lost"][0]["fault"]


def test_inputs_are_a_function_of_seed_and_number(tmp_path):
    texts = []
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        random = np.random.default_rng([0, 5 if name != "three" else 6])
        texts.append(bad_inputs.bad_array(random, tmp_path / name).text)
    assert texts[0] == texts[1] != texts[2]


LINE = "error: a.npy: not readable\n"


@pytest.mark.parametrize("status, said, after, words", [
    (2, LINE, {}, None),
    (0, "", {}, None),
    (1, LINE, {}, "exit status 1"),
    (70, "Traceback", {}, "exit status 70"),
    (2, "Traceback\n" + LINE, {}, "one line"),
    (2, LINE + LINE, {}, "one line"),
    (2, "error: something\n", {}, "names none of"),
    (2, LINE, {f".model.pt.1{TEMPORARY}": b""}, "half written"),
    (2, LINE, {"new": b""}, "files have changed"),
])
def test_only_one_line_that_names_the_input_and_changes_no_file_is_a_clean_error(status, said, after, words):
    found = fault(BadInput("a", print, ("a.npy",)), status, said, {}, after)
    assert (found is None) if words is None else (words in found)


def test_outcomes_differ_in_any_bit():
    one = {"a": torch.tensor([1.0]), "b": [1.0, {"c": 2}]}
    assert soak.unequal(one, one) == []
    assert soak.unequal(one, {**one, "a": torch.tensor([1.0 + 1e-6])}) == ["/a"]
    assert soak.unequal(one, {**one, "b": [1.0, {"c": 3}]}) == ["/b/1/c"]
    assert soak.unequal(one, {"a": one["a"]}) == [""]


def test_pick_reaches_every_option():
    random = np.random.default_rng(0)
    assert {pick(random, (1, 2, 3)) for _ in range(50)} == {1, 2, 3}
