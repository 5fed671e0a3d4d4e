"""The house stays as it is meant: who imports whom, nothing that runs strangers' code, nothing loose at the top."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGES = ("data", "models", "scripts", "utils")
CODE = sorted([*ROOT.glob("*.py"), *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py")),
               *(ROOT / "tests/tools").glob("*.py")])
TESTS = sorted((ROOT / "tests").glob("*.py"))
FOR_PYTHON_USERS = ROOT / "models/pretrained.py"  # where a trained model meets what its checkpoint says of the field
TOP_LEVEL = {
    ".ci", ".dockerignore", ".gitattributes", ".github", ".gitignore", "CITATION.cff", "LICENSE", "README.md", "data",
    "docs", "main_pretrain.py", "main_train.py", "models", "pyproject.toml", "requirements-dev-lock.txt",
    "requirements-dev.txt", "requirements-extras.txt", "requirements-lock.txt", "requirements-lowest-lock.txt",
    "requirements-panel.txt", "requirements.txt", "save", "scripts", "tests", "utils",
}
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load",
                   "pandas.read_pickle", "pd.read_pickle", "torch.hub.load"}


def imports(tree: ast.AST) -> set[str]:
    """Modules that a file imports by absolute name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
    return found


def top_imports(file) -> set[str]:
    return {name.split(".")[0] for name in imports(ast.parse(file.read_text()))}


def parts_of_programs(source: str) -> list[str]:
    """What a source takes from the two programs beside running them by `main`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in PROGRAMS:
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in PROGRAMS and alias.asname]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in PROGRAMS and node.attr != "main":
            found.append(ast.unparse(node))
    return found


def dangers(source: str) -> list[str]:
    """What in a source could run code that came with data or from a user's string."""
    tree, found = ast.parse(source), []
    found += [f"import {name}" for name in sorted(imports(tree)) if name.split(".")[0] in FORBIDDEN_MODULES]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        if name in FORBIDDEN_CALLS:
            found.append(name)
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if options.get("shell", "False") != "False":
            found.append("shell")
        if options.get("allow_pickle", "False") != "False":
            found.append("allow_pickle")
    return found


def test_there_is_code_to_look_at():
    assert {"main_pretrain.py", "windows.py", "checkpoint.py", "diffusion.py"} <= {file.name for file in CODE}
    assert len(TESTS) > 5


ORDER = "data", "models", "utils", "scripts"  # each may import itself and those before it
PROGRAMS = {"main_pretrain", "main_train"}


@pytest.mark.parametrize("package", ORDER)
def test_scripts_import_utils_these_models_and_these_data_and_none_the_other_way(package):
    forbidden = {*ORDER[ORDER.index(package) + 1:], "tests"}
    for file in set((ROOT / package).rglob("*.py")) - {FOR_PYTHON_USERS}:
        of_paper = file.is_relative_to(ROOT / "scripts/paper")  # trains what it compares
        assert not top_imports(file) & (forbidden if of_paper else forbidden | PROGRAMS), file


def test_what_a_user_runs_needs_nothing_that_makes_the_tables():
    for file in (ROOT / "scripts").glob("*.py"):
        assert not [name for name in imports(ast.parse(file.read_text())) if name.startswith("scripts.paper")], file


def test_the_way_in_for_python_users_alone_goes_round_that_order_and_no_further_than_utils():
    assert top_imports(FOR_PYTHON_USERS) & {*ORDER, *PROGRAMS, "tests"} == {"data", "utils"}


@pytest.mark.parametrize("source, found", [
    ("from main_train import main", ["main_train"]), ("import main_train\nmain_train.CHOICES", ["main_train.CHOICES"]),
    ("import main_train as program", ["main_train"]),
    ("import main_pretrain\nmain_pretrain.main(flags)\nrun(main_pretrain)", []),
])
def test_the_search_for_parts_of_programs_finds_them(source, found):
    assert parts_of_programs(source) == found


