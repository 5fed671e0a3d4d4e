"""One self-contained HTML page: nothing in it is fetched, every inserted text is escaped.

Policy of the page: its one script is named by its digest, pictures are inline, and the browser refuses all else.
"""

import base64
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from utils.output.plots import BLUE, INK, ORANGE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'"
LONG_TABLE = 40  # rows; of a longer one the print shows so many


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its name as an anchor, title, what it shows in words, how to read it, and its SVG."""

    name: str
    title: str
    alt: str
    caption: str
    svg: bytes
    wide: bool = False


@dataclass(frozen=True)
class Page:
    """What stands in the page; the sections are HTML (of `table` and `paragraph`), all other text is plain.

    fans, what the node picker draws: `unit`; `first`, the node shown first; `windows`, each with `name` and the labels
    of its `times`; `nodes`, each with `name`, `text` and, for every window, `history`, `observed` and the five
    `quantiles` 0.05, 0.25, 0.5, 0.75, 0.95. chosen: which nodes these are.
    """

    title: str
    summary: str
    warnings: list[str]
    pictures: list[Picture]
    fans: dict
    chosen: str
    sections: dict[str, str]  # scores, by_horizon, by_node, run

    def html(self) -> str:
        template, style, script = (Path(__file__).with_suffix(end).read_text() for end in (".html", ".css", ".js"))
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        items = "".join(f"<li>{escape(warning)}</li>" for warning in self.warnings)
        return Template(template).substitute(
            self.sections, title=escape(self.title), summary=escape(self.summary), policy=POLICY.format(digest),
            script=script, style=Template(style).substitute(ink=INK, blue=BLUE, orange=ORANGE),
            warnings=f'<ul class="warnings">{items}</ul>' if items else paragraph("Nothing was found."),
            chosen=escape(self.chosen), pictures="\n".join(map(_figure, self.pictures)), fans=script_json(self.fans),
        )


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def table(name: str, caption: str, columns: Iterable[str], rows: list[list], sortable: bool = True) -> str:
    """A table whose first column heads its rows; numbers are rounded for the eye and sorted by their exact value."""
    head = "".join(_heading(column, sortable) for column in columns)
    body = "\n".join("<tr>" + "".join(_cell(value, not place) for place, value in enumerate(row)) + "</tr>"
                     for row in rows)
    long = " long" if len(rows) > LONG_TABLE else ""
    if long:
        caption += f" A print shows the first {LONG_TABLE} rows in the order chosen."
    kind = "" if sortable else ' class="facts"'
    return (f'<div class="scroll{long}" tabindex="0" role="region" aria-label="{escape(name)}">'
            f"<table{kind}><caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
            f"<tbody>{body}</tbody></table></div>")


def number(value: float | None) -> str:
    """Four digits of a number; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"


def script_json(content: dict) -> str:
    """JSON that may stand in a script element: nothing in it can end that element, and it holds no NaN."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _heading(column: str, sortable: bool) -> str:
    if not sortable:
        return f'<th scope="col">{escape(column)}</th>'
    return f'<th scope="col" aria-sort="none"><button type="button">{escape(column)}</button></th>'


def _cell(value, heads_row: bool) -> str:
    if isinstance(value, int | float) or value is None:
        exact = "" if value is None or not math.isfinite(value) else repr(value)
        attributes, text = f' data-value="{exact}"', str(value) if isinstance(value, int) else number(value)
    else:
        attributes, text = "" if heads_row else ' class="text"', escape(str(value))
    return f'<th scope="row"{attributes}>{text}</th>' if heads_row else f"<td{attributes}>{text}</td>"


def _figure(picture: Picture) -> str:
    source = "data:image/svg+xml;base64," + base64.b64encode(picture.svg).decode()
    return (f'<figure id="picture-{escape(picture.name)}"{" class=wide" if picture.wide else ""}>'
            f"<h3>{escape(picture.title)}</h3>\n"
            f'<img alt="{escape(picture.alt)}" src="{source}">\n'
            f"<figcaption>{escape(picture.caption)}</figcaption></figure>")
