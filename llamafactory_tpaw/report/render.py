# SPDX-License-Identifier: Apache-2.0
"""Writes a page of headings, paragraphs, tables and pictures as HTML that needs nothing else, and as Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from ..data.files import write_atomic
from ..errors import visible


# The filter turns a picture's white ground into the dark page's #121212 and keeps its hues.
STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --page: #fff; --soft: #52606d; --line: #dde1e6 }
@media (prefers-color-scheme: dark) {
:root { --ink: #e4e7eb; --page: #121212; --soft: #a3adb8; --line: #363c43 }
img { filter: invert(.93) hue-rotate(180deg) } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 64rem;
margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .6rem } h2 { font-size: 1.25rem; margin: 2.6rem 0 .5rem }
p { margin: .6rem 0; max-width: 48rem } .table { overflow-x: auto; margin: .8rem 0 } summary { cursor: pointer }
table { border-collapse: collapse; font-size: .88rem; overflow-wrap: break-word; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 600 } .text { text-align: left; white-space: pre-line }
td.text { min-width: 6rem; max-width: 24rem } th { min-width: 3.5rem }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem }
img { display: block; width: 100%; max-width: 36rem; height: auto }
"""


MOST_ROWS = 10


class Heading(str):
    """Begins a part of the page."""


class Table(NamedTuple):
    """Cells as plain text, of which the first `words` columns are words; many rows are hidden under a line, `fold`."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    fold: str = ""


class Picture(NamedTuple):
    """A PNG, the name of its file, and what it shows."""

    name: str
    shows: str
    png: bytes


# A text is a paragraph; pictures in one list are beside each other where the screen is wide enough.
Block = Heading | Table | str | list[Picture]


def write_page(title: str, blocks: Sequence[Block], folder: Path) -> Path:
    """Write index.html, report.md and the pictures, each file whole or not at all; return the path of the first."""
    for block in blocks:
        for picture in block if isinstance(block, list) else ():
            write_atomic(folder / f"{picture.name}.png", picture.png)
    write_atomic(folder / "report.md", as_markdown(title, blocks))
    write_atomic(folder / "index.html", as_html(title, blocks))
    return folder / "index.html"


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """Return a page without scripts and links, with the pictures inside and every text escaped."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"{_tag('title', title)}<style>{STYLE}</style>"
    body = "\n".join([_tag("h1", title), *map(_html, blocks)])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def as_markdown(title: str, blocks: Sequence[Block]) -> str:
    """Return the same as Markdown; the pictures are files beside it."""
    return "\n\n".join([f"# {_plain(title)}", *map(_markdown, blocks)]) + "\n"


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return _tag("h2", block)
    if isinstance(block, str):
        return _tag("p", block)
    if isinstance(block, list):
        source = "data:image/png;base64,"
        images = [f'{escape(each.shows)}" src="{source}{base64.b64encode(each.png).decode()}' for each in block]
        return "<div class=pictures>" + "".join(f'<img alt="{image}">' for image in images) + "</div>"

    def line(name: str, cells: Sequence[str]) -> str:
        return "".join(_tag(name, cell, "text" if index < block.words else "") for index, cell in enumerate(cells))

    rows = [line("th", block.head), *(line("td", row) for row in block.rows)]
    table = "<div class=table><table>" + "\n".join(f"<tr>{row}</tr>" for row in rows) + "</table></div>"
    folds = block.fold and len(block.rows) > MOST_ROWS
    return f"<details>{_tag('summary', block.fold)}{table}</details>" if folds else table


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {_plain(block)}"
    if isinstance(block, str):
        return _plain(block)
    if isinstance(block, list):
        return "\n".join(f"![{_plain(each.shows)}]({each.name}.png)" for each in block)
    ruler = ["---" if index < block.words else "--:" for index in range(len(block.head))]
    rows = [block.head, ruler, *block.rows]
    lines = [f"| {' | '.join(row if row is ruler else map(_plain, row))} |" for row in rows]
    return "\n".join([f"{_plain(block.fold)}:\n", *lines] if block.fold else lines)


def _tag(name: str, text: str, kind: str = "") -> str:
    return f"<{name}{f' class={kind}' if kind else ''}>{escape(visible(text))}</{name}>"


def _plain(text: str) -> str:
    """Escape what Markdown, formulas in it, and HTML would read as their own, and keep a text in its line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&!])", r"\\\1", visible(text)).replace("\n", "<br>")
