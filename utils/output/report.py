"""One self-contained HTML page without scripts: nothing in it is fetched, every inserted text is escaped."""

import base64
import math
from html import escape
from pathlib import Path
from string import Template

import pandas as pd


def page(title: str, summary: str, sections: dict[str, str]) -> str:
    """The page; sections: HTML of `table`, `paragraph`, `bullets` and `picture` by title. All other text is plain."""
    template, style = (Path(__file__).with_suffix(ending).read_text() for ending in (".html", ".css"))
    links, parts = [], []
    for number, (name, content) in enumerate(sections.items()):
        links.append(f'<li><a href="#section-{number}">{escape(name)}</a></li>')
        parts.append(f'<section aria-labelledby="section-{number}">\n<h2 id="section-{number}">{escape(name)}</h2>\n'
                     f"{content}\n</section>")
    return Template(template).substitute(title=escape(title), summary=escape(summary), style=style,
                                         links="\n".join(links), sections="\n".join(parts))


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def bullets(texts: list[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="warnings">{items}</ul>'


def table(caption: str, columns: list[str], rows: list[list]) -> str:
    """A table with numbers of four digits; a dash where there is none."""
    with pd.option_context("display.max_colwidth", None):
        cells = pd.DataFrame(rows, columns=columns).to_html(index=False, border=0, na_rep="–", float_format=number)
    return f'<div class="scroll">{paragraph(caption)}{cells}</div>'


def number(value: float | None) -> str:
    """Four digits of a number; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"


def picture(title: str, caption: str, png: bytes, wide: bool) -> str:
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return (f'<figure{" class=wide" if wide else ""}>\n<h3>{escape(title)}</h3>\n'
            f'<img alt="{escape(title)}" src="{source}">\n<figcaption>{escape(caption)}</figcaption>\n</figure>')
