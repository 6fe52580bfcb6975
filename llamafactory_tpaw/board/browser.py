# SPDX-License-Identifier: Apache-2.0
"""The top-level tab "Triplets": prompt, target and generated of a round side by side, page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from ..errors import TpawError
from .browser_data import Filter, open_triplets
from .locales import say
from .markup import triplets_html
from .page import Elements, Page
from .runs import OpponentSet, find_run, opponent_sets, rounds_of, run_names
from .text import escaped


if TYPE_CHECKING:
    from gradio.components import Component

ROWS_A_PAGE = 10
# What a filter may be, and which message says so.
WANTED: dict[str, tuple[str, bool | None]] = {
    "all": ("choice_all", None),
    "only": ("choice_only", True),
    "without": ("choice_without", False),
}
NO_RUN = ("—", "")
# Sets whose rows can be shown.
READABLE = ("whole", "partial", "damaged")


def create_browser_tab(page: Page) -> dict[str, Component]:
    r"""Build the tab, inside its `gr.Tab`.

    Args:
        page: What it needs of LlamaBoard.

    Returns:
        Its elements by name, each with the name as its `elem_id`, for LlamaBoard's manager.
    """
    elements = _build()
    _Browser(page, elements).listen()
    return elements


def _build() -> dict[str, Component]:
    made = Elements()
    add = made.add
    with gr.Row():
        add(gr.Dropdown, "tpaw_browser_run", choices=[NO_RUN], value="")
        add(gr.Dropdown, "tpaw_browser_file", choices=[], value=None, scale=2)
        add(gr.Dropdown, "tpaw_browser_equal", choices=_filters("en"), value="all")
        add(gr.Dropdown, "tpaw_browser_truncated", choices=_filters("en"), value="all")
        add(gr.Textbox, "tpaw_browser_search", lines=1, max_lines=1, scale=2)
    add(gr.HTML, "tpaw_browser_counts")
    add(gr.HTML, "tpaw_browser_rows")
    with gr.Row():
        add(gr.Button, "tpaw_browser_prev")
        add(gr.Number, "tpaw_browser_page", value=1, minimum=1, precision=0)
        add(gr.Button, "tpaw_browser_next")
        add(gr.Button, "tpaw_browser_refresh")
    return made


def _filters(lang: str | None) -> list[tuple[str, str]]:
    return [(say(message, lang), value) for value, (message, _) in WANTED.items()]


class _Browser:
    """The tab's elements and what happens when they are used."""

    def __init__(self, page: Page, elements: dict[str, Component]) -> None:
        self.page, self.elements = page, elements

    def listen(self) -> None:
        """Connect the elements. What is chosen is checked here: the browser may be ahead of the lists it was sent."""
        page, lang = self.page, self.page.lang
        where = [page.model_name, page.finetuning_type, page.dataset_dir]
        run, file, equal, truncated, search = self._get("run", "file", "equal", "truncated", "search")
        number, back, forth, refresh = self._get("page", "prev", "next", "refresh")
        inputs = [lang, file, equal, truncated, search, number, page.dataset_dir]
        outputs = self._get("counts", "rows", "page")

        offered = gr.on(
            [page.tab.select, refresh.click, *(element.change for element in where)],
            self.offer_runs,
            [run, *where],
            [run],
            preprocess=False,
        )
        for event in (offered.then, run.change):
            event(self.offer_files, [run, file, *where], [file], preprocess=False).then(
                self.show, inputs, outputs, preprocess=False
            )
        first = gr.on(
            [file.change, equal.change, truncated.change, search.submit], lambda: 1, outputs=[number], queue=False
        )
        for event in (first.then, number.submit):
            event(self.show, inputs, outputs, preprocess=False)
        for button, step in ((back, -1), (forth, 1)):
            button.click(_turn(step), [number], [number], queue=False).then(
                self.show, inputs, outputs, preprocess=False
            )
        lang.change(lambda lang: [gr.Dropdown(choices=_filters(lang))] * 2, [lang], [equal, truncated]).then(
            self.show, inputs, outputs, preprocess=False
        )

    def _get(self, *names: str) -> list[Any]:
        return [self.elements[f"tpaw_browser_{name}"] for name in names]

    def offer_runs(self, picked: str | None, model_name: Any, finetuning_type: Any, dataset_dir: Any) -> Any:
        """Offer the runs that are on disk, and keep the one that is chosen while it is there."""
        try:
            names = run_names(self.page.places(dataset_dir), model_name, finetuning_type) if model_name else []
        except TpawError as error:
            gr.Warning(escaped(error))
            names = []
        return gr.Dropdown(choices=[NO_RUN, *names], value=picked if picked in names else "")

    def offer_files(
        self, run: str | None, picked: str | None, model_name: Any, finetuning_type: Any, dataset_dir: Any
    ) -> Any:
        """Offer the triplets of the run by iteration, or without one all of the data folder."""
        try:
            places = self.page.places(dataset_dir)
            sets = [each for each in opponent_sets(places) if _is_readable(each)]
            if run and model_name:
                rounds = rounds_of(places, find_run(places, model_name, finetuning_type, run))
                numbers = {name: number for number, name in rounds.items()}
                sets = sorted((each for each in sets if each.name in numbers), key=lambda each: numbers[each.name])
        except TpawError as error:
            gr.Warning(escaped(error))
            sets = []
        names = [each.name for each in sets]
        value = picked if picked in names else next(iter(names), None)
        return gr.Dropdown(choices=[(_name(each), each.name) for each in sets], value=value)

    def show(
        self, lang: str | None, file: str | None, equal: Any, truncated: Any, search: str | None, number: Any,
        dataset_dir: Any,
    ) -> tuple[str, str, int]:  # fmt: skip
        """Show a page of what the filters let through; the last one where there are not so many."""
        if not file:
            return _line(say("browser_choose", lang)), "", 1
        wanted = Filter(*(WANTED.get(str(kind), ("", None))[1] for kind in (equal, truncated)), str(search or ""))
        try:
            triplets = open_triplets(self.page.places(dataset_dir), file)
            counts = triplets.counts()
            found = triplets.page(_whole(number), ROWS_A_PAGE, wanted)
        except TpawError as error:
            return _line(str(error)), "", 1
        values = {"matching": found.matching, "total": counts.rows, "equal": counts.equal}
        line = say("browser_counts", lang, truncated=counts.truncated, page=found.number, pages=found.pages, **values)
        return _line(line), triplets_html(found.rows, lang), found.number


def _is_readable(each: OpponentSet) -> bool:
    return each.state in READABLE and each.rows_file is not None


def _name(each: OpponentSet) -> str:
    name = f"{each.name} (.partial)" if each.state == "partial" else each.name
    return name if each.iteration is None else f"D_{each.iteration} · {name}"


def _turn(step: int) -> Any:
    return lambda number: max(1, _whole(number) + step)


def _whole(number: Any) -> int:
    """What the field for the page says; 1 where it is empty."""
    return max(1, int(number)) if isinstance(number, int | float) else 1


def _line(text: str) -> str:
    return f'<div class="tpaw-line" style="overflow-wrap: anywhere">{escaped(text)}</div>'
