# SPDX-License-Identifier: Apache-2.0
"""What LlamaBoard's Train tab gets: the accordion with the fields of this stage, and one with the results of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..arguments.fields import FIELDS as SPECS
from ..lf import facade
from ..runs.run_files import split_numbered
from .charts import PANELS, accuracy_table, frames, read_iterations, run_names
from .runner import Play, is_our_stage
from .settings import OBJECTIVES, OF_OBJECTIVES, SAMPLING, prompt_sets
from .triplets import rounds, triplets_page
from .words import properties, say


ACCORDION, RESULTS = "tpaw_tab", "tpaw_results_tab"
DRAWN_EVERY_S = 5.0
PLOT_HEIGHT = 260
QUIET = {"queue": False, "show_progress": "hidden"}


def create_train_tab(engine: Any, original: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Build the Train tab by LlamaBoard's function, with our accordion behind that of RLHF and the results last."""
    manager = engine.manager
    elements, inputs = _build_fields()
    base = manager.get_base_elems
    # On the object, while the tab is built: LlamaBoard's buttons then take our fields along.
    manager.get_base_elems = lambda: base() | inputs
    try:
        train = original(engine)
    finally:
        del manager.get_base_elems
    siblings = train["rlhf_tab"].parent.children
    siblings.remove(elements[ACCORDION])
    siblings.insert(siblings.index(train["rlhf_tab"]) + 1, elements[ACCORDION])
    results = _build_results()
    _listen(train, elements)
    _Results(engine, train, results).listen()
    return {**train, **elements, **results}


def _element(made: dict[str, Any], kind: Any, name: str, **options: Any) -> Any:
    made[name] = kind(elem_id=name, **properties(name), **options)
    return made[name]


def _build_fields() -> tuple[dict[str, Any], set[Any]]:
    """Make the accordion: its elements by name, and those that are inputs."""
    made: dict[str, Any] = {}

    def number(name: str, default: Any, precision: int | None = None, **options: Any) -> None:
        _element(made, gr.Number, name, value=default, precision=precision, min_width=120, **options)

    def choice(name: str, **options: Any) -> None:
        choices = list(SPECS[name].type.__args__)
        _element(made, gr.Dropdown, name, choices=choices, value=SPECS[name].default, min_width=120, **options)

    with gr.Accordion(open=False, elem_id=ACCORDION, **properties(ACCORDION)) as made[ACCORDION]:
        made["tpaw_hint"] = gr.Markdown(elem_id="tpaw_hint", **properties("tpaw_hint"))
        with gr.Row():
            number("tpaw_iteration", 0, 0)
            number("tpaw_iterations", 1, 0)
            choice("tpaw_objective")
        with gr.Row():
            for name in OF_OBJECTIVES:
                visible = name in OBJECTIVES["tpaw"]
                if name == "tpaw_reference":
                    choice(name, visible=visible)
                else:
                    number(name, SPECS[name].default, 0 if name == "tpaw_team_size" else None, visible=visible)
        with gr.Row():
            _element(made, gr.Dropdown, "tpaw_prompts", choices=[], value=None, allow_custom_value=True, scale=2)
            # A number's field cannot be empty.
            _element(made, gr.Textbox, "tpaw_max_prompts", value="", min_width=120)
            choice("tpaw_engine")
            _element(made, gr.Textbox, "tpaw_engine_url", visible=False, scale=2)
        with gr.Row():
            for key, default in SAMPLING.items():
                number(f"tpaw_{key}", default, 0 if isinstance(default, int) else None)
            number("tpaw_samples_per_prompt", 1, 0)
    inputs = {element for name, element in made.items() if name not in (ACCORDION, "tpaw_hint")}
    return made, inputs


def _listen(train: dict[str, Any], made: dict[str, Any]) -> None:
    """Open the accordion for our stage, offer the sets of prompts, and show the fields that do something."""
    stage, prompts, objective = train["training_stage"], made["tpaw_prompts"], made["tpaw_objective"]

    def offer(dataset_dir: str) -> Any:
        return gr.Dropdown(choices=prompt_sets(dataset_dir))

    stage.change(lambda shown: gr.Accordion(open=is_our_stage(shown)), [stage], [made[ACCORDION]], **QUIET)
    stage.change(offer, [train["dataset_dir"]], [prompts], **QUIET)
    prompts.focus(offer, [train["dataset_dir"]], [prompts], **QUIET)
    objective.change(
        lambda shown: [gr.update(visible=name in OBJECTIVES[shown]) for name in OF_OBJECTIVES],
        [objective],
        [made[name] for name in OF_OBJECTIVES],
        **QUIET,
    )
    made["tpaw_engine"].change(
        lambda shown: gr.Textbox(visible=shown == "openai"), [made["tpaw_engine"]], [made["tpaw_engine_url"]], **QUIET
    )


