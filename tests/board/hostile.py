# SPDX-License-Identifier: Apache-2.0
"""Texts that a page could mistake for its own, and whether it did."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from tests.board.browsing import Board

HACK = "window.hacked = (window.hacked || 0) + 1"
# What a browser, Markdown, KaTeX or a terminal would make something of.
TEXTS = {
    "script": f"<script>{HACK}</script>",
    "image": f'<img src="x" onerror="{HACK}">',
    "frame": f'</div></div></section><iframe srcdoc="<script>parent.{HACK}</script>"></iframe>',
    "link": f"[click](javascript:{HACK.replace(' ', '')}) ![](http://203.0.113.1/seen.png)",
    "markdown": "# heading\n- *item*\n\n| a | b |\n|---|---|\n| 1 | 2 |\n```\nopen",
    "formula": f"$$\\href{{javascript:{HACK}}}{{x}}$$ \\(\\frac{{1}}{{0}}\\) {{{{7*7}}}}",
    "style": "<style>body { display: none }</style><h1>big</h1>",
    "entities": "&lt;script&gt; &amp; &#60;b&#62;",
}
# The same as the name of a model's folder, which is in every log.
FOLDER = "<img src=x onerror=window.hacked=1>"


class Seen(HTMLParser):
    """What a browser makes of HTML whose tags are all closed: its tags, its text, and the texts of triplets."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.cells: list[str] = []
        self._open: list[str] = []
        self._in_cell = False
        self.feed(page)
        assert self._open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open += [tag] * (tag not in ("meta", "img"))
        self._in_cell = ("class", "tpaw-text") in attrs
        self.cells += [""] * self._in_cell

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._in_cell:
            self.cells[-1] += data


def assert_unharmed(board: Board) -> None:
    assert board.page.evaluate("window.hacked") is None
    assert board.page.locator("h1:text-is('big'), iframe[srcdoc], img[src='x']").count() == 0
    assert board.page.locator("body").is_visible()
    assert not [url for url in board.asked_outside if "203.0.113.1" in url]
