"""The shell scripts install into .venv alone, and only when nothing else is missing."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest
from conftest import ROOT

PYTHON = f"""#!/usr/bin/env bash
# Python that writes down its calls; to make an environment is to copy itself, to install does nothing.
echo "$0 $*" >> "$CALLS"
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" &&
                 echo "export VIRTUAL_ENV='$PWD/$3' PATH='$PWD/$3/bin':\\$PATH" > "$3/bin/activate" ;;
    "-m pip "* | main_*) ;;
    *) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def tree(tmp_path):
    """The scripts and what they need before anything is installed, beside an interpreter that only notes its calls."""
    for path in ("data/__init__.py", "data/registry.py", *(str(file.relative_to(ROOT))
                                                           for file in ROOT.glob("scripts/**/*.sh"))):
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / "tree" / path)
    (tmp_path / "tree/requirements-lock.txt").write_text(f"numpy=={version('numpy')}\nNo_Where==1.0\n")
    (tmp_path / "python3").write_text(PYTHON)
    (tmp_path / "python3").chmod(0o755)
    (tmp_path / "calls").touch()
    return tmp_path / "tree"


def start(tree, script: str, *flags: str, **environment: str):
    """What a script printed, and which interpreters were asked to do what."""
    plain = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    calls = tree.parent / "calls"
    done = subprocess.run(["bash", f"scripts/{script}", *flags], cwd=tree, capture_output=True, text=True, env={
        **plain, "PYTHON": str(tree.parent / "python3"), "CALLS": str(calls), "COST_DATA_DIR": str(tree / "none"),
        **environment})
    return done, calls.read_text()


def activated(tree) -> dict[str, str]:
    """The environment of a shell in which another environment is active."""
    other = tree.parent / "other"
    (other / "bin").mkdir(parents=True)
    shutil.copy(tree.parent / "python3", other / "bin/python")
    return {"VIRTUAL_ENV": str(other), "PATH": f"{other / 'bin'}:{os.environ['PATH']}"}


def test_without_an_environment_venv_is_made_and_filled_once(tree):
    for _ in range(2):
        done, calls = start(tree, "NYCFlights.sh", "--data_path", "own.csv")
        assert done.returncode == 0, done.stderr
    assert calls.count("-m venv .venv") == 1 and calls.count("-m pip install") == 1
    assert f"{tree}/.venv/bin/python -m pip install --quiet" in calls and "-r requirements-lock.txt" in calls
    assert f"{tree}/.venv/bin/python main_train.py --data_name NYCFlights --data_path own.csv" in calls


def test_an_active_environment_that_has_all_packages_is_used_and_left_as_it_is(tree):
    (tree / "requirements-lock.txt").write_text(f"numpy=={version('numpy')}\n")
    environment = activated(tree)
    done, calls = start(tree, "Oracle.sh", **environment)
    assert done.returncode == 0 and "pip" not in calls and not (tree / ".venv").exists()
    assert f"{environment['VIRTUAL_ENV']}/bin/python main_pretrain.py --data_name Oracle" in calls


def test_an_active_environment_that_lacks_packages_is_left_as_it_is_and_venv_is_used(tree):
    environment = activated(tree)
    before = sorted((tree.parent / "other").rglob("*"))
    done, calls = start(tree, "Oracle.sh", **environment)
    assert done.returncode == 0, done.stderr
    assert f"{environment['VIRTUAL_ENV']} is left as it is and .venv is used: it lacks No_Where==1.0" in done.stderr
    assert f"{environment['VIRTUAL_ENV']}/bin/python -m pip" not in calls and f"{tree}/.venv/bin/python -m pip" in calls
    assert f"{tree}/.venv/bin/python main_train.py" in calls
    assert sorted((tree.parent / "other").rglob("*")) == before


@pytest.mark.parametrize("script, flags, missing", [
    ("SST.sh", ["--seed", "1"], "none/Climate/SST.npy"), ("SolarPower.sh", [], "not public"),
    ("run_dataset.sh", ["SSt"], "did you mean SST"), ("paper/reproduce_12_12.sh", [], "none/CommTraffic/MobileNJ.npy"),
    ("BikeDC.sh", ["--data_dir", "elsewhere"], "elsewhere/Urban/BikeDC.npy"),
])
def test_missing_data_are_told_before_anything_is_installed(tree, script, flags, missing):
    done, calls = start(tree, script, *flags)
    assert done.returncode == 2 and missing in done.stderr and "Traceback" not in done.stderr
    assert "venv" not in calls and "pip" not in calls and not (tree / ".venv").exists()


def test_an_old_python_is_told_before_an_environment_is_made(tree):
    old = tree.parent / "old"
    old.write_text("#!/usr/bin/env bash\nexit 1\n")
    old.chmod(0o755)
    done, _ = start(tree, "Oracle.sh", PYTHON=str(old))
    assert done.returncode == 2 and "Python 3.11 or newer is needed" in done.stderr and not (tree / ".venv").exists()
