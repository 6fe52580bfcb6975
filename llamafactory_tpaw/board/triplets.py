# SPDX-License-Identifier: Apache-2.0
"""Pages of triplets: prompt, target and generated response side by side, as plain text."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..data.triplets import TripletRow
from ..errors import DataError
from .words import escaped, say


FOLDER = "tpaw"
ENDINGS = (".jsonl", ".jsonl.partial")
ROWS_A_PAGE = 10
# Lines of a half-done file that are no rows lack it.
ROW = b'"conversations"'
# Colours are the theme's own; text keeps its lines, and long words wrap.
STYLE = """<style>
.tpaw-row { border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg); margin: 0 0 12px;
  display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); }
.tpaw-cell { padding: 8px 12px; min-width: 0; }
.tpaw-cell + .tpaw-cell { border-left: 1px solid var(--border-color-primary); }
.tpaw-name { font-size: var(--text-sm); font-weight: 600; color: var(--block-label-text-color); margin-bottom: 4px; }
.tpaw-text { white-space: pre-wrap; overflow-wrap: anywhere; overflow-y: auto; max-height: 24em;
  unicode-bidi: plaintext; color: var(--body-text-color); }
</style>"""


def rounds(dataset_dir: str | None) -> list[str]:
    """Return the names of the files of triplets in a dataset folder, half-done ones among them."""
    names = [path.name for path in Path(dataset_dir or "data", FOLDER).glob("*.jsonl*") if path.name.endswith(ENDINGS)]
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def triplets_page(dataset_dir: str | None, name: str | None, number: int, lang: str | None) -> tuple[str, int, int]:
    """Return a page of one of `rounds` as HTML, its number, the nearest to `number`, and how many there are."""
    if name not in rounds(dataset_dir):
        return _message(say("browser_none", lang)), 1, 1
    path = Path(dataset_dir or "data", FOLDER, name)
    try:
        pages = max(1, -(-sum(1 for _ in _lines(path)) // ROWS_A_PAGE))
        number = min(max(1, number), pages)
        first = (number - 1) * ROWS_A_PAGE
        rows = list(itertools.islice(_lines(path), first, first + ROWS_A_PAGE))
    except OSError as error:  # it may just have got its final name
        return _message(str(error)), 1, 1
    shown = [_triplet(first + place, line, lang) for place, line in enumerate(rows, start=1)]
    return STYLE + ("".join(shown) or _message(say("browser_none", lang))), number, pages


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        # A row that is being written has no line end yet.
        yield from (line for line in stream if ROW in line and line.endswith(b"\n"))


def _triplet(row: int, line: bytes, lang: str | None) -> str:
    try:
        triplet = TripletRow.from_json(json.loads(line), str(row))
    except (ValueError, DataError) as error:
        return _message(f"{row}: {error}")
    target, generated, truncated = triplet.target["content"], triplet.generated, triplet.finish_reason == "length"
    equal = target == generated and not truncated
    marks = [
        say(name, lang) for name, marked in (("browser_equal", equal), ("browser_truncated", truncated)) if marked
    ]
    by = " · ".join([say("browser_generated", lang, theta=f"θ_{triplet.iteration}"), *marks])
    cells = {
        "prompt": (say("browser_prompt", lang, row=row), _prompt(triplet)),
        "target": (say("browser_target", lang), target),
        "generated": (by, generated),
    }
    return f'<div class="tpaw-row">{"".join(_cell(kind, *texts) for kind, texts in cells.items())}</div>'


def _prompt(triplet: TripletRow) -> str:
    """The conversation up to the response; each message below its role where there are several."""
    parts = [(role, text) for role, text in (("system", triplet.system), ("tools", triplet.tools)) if text]
    parts += [(message["role"], message["content"]) for message in triplet.messages]
    return parts[0][1] if len(parts) == 1 else "\n\n".join(f"[{role}]\n{text}" for role, text in parts)


def _cell(kind: str, name: str, text: Any) -> str:
    shown = f'<div class="tpaw-text" dir="auto">{escaped(text)}</div>'
    return f'<div class="tpaw-cell tpaw-{kind}"><div class="tpaw-name">{escaped(name)}</div>{shown}</div>'


def _message(text: str) -> str:
    return f'<div class="tpaw-text">{escaped(text)}</div>'
