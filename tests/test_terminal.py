"""Printed text cannot control a terminal, and a closed output does not end the program."""

import io
import os
import sys

import pytest
from tqdm import tqdm

from utils.program import Stream, printable, run_main


@pytest.mark.parametrize("name, shown", [
    ("a\x1b[31mred", r"a\x1b[31mred"), ("bell\x07", r"bell\x07"), ("\x9b2J", r"\x9b2J"),
    ("over\rwritten", r"over\rwritten"), ("evil\u202egnp.csv", r"evil\u202egnp.csv"), ("\udcff", r"\udcff"),
    ("Übung 北京\t°C\n", "Übung 北京\t°C\n"),
])
def test_control_characters_are_written_out_and_all_other_text_stays(name, shown):
    assert printable(name) == shown


def test_names_in_errors_and_notes_reach_no_terminal_as_they_are(capsys):
    def main():
        print("note: column \x1b]0;title\x07")
        raise ValueError("column \x1b[2J\nand more\x9b")

    with pytest.raises(SystemExit):
        run_main(main)
    said = capsys.readouterr()
    assert said.out == "note: column \\x1b]0;title\\x07\n"
    assert said.err == "error: column \\x1b[2J and more\\x9b\n"


def test_progress_bars_move_the_cursor():
    plain, wrapped = io.StringIO(), io.StringIO()
    for file in (plain, Stream(wrapped)):
        with tqdm(total=2, file=file, ncols=60, bar_format="{desc}{n}") as outer, tqdm(
                total=2, file=file, ncols=60, bar_format="{desc}{n}", position=1) as inner:
            outer.update(2)
            inner.update(1)
    assert "\x1b[A" in plain.getvalue() and wrapped.getvalue() == plain.getvalue()


def test_a_stream_without_a_reader_loses_what_is_written_and_keeps_why():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as file:
        stream = Stream(file)
        for _ in range(3):
            print("x" * 100_000, file=stream, flush=True)
        assert isinstance(stream.error, BrokenPipeError) and stream.fileno() == writer
    assert Stream(sys.__stdout__).error is None
