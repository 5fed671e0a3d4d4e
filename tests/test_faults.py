"""The table of faults in docs/reliability.md is complete, and every test that it names is there."""

import ast
import re

import pytest
from conftest import ROOT

ROWS = re.findall(r"^\| (\d+)\. .* \| .* \| (.*) \|$", (ROOT / "docs/reliability.md").read_text(), re.MULTILINE)


def functions_of(module: str) -> set[str]:
    path = ROOT / "tests" / f"{module}.py"
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_the_table_has_all_64_faults_in_order():
    assert [int(number) for number, _ in ROWS] == list(range(1, 65))


@pytest.mark.parametrize("number, tests", ROWS, ids=[number for number, _ in ROWS])
def test_every_fault_names_tests_that_exist(number, tests):
    named = re.findall(r"`(\w+)::(\w+)`", tests)
    assert named and len(named) == tests.count("`") // 2
    for module, name in named:
        assert name.startswith("test_") and name in functions_of(module), f"{module}::{name}"
