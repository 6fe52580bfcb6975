# SPDX-License-Identifier: Apache-2.0
"""The accordion "TPAW configurations" of LlamaBoard's Train tab, and what its fields do to each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import gradio as gr
from gradio.context import Context

from ..arguments.fields import FIELDS
from ..errors import TpawError
from . import filling
from .browser import create_browser_tab
from .chat import create_chat_tab
from .fields import OURS, not_used
from .hover import add_hover_help
from .locales import FALLBACK, LOCALES
from .page import Page
from .places import Places
from .results import Results, build_results
from .session import is_our_stage, places_of, session_of


# What the tab shows; all but the first are inputs of LlamaBoard's buttons.
ACCORDION = "tpaw_tab"
# LlamaFactory's sampling defaults would not be those of self-play.
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 1024}
CHOICES = {
    name: list(FIELDS[name].type.__args__)
    for name in ("tpaw_objective", "tpaw_engine", "tpaw_reference", "tpaw_grouping")
}
DECIDING = ("tpaw_objective", "tpaw_engine", "tpaw_prompts", "tpaw_reference")

# The page that is being built -> LlamaBoard's engine.
_PAGES: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def create_train_tab(engine: Any, original: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    r"""Build LlamaBoard's Train tab with our accordion behind that of RLHF.

    Args:
        engine: LlamaBoard's `Engine`.
        original: Its own function that builds the tab.

    Returns:
        The elements of the tab by name, ours among them.
    """
    manager = engine.manager
    elements = _build()
    inputs = {element for name, element in elements.items() if name != ACCORDION}
    base = manager.get_base_elems
    # On the object, for as long as the tab is built: its buttons then take our fields along.
    manager.get_base_elems = lambda: base() | inputs
    try:
        train = original(engine)
    finally:
        del manager.get_base_elems
    _move_behind(elements[ACCORDION], train["rlhf_tab"])
    elements |= build_results()
    TrainTab(engine, {**train, **elements}).listen()
    Results(session_of(engine.runner), {**train, **elements}, manager.get_elem_by_id("top.lang")).listen()
    if Context.root_block is not None:
        _PAGES[Context.root_block] = engine
    return {**train, **elements}


def create_tabs() -> None:
    """Build the triplet browser and the chat behind LlamaBoard's own tabs, where its Train tab has our accordion."""
    engine = _PAGES.get(Context.root_block) if Context.root_block is not None else None
    if engine is None:
        return
    get, session = engine.manager.get_elem_by_id, session_of(engine.runner)
    top = {name: get(f"top.{name}") for name in ("lang", "model_name", "finetuning_type")}
    for name, build in (("tpaw_browser", create_browser_tab), ("tpaw_chat", create_chat_tab)):
        title = f"{name}_tab"
        with gr.Tab(**LOCALES[title][FALLBACK], elem_id=title) as tab:
            folder, playing = get("train.dataset_dir"), lambda: session.active
            page = Page(**top, dataset_dir=folder, tab=tab, places=_places, playing=playing)
            engine.manager.add_elems(name, {title: tab, **build(page)})
    add_hover_help(top["lang"])


def _places(dataset_dir: str) -> Places:
    return places_of({"train.dataset_dir": dataset_dir})


def keep_datasets(result: Any) -> Any:
    """Leave the datasets as they are, in what LlamaBoard answers to a change of the stage."""
    return (gr.skip(), *tuple(result)[1:])


def name_players(session: Any, shown: dict[Any, Any]) -> dict[Any, Any]:
    """Show the players of a configuration that is being loaded by their names."""
    players = session.manager.get_elem_by_id("train.tpaw_players")
    if not shown.get(players):
        return shown
    _, names = filling.of_run(session.values(shown))
    return shown | {players: gr.update(choices=names, value=shown[players])}


def choose(offered: gr.Dropdown, value: Any) -> gr.Dropdown:
    """Let a list that LlamaBoard offers show a choice."""
    return gr.Dropdown(choices=offered.choices, multiselect=offered.multiselect, value=value, allow_custom_value=True)


