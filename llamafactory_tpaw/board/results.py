# SPDX-License-Identifier: Apache-2.0
"""What is known of a run while it plays and when it has ended: charts, accuracy per θ and the report."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gradio as gr

from .locales import say
from .summary import summarize


if TYPE_CHECKING:
    from .session import Session

DRAWN_EVERY_S = 3.0
NAMES = ("tpaw_charts", "tpaw_summary", "tpaw_report")


def build_results() -> dict[str, Any]:
    """Make the elements, where the page is being built; they are shown when there is something to show."""
    made: dict[str, Any] = {}
    with gr.Row():
        made["tpaw_charts"] = gr.Plot(elem_id="tpaw_charts", visible=False)
    made["tpaw_summary"] = gr.Markdown(elem_id="tpaw_summary", visible=False)
    made["tpaw_report"] = gr.HTML(elem_id="tpaw_report", visible=False)
    return made


class Results:
    r"""Draws anew while a run plays, in every page that is open.

    Args:
        session: What plays.
        elements: Those of the Train tab by name, with `build_results`'s.
        lang: The element that holds the language.
    """

    def __init__(self, session: Session, elements: Mapping[str, Any], lang: Any) -> None:
        self.session, self.elements, self.lang = session, elements, lang

    def listen(self) -> None:
        """Connect the elements. A page's clock runs from the first word of a run in its output box to the last."""
        clock = gr.Timer(DRAWN_EVERY_S, active=False)
        shown = [self.elements[name] for name in NAMES]
        quiet = {"queue": False, "show_progress": "hidden"}
        self.elements["output_box"].change(self.follow, [self.lang], [clock, *shown], **quiet)
        clock.tick(self.draw, [self.lang], shown, **quiet)
        self.lang.change(self.draw, [self.lang], shown, **quiet)

    def follow(self, lang: str | None) -> list[Any]:
        """Start the clock while a run plays; when it has ended, stop it and draw a last time."""
        if self.session.play is None:
            return [gr.skip()] * (1 + len(NAMES))
        if self.session.active:
            return [gr.Timer(active=True), *[gr.skip()] * len(NAMES)]
        return [gr.Timer(active=False), *self.draw(lang)]

    def draw(self, lang: str | None) -> list[Any]:
        """Draw what is known now."""
        session = self.session
        if session.play is None:
            return [gr.skip()] * len(NAMES)
        found = summarize(session.play.folders)
        return [
            gr.Plot(value=session.charts.figure(lang), visible=True),
            gr.Markdown(value=found.markdown(lang), visible=bool(found.results)),
            gr.HTML(value=_link(session.report, lang), visible=not session.active),
        ]


def _link(report: Path | None, lang: str | None) -> str:
    """A link that opens the report in a tab of its own."""
    if report is None:
        return html.escape(say("no_report", lang))
    gr.set_static_paths([report])  # this file, and nothing beside it
    address = f"gradio_api/file={quote(str(report.resolve()))}"
    return (
        f'<a href="{html.escape(address)}" target="_blank" rel="noopener">{html.escape(say("open_report", lang))}</a>'
    )
