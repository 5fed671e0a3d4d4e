"""Whatever a script writes, it refuses before the work to replace what is not its own, and what it could not write."""

import importlib
import os
import re

import pytest
from conftest import ROOT

from utils.config import FlagParser, output_path
from utils.program import run_main
from utils.training.checkpoint import RUN_FILES

PROGRAMS = {path.stem: ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for folder in ("scripts", "scripts/paper", "tests/tools") for path in sorted((ROOT / folder).glob("*.py"))}
FLAGS = [(script, flag, kind) for script, module in PROGRAMS.items() for flag, kind in re.findall(
    r'"(--\w+)", type=(?:config\.)?(output|picture)_path', (ROOT / f"{module.replace('.', '/')}.py").read_text())]
ARGUMENTS = {"report": ["run"], "forecast": ["run"], "evaluate": ["run"],
             "score_oracle": ["run"], "check_data": ["file.csv"], "build_nycflights": ["--source", "."]}
OUTPUTS = pytest.mark.parametrize("script, flag, kind", FLAGS)


def refusal(capsys, script: str, *arguments) -> str:
    """What a script says on stderr before it ends with exit status 2."""
    program = importlib.import_module(PROGRAMS[script])
    with pytest.raises(SystemExit, match="2"):
        run_main(lambda: program.main([*ARGUMENTS.get(script, []), *map(str, arguments)]))
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def test_every_script_that_writes_is_looked_at():
    assert {script for script, _, _ in FLAGS} >= {
        "benchmark_speed", "build_nycflights", "check_data", "evaluate", "forecast",
        "report", "score_oracle", "soak"}


@OUTPUTS
def test_a_users_file_is_never_replaced(script, flag, kind, tmp_path, capsys):
    path = tmp_path / ("mine.png" if kind == "picture" else "mine.csv")
    path.write_text("mine")
    said = refusal(capsys, script, flag, path)
    assert said == f"error: {flag} {path}: it exists; choose another name, or --overwrite to replace it\n"
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {path.name: "mine"}


@OUTPUTS
def test_what_cannot_be_written_is_refused_before_the_work_whatever_the_flags(script, flag, kind, tmp_path, capsys):
    ending = ".png" if kind == "picture" else ".csv"
    read_only, folder, pipe, link = (tmp_path / f"{name}{ending}" for name in ("file", "folder", "pipe", "link"))
    read_only.write_text("mine")
    read_only.chmod(0o444)
    folder.mkdir()
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "nothing")
    for path, reason in ((read_only, "it is read-only"), (folder, "it is a folder"), (pipe, "it is no file but"),
                         (link, "it is no file but"), (tmp_path / f"no/file{ending}", "there is no folder"),
                         (tmp_path / ("x" * 300 + ending), "File name too long")):
        assert reason in refusal(capsys, script, flag, path, "--overwrite")
    if kind == "output":
        for device in ("/dev/null", "/dev/stdout"):
            assert "it is no file but a device" in refusal(capsys, script, flag, device, "--overwrite")
    else:
        assert "choose .png or .pdf" in refusal(capsys, script, flag, tmp_path / "picture.csv")
    assert read_only.read_text() == "mine" and len(list(tmp_path.iterdir())) == 4


def parser_of_a_table(default):
    parser = FlagParser("writes a table")
    parser.add_argument("--table", type=output_path, default=default)
    return parser


def test_the_default_of_a_flag_is_the_scripts_own_file(tmp_path):
    path = tmp_path / "table.md"
    path.write_text("written before")
    assert parser_of_a_table(path).parse_args([]).table == path
    with pytest.raises(ValueError, match="it exists"):
        parser_of_a_table(tmp_path / "other.md").parse_args(["--table", str(path)])
    assert parser_of_a_table(None).parse_args(["--table", str(path), "--overwrite"]).table == path


def test_two_outputs_in_one_file_are_refused(tmp_path, capsys):
    path = tmp_path / "scores"
    said = refusal(capsys, "score_oracle", "--json", path, "--table", path)
    assert said == f"error: --table {path}: another flag writes there too; choose another name\n"


@OUTPUTS
@pytest.mark.parametrize("name", RUN_FILES)
def test_a_file_of_a_run_is_never_replaced_whatever_the_flags(script, flag, kind, name, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.pt").write_text("weights")
    if kind == "picture" and not name.endswith(".png"):
        return
    assert f"{tmp_path / name}: a file of the run" in refusal(capsys, script, flag, tmp_path / name, "--overwrite")
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.pt"}