def _build() -> dict[str, Any]:
    """Make the accordion and its fields, where the page is being built."""
    made: dict[str, Any] = {}

    def add(kind: Any, name: str, **options: Any) -> None:
        if name in FIELDS:
            options.setdefault("value", _initial(FIELDS[name]))
        made[name] = kind(elem_id=name, **options)

    with gr.Accordion(open=False, elem_id=ACCORDION) as made[ACCORDION]:
        with gr.Row():
            add(gr.Dropdown, "tpaw_run", allow_custom_value=True, choices=[], value=None, scale=2)
            add(gr.Dropdown, "tpaw_iteration", allow_custom_value=True, choices=[0])
            add(gr.Number, "tpaw_iterations", value=1)
            add(gr.Dropdown, "tpaw_objective", choices=CHOICES["tpaw_objective"])
            add(gr.Number, "tpaw_team_size")
        with gr.Row():
            for name in ("tpaw_reward_scale", "tpaw_eta", "tpaw_gamma", "tpaw_scale", "tpaw_history_weight"):
                add(gr.Textbox, name, interactive=name not in not_used({"tpaw_objective": "tpaw"}))
        with gr.Row():
            add(gr.Dropdown, "tpaw_players", multiselect=True, allow_custom_value=True, choices=[], value=[], scale=3)
            add(gr.Dropdown, "tpaw_reference", choices=CHOICES["tpaw_reference"])
            add(gr.Dropdown, "tpaw_grouping", choices=CHOICES["tpaw_grouping"])
            add(gr.Textbox, "tpaw_cache_dir", scale=2)
        with gr.Row():
            add(gr.Dropdown, "tpaw_prompts", allow_custom_value=True, choices=[], value=None, scale=2)
            add(gr.Textbox, "tpaw_max_prompts")
            add(gr.Dropdown, "tpaw_engine", choices=CHOICES["tpaw_engine"])
            add(gr.Textbox, "tpaw_engine_url", interactive=False, scale=2)
        with gr.Row():
            for key, value in SAMPLING.items():
                add(gr.Number, f"tpaw_{key}", value=value)
            add(gr.Number, "tpaw_samples_per_prompt")
            add(gr.Checkbox, "tpaw_trust_remote_code", value=False)
    return made


def _initial(spec: dataclasses.Field[Any]) -> Any:
    """What a field shows at first: the key's default."""
    return "" if spec.default is None else spec.default


def _move_behind(block: Any, other: Any) -> None:
    """Give a block its place among its siblings: right behind another one."""
    siblings = other.parent.children
    if block in siblings:
        siblings.remove(block)
        siblings.insert(siblings.index(other) + 1, block)