def test_programs_are_run_by_scripts_and_give_them_no_parts():
    for file in CODE:
        assert parts_of_programs(file.read_text()) == [], file
    assert not set.union(*(top_imports(ROOT / f"{name}.py") for name in PROGRAMS)) & {*PROGRAMS, "scripts", "tests"}


def test_the_mathematics_of_the_diffusion_imports_torch_and_the_standard_library_only():
    file = ROOT / "models/diffusion.py"
    assert top_imports(file) <= {"torch"} | sys.stdlib_module_names
    for node in ast.walk(ast.parse(file.read_text())):  # nor does it reach out to other modules
        assert not (isinstance(node, ast.ImportFrom) and node.level > 0)


def test_no_relative_import_leaves_its_package():
    for file in CODE:
        depth = len(file.relative_to(ROOT).parts) - 1
        for node in ast.walk(ast.parse(file.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level > depth), file


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_can_run_code_that_came_with_data(file):
    assert dangers(file.read_text()) == []


@pytest.mark.parametrize("source", [
    "import pickle", "from pickle import loads", "import dill as d", "eval(text)", "exec(text)", "os.system(line)",
    "yaml.load(file)", "subprocess.run(line, shell=True)", "np.load(path, allow_pickle=True)",
    "np.load(path, allow_pickle=flag)", "torch.load(path)", "torch.load(path, weights_only=False)",
    "def f():\n    import joblib",
])
def test_the_search_for_such_code_finds_it(source):
    assert len(dangers(source)) == 1


def test_the_search_leaves_harmless_code_alone():
    assert dangers("model.eval()\nnp.load(path, allow_pickle=False)\ntorch.load(path, weights_only=True)\n"
                   "subprocess.run(['ls'])\nnet.compile()") == []


def test_torch_is_required_in_a_version_whose_weights_only_is_safe():
    """faults 56: holes of it were closed in 2.6 and 2.10."""
    bound, = re.findall(r"^torch>=(\d+)\.(\d+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert tuple(map(int, bound)) >= (2, 10)


def test_the_lowest_lock_file_holds_the_lower_bounds_of_the_requirements():
    """Torch and ruff aside, whose lowest versions are not tried."""
    locked = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements-lowest-lock.txt").read_text(), re.MULTILINE))
    for name in ("requirements.txt", "requirements-extras.txt", "requirements-dev.txt"):
        bounds = dict(re.findall(r"^([\w-]+)>=(\S+)", (ROOT / name).read_text(), re.MULTILINE))
        assert bounds
        for package in bounds.keys() - {"torch", "ruff"}:
            assert f"{locked[package.lower()]}.".startswith(f"{bounds[package]}."), package


def test_nothing_is_committed_at_the_top_that_has_no_place_there():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: no list of committed files")
    top = {path.split("/")[0] for path in listed.stdout.split("\0") if path}
    assert {"main_pretrain.py", "main_train.py", "data", "models", "utils", "tests"} <= top <= TOP_LEVEL


def test_every_module_says_what_it_is_for():
    silent = [file.relative_to(ROOT) for file in [*CODE, *TESTS]
              if file.stat().st_size and not ast.get_docstring(ast.parse(file.read_text()))]
    assert not silent


@pytest.mark.parametrize("package", ["utils.scores", "utils.output", "models", "data"])
def test_every_module_can_be_imported_first(package):
    """Each in a program of its own would take minutes: modules loaded by the one before are forgotten."""
    folder = ROOT / package.replace(".", "/")
    names = [f"{package}.{path.stem}" for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
    program = ("import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
               "    for loaded in [own for own in sys.modules if own.split('.')[0] in {'data', 'models', 'utils'}]:\n"
               "        del sys.modules[loaded]\n")
    done = subprocess.run([sys.executable, "-c", program, *names], cwd=ROOT, capture_output=True, text=True)
    assert names and done.returncode == 0, done.stderr
