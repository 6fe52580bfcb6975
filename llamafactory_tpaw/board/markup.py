# SPDX-License-Identifier: Apache-2.0
"""The HTML of triplets and of conversations: columns of plain text that fit the theme, light or dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .locales import say
from .text import escaped


if TYPE_CHECKING:
    from .browser_data import TripletView

# Colours are the theme's own, so that both themes are readable; text keeps its lines, and long words wrap.
STYLE = """<style>
.tpaw-row { border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg); margin: 0 0 12px;
  background: var(--block-background-fill); color: var(--body-text-color); }
.tpaw-columns { display: grid; grid-template-columns: repeat(var(--tpaw-columns), minmax(0, 1fr)); }
.tpaw-cell { padding: 8px 12px; min-width: 0; }
.tpaw-cell + .tpaw-cell { border-left: 1px solid var(--border-color-primary); }
.tpaw-name { font-size: var(--text-sm); font-weight: 600; color: var(--block-label-text-color); margin-bottom: 4px; }
.tpaw-mark { border: 1px solid currentColor; border-radius: 8px; padding: 0 6px; margin-left: 6px; font-weight: 400; }
.tpaw-text { white-space: pre-wrap; overflow-wrap: anywhere; overflow-y: auto; max-height: 24em;
  unicode-bidi: plaintext; font-size: var(--text-md); line-height: 1.45; color: var(--body-text-color); }
.tpaw-talk { min-height: 16em; max-height: 32em; overflow-y: auto; display: flex; flex-direction: column-reverse; }
.tpaw-talk .tpaw-text { max-height: none; }
.tpaw-question { margin: 10px 0 4px; border-left: 3px solid var(--color-accent); padding-left: 8px; }
@media (max-width: 800px) { .tpaw-columns { grid-template-columns: minmax(0, 1fr); }
  .tpaw-cell + .tpaw-cell { border-left: 0; border-top: 1px solid var(--border-color-primary); } }
</style>"""


class Line(NamedTuple):
    """One thing that was said: by whom, as LlamaFactory calls roles (`user`, `assistant`, …), and what."""

    role: str
    text: str


def triplets_html(rows: Iterable[TripletView], lang: str | None) -> str:
    """Return triplets side by side: prompt, target and generated, as plain text."""
    parts = [_triplet(row, lang) for row in rows]
    return STYLE + ("".join(parts) or f'<div class="tpaw-none">{escaped(say("browser_none", lang))}</div>')


def _triplet(row: TripletView, lang: str | None) -> str:
    if row.problem:
        return f'<div class="tpaw-row">{_cell("tpaw-problem", _row_name(row, lang), _text(row.problem))}</div>'
    marks = [say("browser_equal", lang)] * row.equal + [say("browser_truncated", lang)] * row.truncated
    sample = [f"#{row.sample + 1}"] * (row.sample > 0)
    cells = (
        _cell("tpaw-prompt", _row_name(row, lang), _text(row.prompt), sample),
        _cell("tpaw-target", say("browser_target", lang), _text(row.target)),
        _cell(
            "tpaw-generated", say("browser_generated", lang, theta=f"θ_{row.iteration}"), _text(row.generated), marks
        ),
    )
    return f'<div class="tpaw-row tpaw-columns" style="--tpaw-columns: 3">{"".join(cells)}</div>'


def _row_name(row: TripletView, lang: str | None) -> str:
    return say("browser_prompt", lang, row=row.row)


def conversation_html(name: str, lines: Sequence[Line], lang: str | None) -> str:
    r"""Return what was said with one checkpoint, the newest at the bottom and in view.

    Args:
        name: The checkpoint's name, or empty.
        lines: Questions (`user`) and answers (`assistant`), oldest first.
        lang: Language of the page.
    """
    parts = [_asked(line) if line.role == "user" else _text(line.text) for line in lines]
    # Within what is turned around, the lines are one: it is that which is shown from its end.
    talk = f'<div class="tpaw-talk" role="log" tabindex="0"><div>{"".join(parts)}</div></div>'
    title = name or say("chat_unloaded", lang)
    return f'{STYLE}<div class="tpaw-row">{_cell("tpaw-conversation", title, talk)}</div>'


def _asked(line: Line) -> str:
    return f'<div class="tpaw-question">{_text(line.text)}</div>'


def _cell(kind: str, name: str, content: str, marks: Sequence[str] = ()) -> str:
    shown = "".join(f'<span class="tpaw-mark">{escaped(mark)}</span>' for mark in marks)
    return f'<div class="tpaw-cell {kind}"><div class="tpaw-name">{escaped(name)}{shown}</div>{content}</div>'


def _text(text: str) -> str:
    return f'<div class="tpaw-text" dir="auto">{escaped(text)}</div>'
