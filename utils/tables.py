"""Tables as Markdown, and pages of text as files."""

from collections.abc import Sequence
from pathlib import Path

from .checkpoint import write_atomically


def markdown(head: Sequence[str], rows: list[Sequence[str]]) -> str:
    """A table; `head` names the columns."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole, see `checkpoint.write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))
