"""scripts/Dockerfile, as far as it can be checked without building it."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

TEXT = (ROOT / "scripts/Dockerfile").read_text()
STEPS = [line.split(maxsplit=1) for line in re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.M)).splitlines()
         if line]


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in STEPS if name == instruction]


def is_ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out of the build: the last line that matches it or a folder above decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{pattern}(/.*)?", path):
            ignored = not line.startswith("!")
    return ignored


@pytest.fixture
def image(tmp_path):
    """The files that the image holds."""
    for step in arguments("COPY"):
        for source in step.split()[:-1]:
            whole = ROOT / source
            for file in [whole] if whole.is_file() else whole.rglob("*"):
                path = file.relative_to(ROOT)
                if file.is_file() and not is_ignored(str(path)):
                    to = tmp_path / path
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, to)
    return tmp_path


def test_it_knows_its_instructions():
    known = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "VOLUME", "CMD"}
    assert {name for name, _ in STEPS} == known


def test_everything_that_it_copies_exists_and_passes_dockerignore():
    sources = [source for step in arguments("COPY") for source in step.split()[:-1]]
    assert len(sources) > 8
    assert [source for source in sources if not (ROOT / source).exists() or is_ignored(source)] == []


@pytest.mark.parametrize("path, out", [
    (".git/config", True), ("save/mean/x/model.pt", True), ("tests/conftest.py", True), ("docs/architecture.png", True),
    ("data/dataset/Urban/BikeDC.npy", True), ("models/__pycache__/stid.pyc", True),
    ("data/dataset/NYCFlights.npz", False), ("models/diffusion.py", False), ("requirements-lock.txt", False),
])
def test_runs_arrays_and_tests_stay_out(path, out):
    assert is_ignored(path) is out


def test_what_it_holds_runs_both_programs(image):
    """With the data that comes with the project, from a folder that is not the repository."""
    code = "import sys, main_pretrain, main_train; sys.exit(main_pretrain.main() or main_train.main())"
    run = subprocess.run([sys.executable, "-c", code, "--dry_run", "--device", "cpu"], cwd=image, capture_output=True,
                         text=True)
    assert run.returncode == 0 and "NYCFlights: 8760 steps" in run.stdout, run.stderr
    assert not (image / "tests").exists()


def test_versions_are_fixed():
    """The base has a tag, which is not `latest`; packages come from the lock files or keep to them."""
    base, = [argument.removeprefix("BASE=") for argument in arguments("ARG") if argument.startswith("BASE=")]
    assert re.fullmatch(r"[\w./]+:[\w.-]+", base) and "latest" not in TEXT
    installs = re.findall(r"pip install ([^&]*)", " ".join(arguments("RUN")))
    assert len(installs) == 3 and all("requirements-lock.txt" in install for install in installs)
    assert re.search("^torch==", (ROOT / "requirements-lock.txt").read_text(), re.MULTILINE)  # what its `grep` finds


def test_it_runs_as_a_user_of_its_own_with_volumes_for_data_and_runs():
    user, = arguments("USER")
    assert user != "root" and f"useradd --create-home --uid 10001 {user}" in " ".join(arguments("RUN"))
    assert [name for name, _ in STEPS].index("USER") > max(
        place for place, (name, _) in enumerate(STEPS) if name in ("RUN", "COPY"))
    volumes = json.loads(arguments("VOLUME")[0])
    assert volumes == ["/data", "/cost/save"] and f"COST_DATA_DIR={volumes[0]}" in arguments("ENV")[0]
    assert f"{arguments('WORKDIR')[0]}/save" == volumes[1]


def test_the_command_is_a_list_and_any_other_may_take_its_place():
    assert json.loads(arguments("CMD")[0])[0] == "python" and not arguments("ENTRYPOINT")