class TrainTab:
    """The elements of a Train tab and what happens when a user changes one of them."""

    def __init__(self, engine: Any, train: Mapping[str, Any]) -> None:
        self.engine, self.train = engine, train
        self.top = {
            name: engine.manager.get_elem_by_id(f"top.{name}")
            for name in (
                "lang model_name model_path finetuning_type checkpoint_path quantization_bit quantization_method "
                "template rope_scaling booster"
            ).split()
        }
        # Whatever a run file can say, and what decides where it is looked for.
        every = {f"top.{name}": element for name, element in self.top.items()}
        every |= {f"train.{name}": element for name, element in train.items()}
        self.shown = {name: every[name] for name in filling.ELEMENTS}
        self.inputs = {name: every[name] for name in (*filling.ELEMENTS, "top.lang", "top.model_name")}

    def listen(self) -> None:
        """Connect the elements."""
        train, top = self.train, self.top
        where = [train["training_stage"], top["model_name"], top["finetuning_type"], train["dataset_dir"]]
        kept = {"queue": False, "show_progress": "hidden"}
        for trigger in (train["training_stage"], top["model_name"], top["finetuning_type"]):
            trigger.change(self.offer, where, [train["tpaw_run"], train["tpaw_prompts"]], **kept)
        train["tpaw_run"].focus(self.offer, where, [train["tpaw_run"], train["tpaw_prompts"]], **kept)
        train["tpaw_prompts"].focus(self.offer, where, [train["tpaw_run"], train["tpaw_prompts"]], **kept)
        stage = [train["training_stage"], train["dataset_dir"], train["dataset"]]
        train["training_stage"].change(self.change_stage, stage, [train["dataset"], train[ACCORDION]], **kept)
        of_run = [train["tpaw_iteration"], train["tpaw_players"]]
        train["tpaw_run"].change(self.offer_iterations, [*where, train["tpaw_run"]], of_run, **kept)
        # LlamaBoard changes it where a page is loaded while something plays, and has filled in all but the names then.
        named = [*where, train["tpaw_run"], train["tpaw_players"]]
        train["resume_btn"].change(self.name_players, named, train["tpaw_players"], **kept)
        everything = set(self.inputs.values()) | {train["tpaw_run"], train["training_stage"]}
        outputs = [*self.shown.values(), train["output_box"]]
        train["tpaw_run"].input(self.choose_run, everything, outputs, **kept)
        train["tpaw_iteration"].input(self.choose_iteration, everything, outputs, **kept)
        deciding = [train[name] for name in DECIDING]
        greyed = [train[field.element.partition(".")[2]] for field in OURS]
        for element in deciding:
            element.change(self.grey, deciding, greyed, **kept)

    def offer(self, stage: str, model_name: str | None, method: str, dataset_dir: str) -> tuple[Any, Any]:
        """Offer the runs of the model and the sets of prompts."""
        if not is_our_stage(stage):
            return gr.skip(), gr.skip()
        runs, prompts = filling.offered(model_name, method, dataset_dir)
        return gr.Dropdown(choices=runs), gr.Dropdown(choices=prompts)

    def change_stage(self, stage: str, dataset_dir: str, datasets: list[str] | None) -> tuple[Any, Any]:
        """Open the accordion for our stage, and leave only rounds of triplets among the datasets."""
        if not is_our_stage(stage):
            return gr.skip(), gr.skip()
        return filling.only_rounds(dataset_dir, datasets or []), gr.Accordion(open=True)

    def offer_iterations(self, stage: str, *where: str | None) -> tuple[Any, Any]:
        """Offer the iterations and the checkpoints of a run."""
        if not is_our_stage(stage):
            return gr.skip(), gr.skip()
        iterations, players = _of_run(*where)
        # Those of a new run are what was filled in.
        return gr.Dropdown(choices=iterations), gr.Dropdown(choices=players) if players else gr.skip()

    def name_players(self, stage: str, *shown: Any) -> Any:
        """Show the players by their names in the list: a list takes them from its choices only when it is set."""
        if not is_our_stage(stage):
            return gr.skip()
        *where, players = shown
        return gr.Dropdown(choices=_of_run(*where)[1], value=players)

    def choose_run(self, data: dict[Any, Any]) -> dict[Any, Any]:
        """Fill in the iteration of a run that comes next."""
        return self._fill(data, filling.next_iteration)

    def choose_iteration(self, data: dict[Any, Any]) -> dict[Any, Any]:
        """Fill in the iteration that was chosen."""
        return self._fill(data, lambda values: values["train.tpaw_iteration"])

    def _fill(self, data: dict[Any, Any], iteration: Callable[[dict[str, Any]], Any]) -> dict[Any, Any]:
        values = {element_id: data[element] for element_id, element in self.inputs.items()}
        values["train.tpaw_run"] = data[self.train["tpaw_run"]]
        output, lang, session = self.train["output_box"], values["top.lang"], session_of(self.engine.runner)
        if not is_our_stage(data[self.train["training_stage"]]) or not values["train.tpaw_run"]:
            return {output: gr.skip()}
        try:
            shown, message = filling.filled_in(values, iteration(values), self._fits, lang)
            iterations, players = filling.of_run(values, shown.get("train.tpaw_players"))
        except TpawError as error:
            return {output: session.complaint(list(dict.fromkeys([*error.problems, *filling.unreadable(values)])))}
        unreadable = filling.unreadable(values)
        if unreadable:
            message = f"{message}\n\n{session.complaint(unreadable)}"
        shown["train.tpaw_iteration"] = gr.update(**_set(shown, "train.tpaw_iteration"), choices=iterations)
        shown["train.tpaw_players"] = gr.update(**_set(shown, "train.tpaw_players"), choices=players)
        return {**{self.inputs[name]: value for name, value in shown.items()}, output: message}

    def _fits(self, name: str, value: Any) -> bool:
        """Whether an element can show a value: a slider within its ends, a list without other choices."""
        return shows(self.inputs[name], value)

    def grey(self, *values: Any) -> list[Any]:
        """Grey out the fields that do nothing with what is chosen."""
        unused = not_used(dict(zip(DECIDING, values, strict=True)))
        return [
            self.train[field.element.partition(".")[2]].__class__(interactive=field.key not in unused)
            for field in OURS
        ]


def _of_run(model_name: str | None, method: str, dataset_dir: str, run: str | None) -> tuple[Any, Any]:
    named = {"top.model_name": model_name, "top.finetuning_type": method}
    return filling.of_run(named | {"train.dataset_dir": dataset_dir, "train.tpaw_run": run})


def _set(shown: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"value": shown[name]} if name in shown else {}


def shows(element: Any, value: Any) -> bool:
    """Whether an element can show a value: a slider within its ends, a list without other choices."""
    if isinstance(element, gr.Slider):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and element.minimum <= value <= element.maximum
    if isinstance(element, gr.Dropdown) and not element.allow_custom_value:
        return value in [choice for _, choice in element.choices]
    return True
