"""docs/first_forecast.ipynb runs from top to bottom, and opens in Jupyter."""

import json
import re
import subprocess
import sys

from conftest import ROOT
from matplotlib.image import imread

PATH = ROOT / "docs/first_forecast.ipynb"
NOTEBOOK = json.loads(PATH.read_text())
CELLS = NOTEBOOK["cells"]
TEXT = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
CODE_CELLS = [cell for cell in CELLS if cell["cell_type"] == "code"]
CODE = ("data", "models", "scripts", "utils", "main_pretrain.py", "main_train.py")


def test_it_keeps_to_the_format_of_notebooks():
    """The rules of nbformat 4.5 that this one needs; see its JSON schema."""
    assert NOTEBOOK.keys() == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    identities = [cell["id"] for cell in CELLS]
    assert len(set(identities)) == len(CELLS) and all(re.fullmatch(r"[\w-]{1,64}", each) for each in identities)
    keys = {"markdown": {"cell_type", "id", "metadata", "source"}}
    keys["code"] = keys["markdown"] | {"execution_count", "outputs"}
    assert all(cell.keys() == keys[cell["cell_type"]] and cell["metadata"] == {} for cell in CELLS)
    assert all(isinstance(line, str) for cell in CELLS for line in cell["source"])


def test_it_is_stored_with_the_outputs_of_one_run():
    assert [cell["execution_count"] for cell in CODE_CELLS] == list(range(1, len(CODE_CELLS) + 1))
    kinds = {cell["id"]: {kind for output in cell["outputs"] for kind in output.get("data", [output.get("name")])}
             for cell in CODE_CELLS}
    assert "error" not in {output["output_type"] for cell in CODE_CELLS for output in cell["outputs"]}
    assert "stdout" in kinds["stages"] and "text/html" in kinds["forecast"] and "image/png" in kinds["fan"]
    assert CELLS[1]["source"] == ["%pip install -q -r ../requirements.txt"]
    assert "WARNING" not in str(CELLS[1]["outputs"]), "the warnings of an installer are those of one machine"


def test_every_page_that_it_links_to_exists():
    assert all((PATH.parent / link).exists() for link in re.findall(r"\]\(([^)]+)\)", TEXT))


def test_it_runs_from_top_to_bottom(tmp_path):
    """As a script of its cells, in a folder docs of its own beside links to the code."""
    for name in CODE:
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").mkdir()
    cells = ["".join(cell["source"]) for cell in CODE_CELLS if not cell["source"][0].startswith("%")]
    (tmp_path / "docs/cells.py").write_text("\n".join([*cells, "print(table.tail(3))", "print(forecast.times[0])"]))
    run = subprocess.run([sys.executable, "cells.py"], cwd=tmp_path / "docs", capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    stored, = ("".join(cell["outputs"][0]["data"]["text/plain"]) for cell in CODE_CELLS if cell["id"] == "write")
    assert run.stdout.endswith(f"{stored}\n2013-09-01T00:00\n")  # the table ends with August
    folder = tmp_path / "docs/first_forecast"
    metrics = json.loads((folder / "save/diffusion/flights_24_12/metrics.json").read_text())
    assert metrics["windows"] == 48 and 0 < metrics["CRPS"] < 1
    assert imread(folder / "fan.png").std() > 0.05