def _build_results() -> dict[str, Any]:
    made: dict[str, Any] = {}
    with gr.Accordion(open=False, elem_id=RESULTS, **properties(RESULTS)) as made[RESULTS]:
        with gr.Row():
            _element(made, gr.Dropdown, "tpaw_run", choices=[], value=None, scale=4)
            _element(made, gr.Button, "tpaw_refresh", scale=1)
        made["tpaw_accuracy"] = gr.HTML(elem_id="tpaw_accuracy")
        for panels in (list(PANELS)[:3], list(PANELS)[3:]):
            with gr.Row():
                for name in map(plot_name, panels):
                    made[name] = gr.LinePlot(elem_id=name, x="step", y="value", color="line", height=PLOT_HEIGHT)
        with gr.Row():
            _element(made, gr.Dropdown, "tpaw_round", choices=[], value=None, scale=3)
            _element(made, gr.Number, "tpaw_page", value=1, precision=0, min_width=80)
            _element(made, gr.Button, "tpaw_prev", min_width=80)
            _element(made, gr.Button, "tpaw_next", min_width=80)
        made["tpaw_rows"] = gr.HTML(elem_id="tpaw_rows")
    return made


def plot_name(panel: str) -> str:
    """Return the element of a panel."""
    return f"tpaw_plot_{panel.replace('/', '_')}"


class _Results:
    """The accordion with the results; what it shows is read from disk whenever something changes."""

    def __init__(self, engine: Any, train: dict[str, Any], made: dict[str, Any]) -> None:
        self.engine, self.train, self.made = engine, train, made

    def listen(self) -> None:
        """Connect the elements."""
        made, train = self.made, self.train
        find = self.engine.manager.get_elem_by_id
        where, lang = [find("top.model_name"), find("top.finetuning_type")], find("top.lang")
        charts = [made["tpaw_accuracy"], *[made[plot_name(panel)] for panel in PANELS]]
        of_run = [*where, made["tpaw_run"], lang]
        offered = [made["tpaw_run"], made["tpaw_round"], *charts]
        clock = gr.Timer(DRAWN_EVERY_S)
        choices = [*of_run, made["tpaw_round"], train["output_dir"], train["dataset_dir"]]
        for trigger in (made[RESULTS].expand, made["tpaw_refresh"].click):
            trigger(self.refresh, choices, offered, **QUIET)
        made["tpaw_run"].change(self.draw, of_run, charts, **QUIET)
        clock.tick(self.draw_live, of_run, charts, **QUIET)
        rows = [made["tpaw_rows"], made["tpaw_page"]]
        of_page = [train["dataset_dir"], made["tpaw_round"], made["tpaw_page"], lang]
        made["tpaw_round"].change(lambda *shown: turn(shown, to=1), of_page, rows, **QUIET)
        made["tpaw_page"].submit(lambda *shown: turn(shown), of_page, rows, **QUIET)
        made["tpaw_prev"].click(lambda *shown: turn(shown, by=-1), of_page, rows, **QUIET)
        made["tpaw_next"].click(lambda *shown: turn(shown, by=1), of_page, rows, **QUIET)
        lang.change(self.draw, of_run, charts, **QUIET)
        lang.change(lambda *shown: turn(shown), of_page, rows, **QUIET)

    def refresh(self, *shown: str | None) -> list[Any]:
        """Offer the runs of the model and the triplets, and draw one run: at first that of the output folder."""
        model_name, method, run, lang, name, output_dir, dataset_dir = shown
        runs, files = run_names(_saves(model_name, method)), rounds(dataset_dir)
        own, _ = split_numbered(Path(output_dir or "").name)
        selected = next((known for known in (run, own, *runs[-1:]) if known in runs), None)
        of_run = [each for each in files if selected and f"{selected}_iter" in each]
        file = name if name in files else next(iter(reversed(of_run or files)), None)
        offered = [gr.Dropdown(choices=runs, value=selected), gr.Dropdown(choices=files, value=file)]
        return [*offered, *self.draw(model_name, method, selected, lang)]

    def draw(self, model_name: str, method: str, run: str | None, lang: str | None) -> list[Any]:
        """Draw the charts of a run and its table."""
        iterations = read_iterations(_saves(model_name, method), run)
        titles = dict(zip(PANELS, ("loss", "reward", "margin", "reward_accuracy", "player_weight"), strict=True))
        plots = [
            gr.LinePlot(
                value=None if frame.empty else frame,
                title=say(f"column_{titles[panel]}", lang),
                x_title=say("chart_step", lang),
                y_title=" ",
                color_title=" ",
            )
            for panel, frame in frames(iterations, lang).items()
        ]
        return [accuracy_table(iterations, lang), *plots]

    def draw_live(self, *shown: Any) -> list[Any]:
        """Draw again while a run of this stage plays."""
        is_playing = isinstance(self.engine.runner.trainer, Play)
        return self.draw(*shown) if is_playing else [gr.skip()] * (1 + len(PANELS))


def turn(shown: Sequence[Any], by: int = 0, to: int | None = None) -> tuple[Any, Any]:
    """Show a page of triplets: that of the field, one before or behind it, or a certain one."""
    dataset_dir, name, number, lang = shown
    html, number, pages = triplets_page(dataset_dir, name, to or (number or 1) + by, lang)
    # Bounds are `triplets_page`'s: Gradio would hold its own against a number that was shown for another file.
    return html, gr.Number(value=number, info=f"1 – {pages}")


def _saves(model_name: str | None, method: str | None) -> Path:
    return Path(facade.get_save_dir(model_name or "", method or ""))
