# SPDX-License-Identifier: Apache-2.0
"""The accordion in LlamaBoard's real page: where it is, what it fills in, greys out, saves and loads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from llamafactory_tpaw.board.fields import OURS
from llamafactory_tpaw.board.filling import ELEMENTS
from llamafactory_tpaw.board.locales import LANGUAGES, LOCALES
from llamafactory_tpaw.hook import board, seams
from tests.unit.board.page import DrivenPage


NAMES = ("tpaw_run", "tpaw_iterations", *(field.element.partition(".")[2] for field in OURS))
BUTTONS = ("cmd_preview_btn", "arg_save_btn", "start_btn")


def test_all_seams_hold(built_page: DrivenPage) -> None:
    assert {seam.state for seam in seams.seam_status() if seam.board} == {"applied"}
    assert board.missing_board() is None


def test_accordion_stands_behind_that_of_rlhf(built_page: DrivenPage) -> None:
    siblings = built_page.element("rlhf_tab").parent.children
    place = siblings.index(built_page.element("rlhf_tab"))
    assert siblings[place + 1] is built_page.element("tpaw_tab")
    assert siblings.count(built_page.element("tpaw_tab")) == 1


@pytest.mark.parametrize("name", NAMES)
def test_field_belongs_to_the_page(built_page: DrivenPage, name: str) -> None:
    element = built_page.element(name)
    assert element.elem_id == name
    for button in BUTTONS:
        (function,) = built_page._connected(built_page.element(button), "click")
        assert element in function.inputs
    assert element not in built_page._connected(built_page.element("eval.start_btn"), "click")[0].inputs


def test_manager_is_as_it_was(built_page: DrivenPage) -> None:
    assert "get_base_elems" not in vars(built_page.manager)
    assert len(built_page.manager.get_base_elems()) == 10


@pytest.mark.parametrize("lang", LANGUAGES)
def test_language_changes_every_text_of_ours(page: DrivenPage, lang: str) -> None:
    page.show(top__lang=lang)
    page.fire("top.lang", "change")
    for element_id, element in page.manager._id_to_elem.items():
        name = element_id.partition(".")[2]
        if name in LOCALES and isinstance(element, gr.blocks.Block):
            for key, text in LOCALES[name][lang].items():
                shown = page[element_id] if key == "value" else page.properties[element_id, key]
                assert shown == text


def test_runs_and_prompts_are_offered(demo: DrivenPage) -> None:
    demo.fire("training_stage", "change")
    assert demo.properties["train.tpaw_run", "choices"] == ["Tiny/spin", "Tiny/tpaw"]
    assert demo.properties["train.tpaw_prompts", "choices"] == ["ultrachat_200k", "gsm8k", "tiny_train"]
    assert demo.properties["train.tpaw_tab", "open"] is True
    demo.show(tpaw_run="Tiny/tpaw")
    demo.fire("tpaw_run", "change")
    assert [value for _, value in demo.properties["train.tpaw_iteration", "choices"]] == [0, 1, 2]
    assert demo.properties["train.tpaw_players", "choices"] == [
        ("θ_0 · sft", "saves/Tiny/full/sft"),
        ("θ_1 · tpaw_iter0", "saves/Tiny/full/tpaw_iter0"),
        ("θ_2 · tpaw_iter1", "saves/Tiny/full/tpaw_iter1"),
    ]


def test_other_stages_hear_nothing_of_it(demo: DrivenPage) -> None:
    demo.show(training_stage="DPO", dataset=["tiny_train"], tpaw_run="Tiny/tpaw")
    assert demo.fire("training_stage", "change") == {"train.dataset": [], "train.packing": False}
    assert demo.fire("tpaw_run", "input") == demo.fire("tpaw_iteration", "input") == {}


def test_choosing_the_stage_keeps_rounds_only(demo: DrivenPage) -> None:
    demo.show(dataset=["tiny_train", "tiny_tpaw_iter0"])
    demo.fire("training_stage", "change")
    assert demo["dataset"] == ["tiny_tpaw_iter0"]


def test_choosing_a_run_fills_in_what_comes_next(demo: DrivenPage) -> None:
    demo.show(tpaw_run="Tiny/tpaw")
    demo.fire("tpaw_run", "input")
    assert demo["tpaw_iteration"] == 1
    assert demo["top.model_path"] == "saves/Tiny/full/tpaw_iter0"
    assert demo["tpaw_players"] == ["saves/Tiny/full/sft", "saves/Tiny/full/tpaw_iter0"]
    assert demo["dataset"] == ["tiny_tpaw_iter0", "tiny_tpaw_iter1"]
    assert demo["output_dir"] == "saves/Tiny/full/tpaw_iter1"
    assert (demo["tpaw_prompts"], demo["tpaw_reward_scale"], demo["compute_type"]) == ("tiny_train", 1.0, "fp32")
    assert json.loads(demo["extra_args"])["use_cpu"] is True
    assert demo["output_box"] == "Iteration 1 of tpaw filled in from what is on disk."


def test_choosing_an_iteration_fills_it_in(demo: DrivenPage) -> None:
    demo.show(tpaw_run="Tiny/tpaw", tpaw_iteration="2")
    demo.fire("tpaw_iteration", "input")
    assert demo["dataset"] == ["tiny_tpaw_iter0", "tiny_tpaw_iter1", "tiny_tpaw_iter2"]
    assert demo["tpaw_iteration"] == 2
    demo.show(tpaw_iteration="two")
    demo.fire("tpaw_iteration", "input")
    assert "<code>" not in demo["output_box"]
    assert "`tpaw_iteration` is 'two'" in demo["output_box"]
    assert demo.warnings


def test_new_run_takes_what_the_page_shows(demo: DrivenPage) -> None:
    demo.show(tpaw_run="mine", top__model_path="org/base", tpaw_eta="4", tpaw_prompts="gsm8k")
    demo.fire("tpaw_run", "input")
    assert demo["dataset"] == ["Custom_mine_iter0"]
    assert (demo["output_dir"], demo["tpaw_players"]) == ("mine_iter0", ["org/base"])
    assert demo.properties["train.tpaw_players", "choices"] == [("θ_0 · org/base", "org/base")]
    assert (demo["tpaw_eta"], demo["tpaw_prompts"], demo["tpaw_iteration"]) == ("4", "gsm8k", 0)


def test_files_that_cannot_be_read_are_named(demo: DrivenPage) -> None:
    Path("yaml/tiny_tpaw_iter2.yaml").write_text("stage: tpaw\ntpaw_iteration: [<b>\n")
    demo.show(tpaw_run="Tiny/tpaw")
    demo.fire("tpaw_run", "input")
    filled_in, named = demo["output_box"].split("\n\n")
    assert filled_in == "Iteration 1 of tpaw filled in from what is on disk."
    assert named.startswith("- The run file yaml/tiny_tpaw_iter2.yaml cannot be read")
    assert "<b>" not in named + demo.warnings[0]


def test_name_that_leads_elsewhere_is_refused(demo: DrivenPage) -> None:
    demo.show(tpaw_run="../../outside")
    before = dict(demo.values)
    demo.fire("tpaw_run", "input")
    demo.values.pop(demo.element("output_box"))
    before.pop(demo.element("output_box"))
    assert demo.values == before
    assert "outside" in demo.warnings[0]


def test_fields_that_do_nothing_are_greyed_out(page: DrivenPage) -> None:
    page.show(tpaw_prompts="tiny_train", tpaw_objective="tspin")
    page.fire("tpaw_objective", "change")
    usable = {name: page.properties[f"train.{name}", "interactive"] for name in NAMES[2:]}
    greyed = {name for name, shown in usable.items() if not shown}
    assert {"tpaw_eta", "tpaw_gamma", "tpaw_reward_scale", "tpaw_engine_url"} <= greyed
    assert not {"tpaw_scale", "tpaw_history_weight", "tpaw_iteration", "tpaw_temperature"} & greyed
    page.show(tpaw_objective="tpaw", tpaw_engine="openai")
    page.fire("tpaw_engine", "change")
    assert page.properties["train.tpaw_engine_url", "interactive"] is True
    assert page.properties["train.tpaw_eta", "interactive"] is True


def test_initially_greyed_out_is_what_does_nothing(built_page: DrivenPage) -> None:
    off = [name for name in NAMES if built_page.element(name).interactive is False]
    assert sorted(off) == ["tpaw_engine_url", "tpaw_history_weight", "tpaw_scale"]


def test_preview_shows_the_command_of_each_iteration(demo: DrivenPage) -> None:
    demo.show(tpaw_run="Tiny/tpaw", tpaw_iterations=2)
    demo.fire("tpaw_run", "input")
    text = demo.fire("cmd_preview_btn", "click")["train.output_box"]
    assert text.startswith("```bash\nllamafactory-cli train \\\n    --stage tpaw")
    assert re.findall(r"--tpaw_iteration (\d)", text) == ["1", "2"]
    assert "--default_system ''" in text
    assert "--model_name_or_path saves/Tiny/full/tpaw_iter1 " in text
    assert "trust_remote_code" not in text
    demo.show(tpaw_trust_remote_code=True, tpaw_iterations=1)
    assert "--trust_remote_code True" in demo.fire("cmd_preview_btn", "click")["train.output_box"]
    assert sorted(path.name for path in Path().iterdir()) == ["data", "saves", "yaml"]


def test_saved_configuration_comes_back(demo: DrivenPage) -> None:
    demo.show(tpaw_run="Tiny/tpaw", tpaw_eta="9.5", config_path="mine.yaml")
    demo.fire("tpaw_run", "input")
    demo.show(tpaw_eta="9.5", tpaw_iterations=3, tpaw_trust_remote_code=True)
    shown = {name: demo[name] for name in (*ELEMENTS, *NAMES) if name not in ("tpaw_tab",)}
    assert "mine.yaml" in demo.fire("arg_save_btn", "click")["train.output_box"]
    demo.values = dict(demo.initial)
    demo.show(top__lang="en", config_path="mine.yaml")
    demo.fire("arg_load_btn", "click")
    assert {name: demo[name] for name in shown} == shown
    named = demo.properties["train.tpaw_players", "choices"]
    assert [label.split(" · ")[0] for label, path in named if path in demo["tpaw_players"]] == ["θ_0", "θ_1"]
    assert demo["training_stage"] == "TPAW"
    demo.fire("training_stage", "change")
    assert demo["dataset"] == shown["train.dataset"]


def test_loaded_configuration_keeps_its_model(demo: DrivenPage) -> None:
    demo.show(tpaw_run="Tiny/tpaw", config_path="mine.yaml")
    demo.fire("tpaw_run", "input")
    demo.fire("arg_save_btn", "click")
    demo.values = dict(demo.initial)
    demo.show(top__lang="en", config_path="mine.yaml")
    demo.fire("arg_load_btn", "click")
    demo.show(top__template="qwen")
    demo.fire("top.model_name", "change")  # as the browser does where the name was another
    assert (demo["top.model_path"], demo["top.template"]) == ("saves/Tiny/full/tpaw_iter0", "default")
    demo.fire("top.model_name", "change")  # by the user
    assert demo["top.model_path"] == ""


def test_configuration_of_before_still_loads(demo: DrivenPage) -> None:
    Path("llamaboard_config").mkdir()
    Path("llamaboard_config/old.yaml").write_text("train.learning_rate: '1e-6'\ntrain.training_stage: DPO\n")
    demo.show(config_path="old.yaml", tpaw_eta="3")
    demo.fire("arg_load_btn", "click")
    assert (demo["learning_rate"], demo["training_stage"], demo["tpaw_eta"]) == ("1e-6", "DPO", "3")


def test_dataset_that_is_yet_to_be_generated_can_be_chosen(demo: DrivenPage) -> None:
    demo.show(dataset=["nowhere_iter0"])
    demo.fire("dataset", "change")
    assert demo.properties["train.data_preview_btn", "interactive"] is False


def test_wrong_input_is_said_in_preview_and_save(demo: DrivenPage) -> None:
    demo.show(tpaw_run="Tiny/tpaw")
    demo.fire("tpaw_run", "input")
    demo.show(learning_rate="<b>fast</b>", tpaw_iterations=0, config_path="wrong.yaml")
    for button in ("cmd_preview_btn", "arg_save_btn"):
        text: Any = demo.fire(button, "click")["train.output_box"]
        assert "`learning_rate` is '&lt;b&gt;fast&lt;/b&gt;', but must be a number" in text
        assert "iterations to play is 0" in text
    assert not Path("llamaboard_config/wrong.yaml").exists()
