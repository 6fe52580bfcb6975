# SPDX-License-Identifier: Apache-2.0
"""The top-level tab "Compare θ": two checkpoints of a run answer the same question side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from ..errors import TpawError
from ..lf import facade
from .compare import Checkpoint, Pair, Sampling, chat_arguments
from .locales import say
from .markup import Line, conversation_html
from .page import Elements, Page
from .runs import checkpoints_of, find_run, iterations_of, run_names, settings_of
from .text import escaped, plain


if TYPE_CHECKING:
    from gradio.components import Component

    from .runs import Run

# A question and what each checkpoint answered.
Turn = tuple[str, str, str]
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=512)
MOST_TOKENS = 32768


def create_chat_tab(page: Page) -> dict[str, Component]:
    r"""Build the tab, inside its `gr.Tab`.

    Args:
        page: What it needs of LlamaBoard.

    Returns:
        Its elements by name, each with the name as its `elem_id`, for LlamaBoard's manager.
    """
    elements = _build()
    _Chat(page, elements, Pair()).listen()
    return elements


def _build() -> dict[str, Component]:
    made = Elements()
    add = made.add
    with gr.Row():
        add(gr.Dropdown, "tpaw_chat_run", choices=[], value=None)
        add(gr.Dropdown, "tpaw_chat_first", choices=[], value=None, scale=2)
        add(gr.Dropdown, "tpaw_chat_second", choices=[], value=None, scale=2)
    with gr.Row():
        add(gr.Dropdown, "tpaw_chat_template", choices=[], value=None)
        add(gr.Textbox, "tpaw_chat_system", lines=1, max_lines=4, scale=3)
        add(gr.Checkbox, "tpaw_chat_trust_remote_code", value=False)
    with gr.Row():
        add(gr.Button, "tpaw_chat_load", variant="primary")
        add(gr.Button, "tpaw_chat_unload")
    add(gr.Textbox, "tpaw_chat_status", interactive=False, max_lines=8)
    with gr.Row():
        for name in ("tpaw_chat_first_answers", "tpaw_chat_second_answers"):
            with gr.Column(min_width=280):
                add(gr.HTML, name, value=conversation_html("", [], "en"))
    with gr.Row():
        with gr.Column(scale=3):
            add(gr.Textbox, "tpaw_chat_query", lines=5, max_lines=12)
            with gr.Row():
                add(gr.Button, "tpaw_chat_send", variant="primary")
                add(gr.Button, "tpaw_chat_clear")
        with gr.Column(scale=1, min_width=240):
            add(gr.Slider, "tpaw_chat_max_new_tokens", minimum=1, maximum=MOST_TOKENS, step=1, value=512)
            add(gr.Slider, "tpaw_chat_top_p", minimum=0.01, maximum=1, step=0.01, value=1)
            add(gr.Slider, "tpaw_chat_temperature", minimum=0, maximum=2, step=0.01, value=1)
    return made


class Where(NamedTuple):
    """What of the page says which runs there are."""

    model_name: Any
    finetuning_type: Any
    dataset_dir: Any


class _Chat:
    """The tab's elements and what happens when they are used."""

    def __init__(self, page: Page, elements: dict[str, Component], pair: Pair) -> None:
        self.page, self.elements, self.pair = page, elements, pair

    def listen(self) -> None:
        """Connect the elements. What is chosen is checked here: the browser may be ahead of the lists it was sent."""
        page, lang, history = self.page, self.page.lang, gr.State([])
        where = [page.model_name, page.finetuning_type, page.dataset_dir]
        run, first, second, template, system, trust = self._get(
            "run", "first", "second", "template", "system", "trust_remote_code"
        )
        status, left, right, query = self._get("status", "first_answers", "second_answers", "query")
        sampling = self._get("temperature", "top_p", "max_new_tokens")
        shown = [status, history, left, right]
        fields = [first, second, template, system, *sampling, status]
        send, clear, load, unload = self._get("send", "clear", "load", "unload")

        gr.on(
            [page.tab.select, *(element.change for element in where)],
            self.offer,
            [lang, run, first, second, *where],
            [run, first, second],
            preprocess=False,
        ).then(self.show, [lang, history], [left, right])
        run.change(self.fill_in, [lang, run, *where], fields, preprocess=False)
        lang.change(self.translate, [lang, history], [status, left, right])
        load.click(self.load, [lang, run, first, second, template, trust, *where], shown, preprocess=False)
        unload.click(self.unload, [lang], shown)
        asking = {"fn": self.ask, "inputs": [lang, query, history, system, *sampling], "outputs": [query, *shown]}
        gr.on([send.click, query.submit], show_progress="hidden", **asking)
        clear.click(lambda lang: ([], *self.show(lang, [])), [lang], [history, left, right])

    def _get(self, *names: str) -> list[Any]:
        return [self.elements[f"tpaw_chat_{name}"] for name in names]

    def offer(
        self, lang: str | None, picked: str | None, first: str | None, second: str | None, *where: Any
    ) -> list[Any]:
        """Offer the runs and checkpoints that are on disk, and keep what is chosen while it is there."""
        at = Where(*where)
        try:
            names = run_names(self.page.places(at.dataset_dir), *where[:2]) if at.model_name else []
            checkpoints = self._checkpoints(picked, at)[1] if picked in names else None
        except TpawError as error:
            gr.Warning(escaped(error))
            names, checkpoints = [], None
        return [
            gr.Dropdown(choices=names, value=picked if picked in names else next(iter(names), None)),
            *(_kept(theta, checkpoints) for theta in (first, second)),
        ]

    def fill_in(self, lang: str | None, name: str | None, *where: Any) -> list[Any]:
        """Offer the checkpoints of a run and fill in what it was played with."""
        try:
            run, checkpoints = self._checkpoints(name, Where(*where))
            settings = self._settings(run, Where(*where)) if run else {}
        except TpawError as error:
            checkpoints, settings = {}, {}
            said = say("chat_failed", lang, error=plain(error))
        else:
            said = self._status(lang) if checkpoints else say("chat_choose", lang)
        offered, values = _choices(checkpoints), list(checkpoints)
        return [
            gr.Dropdown(choices=offered, value=values[0] if values else None),
            gr.Dropdown(choices=offered, value=values[-1] if values else None),
            gr.Dropdown(choices=sorted(facade.TEMPLATES), value=settings.get("template") or None),
            settings.get("default_system") or "",
            *_sampling(settings),
            said,
        ]

    def _checkpoints(self, name: str | None, at: Where) -> tuple[Run | None, dict[str, Checkpoint]]:
        """The run and those of its checkpoints that are whole, by name."""
        if not name or not at.model_name:
            return None, {}
        places = self.page.places(at.dataset_dir)
        run = find_run(places, at.model_name, at.finetuning_type, name)
        here = [each for each in checkpoints_of(places, run) if each.here]
        return run, {f"θ_{each.theta}": Checkpoint(f"θ_{each.theta}", each.path) for each in here}

    def _settings(self, run: Run, at: Where) -> dict[str, Any]:
        places = self.page.places(at.dataset_dir)
        return settings_of(places, run, iterations_of(places, run)[-1].number)

    def load(
        self, lang: str | None, name: str | None, first: str | None, second: str | None, template: str | None,
        trust: bool, *where: Any,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        """Load the two that are chosen."""
        keep = (gr.skip(), gr.skip(), gr.skip())
        notes = [say("chat_while_playing", lang)] if self.page.playing() else []
        if notes:
            gr.Warning(notes[0])
        try:
            run, checkpoints = self._checkpoints(name, Where(*where))
            offered = first in list(checkpoints) and second in list(checkpoints) and template in list(facade.TEMPLATES)
            if run is None or not offered:
                yield say("chat_choose", lang), *keep
                return
            if self.pair.loaded:
                yield self._say_names("chat_exists", lang), *keep
                return
            settings, pair = self._settings(run, Where(*where)), [checkpoints[first], checkpoints[second]]
            arguments = [chat_arguments(settings, checkpoint, template, trust) for checkpoint in pair]
            for theta in self.pair.load(pair, arguments):
                yield "\n".join([*notes, say("chat_loading", lang, theta=theta)]), *keep
        except TpawError as error:
            yield "\n".join([*notes, say("chat_failed", lang, error=plain(error))]), *keep
            return
        yield "\n".join([*notes, self._status(lang)]), [], *self.show(lang, [])

    def unload(self, lang: str | None) -> tuple[Any, ...]:
        """Free the memory of both."""
        self.pair.unload()
        return self._status(lang), [], *self.show(lang, [])

    def ask(
        self, lang: str | None, query: str | None, history: list[Turn], system: str | None, *sampling: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Ask both what stands in the box, and show their answers as they come."""
        keep = (gr.skip(), gr.skip(), gr.skip(), gr.skip())
        if not self.pair.loaded or not (query or "").strip():
            yield keep[0], say("chat_empty" if self.pair.loaded else "chat_unloaded", lang), *keep[1:]
            return
        turn: Turn = (query, "", "")
        conversations = [_messages(history, query, side) for side in (1, 2)]
        try:
            for answers in self.pair.ask(conversations, system or "", Sampling(*sampling)):
                turn = (query, *answers)
                yield "", gr.skip(), [*history, turn], *self.show(lang, [*history, turn])
        except TpawError as error:
            # The question can be asked again.
            yield query, say("chat_failed", lang, error=plain(error)), history, *self.show(lang, history)
            return
        yield "", self._status(lang), [*history, turn], *self.show(lang, [*history, turn])

    def show(self, lang: str | None, history: list[Turn]) -> tuple[str, str]:
        """What was said with each."""
        names = self.pair.names or ("", "")
        left, right = (
            conversation_html(name, [line for turn in history for line in _lines(turn, side)], lang)
            for side, name in enumerate(names, start=1)
        )
        return left, right

    def translate(self, lang: str | None, history: list[Turn]) -> tuple[str, str, str]:
        """Say in another language what is loaded and who said what."""
        return self._status(lang), *self.show(lang, history)

    def _status(self, lang: str | None) -> str:
        return self._say_names("chat_loaded", lang) if self.pair.loaded else say("chat_unloaded", lang)

    def _say_names(self, message: str, lang: str | None) -> str:
        first, second = self.pair.names
        return say(message, lang, first=first, second=second)


def _choices(checkpoints: dict[str, Checkpoint]) -> list[tuple[str, str]]:
    return [(f"{theta} · {path}", theta) for theta, path in checkpoints.values()]


def _kept(theta: str | None, checkpoints: dict[str, Checkpoint] | None) -> Any:
    """Offer the checkpoints of a run that stays; `fill_in` chooses of another, and may do so at the same time."""
    if checkpoints is None:
        return gr.skip()
    emptied = {"value": None} if theta and theta not in checkpoints else {}
    return gr.update(choices=_choices(checkpoints), **emptied)


def _sampling(settings: dict[str, Any]) -> Sampling:
    """How the run sampled, within what the sliders can show."""
    given = [settings.get(key, default) for key, default in SAMPLING._asdict().items()]
    temperature, top_p, tokens = (
        default if value is None else value for value, default in zip(given, SAMPLING, strict=True)
    )
    return Sampling(min(float(temperature), 2.0), max(float(top_p), 0.01), min(int(tokens), MOST_TOKENS))


def _messages(history: list[Turn], query: str, side: int) -> list[dict[str, str]]:
    """What one checkpoint was asked and answered so far, and the question."""
    lines = [line for turn in history for line in _lines(turn, side)]
    return [{"role": line.role, "content": line.text} for line in (*lines, Line("user", query))]


def _lines(turn: Turn, side: int) -> tuple[Line, Line]:
    return Line("user", turn[0]), Line("assistant", turn[side])
