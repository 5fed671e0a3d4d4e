"""Tables as Markdown."""

from collections.abc import Sequence


def markdown(head: Sequence[str], rows: list[Sequence[str]]) -> str:
    """A table; `head` names the columns."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
