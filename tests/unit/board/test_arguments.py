# SPDX-License-Identifier: Apache-2.0
"""What the page shows and what a run file says: the one from the other, and back."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from llamafactory_tpaw.arguments.fields import FIELDS
from llamafactory_tpaw.board.arguments import elements_from, settings_from
from llamafactory_tpaw.board.fields import BY_KEY, OURS, TABLE, not_used
from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.lf import facade
from llamafactory_tpaw.runs.families import FAMILIES
from tests.unit.board.projects import committed


RUN_FILES = [
    f"{family.name}_{method}_iter{iteration}"
    for family in FAMILIES
    for method in family.self_play
    for iteration in range(family.iterations[method])
]
# What the page shows when it opens, as far as it decides something.
SHOWN: dict[str, Any] = {
    "top.model_name": "Custom",
    "top.model_path": "org/base",
    "top.finetuning_type": "full",
    "top.checkpoint_path": None,
    "top.quantization_bit": "none",
    "top.quantization_method": "bnb",
    "top.template": "qwen",
    "top.rope_scaling": "none",
    "top.booster": "auto",
    "train.dataset_dir": "data",
    "train.dataset": ["one_iter0"],
    "train.learning_rate": "5e-5",
    "train.num_train_epochs": "3.0",
    "train.max_grad_norm": "1.0",
    "train.max_samples": "100000",
    "train.compute_type": "bf16",
    "train.cutoff_len": 2048,
    "train.batch_size": 2,
    "train.gradient_accumulation_steps": 8,
    "train.val_size": 0,
    "train.lr_scheduler_type": "cosine",
    "train.logging_steps": 5,
    "train.save_steps": 100,
    "train.warmup_steps": 0,
    "train.enable_thinking": True,
    "train.lora_alpha": 16,
    "train.lora_dropout": 0,
    "train.report_to": "none",
    "train.ds_stage": "none",
    "train.output_dir": "one_iter0",
    "train.extra_args": "{}",
    "train.tpaw_prompts": "my_sft",
    "train.tpaw_players": ["org/base"],
    **{
        f"train.{name}": "" if spec.default is None else spec.default
        for name, spec in FIELDS.items()
        if name in BY_KEY and name not in ("tpaw_prompts", "tpaw_players")
    },
    **{f"train.tpaw_{key}": value for key, value in (("temperature", 1), ("top_p", 1), ("top_k", 0))},
    "train.tpaw_max_new_tokens": 1024,
}


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    """What LlamaFactory takes where a run file lacks a key."""
    specs = [spec for kind in facade.TRAIN_ARGS for spec in dataclasses.fields(kind)]
    return {spec.name: spec.default for spec in specs if spec.default is not dataclasses.MISSING}


def test_defaults_of_the_table_are_llamafactorys(defaults: dict[str, Any]) -> None:
    differing = {field.key for field in TABLE if field.default != defaults.get(field.key)}
    assert differing == {"temperature", "top_p", "top_k", "max_new_tokens"}  # must be given where prompts are


@pytest.mark.parametrize("name", RUN_FILES)
def test_run_file_comes_back(name: str, defaults: dict[str, Any]) -> None:
    given = committed(name)
    back = settings_from({**SHOWN, **elements_from(given, SHOWN)})
    assert {key: back.get(key) for key in given} == given
    added = {key: value for key, value in back.items() if key not in given}
    assert added == {key: defaults[key] for key in added} | ({"plot_loss": True} if "plot_loss" in added else {})


def test_what_a_slider_cannot_show_travels_in_extra_args() -> None:
    given = committed("tiny_tpaw_iter1")
    shown = elements_from(given, SHOWN, lambda name, value: name != "train.batch_size")
    assert "train.batch_size" not in shown
    assert json.loads(shown["train.extra_args"])["per_device_train_batch_size"] == 32
    assert settings_from({**SHOWN, **shown})["per_device_train_batch_size"] == 32


def test_default_that_a_run_file_says_gives_way_to_its_field() -> None:
    given = committed("tiny_tpaw_iter1") | {"val_size": 0.0, "trust_remote_code": False, "dataset_dir": "data"}
    shown = {**SHOWN, **elements_from(given, SHOWN)}
    assert settings_from(shown)["val_size"] == 0.0
    changed = {"train.val_size": 0.5, "train.tpaw_trust_remote_code": True, "train.dataset_dir": "sets"}
    back = settings_from(shown | changed)
    assert (back["val_size"], back["trust_remote_code"], back["dataset_dir"]) == (0.5, True, "sets")
    typed = json.dumps({"learning_rate": 5e-5})
    assert settings_from(SHOWN | {"train.learning_rate": "1e-3", "train.extra_args": typed})["learning_rate"] == 5e-5


def test_page_as_it_opens() -> None:
    settings = settings_from(SHOWN)
    assert settings["model_name_or_path"] == "org/base"
    assert settings["output_dir"] == "saves/Custom/full/one_iter0"
    assert (settings["bf16"], settings["tpaw_eta"], settings["top_k"]) == (True, 6.0, 0)
    absent = {"trust_remote_code", "max_samples", "val_size", "tpaw_scale", "tpaw_engine_url", "quantization_bit"}
    assert not absent & set(settings)


def test_remote_code_is_trusted_only_where_the_box_is_ticked() -> None:
    assert settings_from({**SHOWN, "train.tpaw_trust_remote_code": True})["trust_remote_code"] is True
    assert "trust_remote_code" not in settings_from({**SHOWN, "train.tpaw_trust_remote_code": False})


@pytest.mark.parametrize(
    ("element", "typed", "message"),
    [
        ("train.learning_rate", "fast", "`learning_rate` is 'fast', but must be a number. Correct the field."),
        ("train.learning_rate", "", "`learning_rate` is empty. Give a number."),
        ("train.num_train_epochs", "0", "`num_train_epochs` is 0, but must be > 0. Correct the field."),
        ("train.max_samples", "many", "`max_samples` is 'many', but must be a whole number. Correct the field."),
        ("train.max_grad_norm", "nan", "`max_grad_norm` is nan, but must be >= 0. Correct the field."),
        ("train.tpaw_eta", "x", "`tpaw_eta` is 'x', but must be a number. Correct the field."),
        ("train.tpaw_eta", "0.5", "`tpaw_eta` is 0.5, but must be >= 1. Correct the field."),
        ("train.tpaw_team_size", 2.5, "`tpaw_team_size` is 2.5, but must be a whole number. Correct the field."),
        ("train.tpaw_iteration", "one", "`tpaw_iteration` is 'one', but must be a whole number. Correct the field."),
        ("train.tpaw_iteration", None, "`tpaw_iteration` is empty. Give a number."),
        ("train.tpaw_top_p", 0, "`top_p` is 0, but must be > 0 and <= 1. Correct the field."),
        ("train.tpaw_temperature", None, "`temperature` is empty. Give a number."),
        ("train.tpaw_max_prompts", "0", "`tpaw_max_prompts` is 0, but must be >= 1. Correct the field."),
        ("train.tpaw_engine", "gpt", "`tpaw_engine` is 'gpt', but must be `hf` or `vllm` or `openai`."),
        ("train.extra_args", "{", "`extra_args` is not JSON"),
        ("train.extra_args", "[1]", "`extra_args` is [1], but must be a JSON object"),
        ("train.extra_args", '{"stage": "sft"}', "`extra_args` asks for stage 'sft'"),
        ("train.extra_args", '{"stage": ["tpaw"]}', "`extra_args` asks for stage ['tpaw']"),
        ("train.extra_args", "[" * 100_000, "`extra_args` is not JSON"),
        ("train.extra_args", '{"trust_remote_code": true}', "`trust_remote_code: True`, but its field says False."),
        ("train.extra_args", '{"trust_remote_code": "yes"}', "`trust_remote_code: yes`, but its field says False."),
        ("train.extra_args", '{"output_dir": "saves/a"}', "its field says saves/Custom/full/one_iter0. Remove"),
        ("train.extra_args", '{"output_dir": null}', "`output_dir: None`, but its field"),
        ("train.extra_args", '{"dataset": true}', "`dataset: True`, but it must be a text or a list of texts."),
        ("train.extra_args", '{"dataset": [["a", 1]]}', "must be a text or a list of texts."),
        ("train.extra_args", '{"template": {"a": 1}}', "must be a text or a list of texts."),
        ("train.extra_args", '{"cutoff_len": 1e400}', "`cutoff_len: inf`, but a number in it is not finite"),
        ("train.extra_args", f'{{"seed": [{{"a": 1{"0" * 400}}}]}}', "a number in it is not finite or too large."),
        ("train.extra_args", '{"tpaw_proto": "a\\u0000"}', "a character in it that no file has."),
        ("train.extra_args", '{"tpaw_proto": [{"\\ud800": 1}]}', "a character in it that no file has."),
        ("train.extra_args", '{"dataset_dir": "elsewhere"}', "`dataset_dir: elsewhere`, but its field says data."),
    ],
)
def test_wrong_input_of_a_field(element: str, typed: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_from({**SHOWN, element: typed})
    (problem,) = caught.value.problems
    assert message in problem


def test_all_wrong_fields_are_named_at_once() -> None:
    wrong = {"train.learning_rate": "fast", "train.tpaw_gamma": "x", "train.extra_args": "{"}
    with pytest.raises(ConfigError) as caught:
        settings_from(SHOWN | wrong)
    assert len(caught.value.problems) == 3


def test_secret_of_swanlab_is_not_written() -> None:
    with pytest.raises(ConfigError, match="SWANLAB_API_KEY"):
        settings_from({**SHOWN, "train.use_swanlab": True, "train.swanlab_api_key": "s3cret"})


def test_fields_that_do_nothing_are_neither_written_nor_read() -> None:
    tspin = settings_from({**SHOWN, "train.tpaw_objective": "tspin", "train.tpaw_eta": "x"})
    assert not {"tpaw_eta", "tpaw_gamma", "tpaw_reward_scale"} & set(tspin)
    assert (tspin["tpaw_scale"], tspin["tpaw_history_weight"], tspin["tpaw_team_size"]) == (1.0, 0.1, 3)
    alone = settings_from({**SHOWN, "train.tpaw_prompts": None, "train.tpaw_temperature": None})
    assert not {"tpaw_prompts", "tpaw_engine", "temperature", "top_k", "max_new_tokens"} & set(alone)
    url = "http://host:1/v1"
    assert "tpaw_engine_url" not in settings_from({**SHOWN, "train.tpaw_engine_url": url})
    asked = settings_from({**SHOWN, "train.tpaw_engine": "openai", "train.tpaw_engine_url": f"{url}, {url}"})
    assert asked["tpaw_engine_url"] == f"{url},{url}"


def test_what_is_greyed_out() -> None:
    chosen = {"tpaw_objective": "tpaw", "tpaw_engine": "hf", "tpaw_prompts": "my_sft", "tpaw_reference": "cached"}
    assert not_used(chosen) == {"tpaw_scale", "tpaw_history_weight", "tpaw_engine_url"}
    assert "tpaw_cache_dir" in not_used(chosen | {"tpaw_reference": "online"})
    assert {"tpaw_eta", "tpaw_team_size", "tpaw_cache_dir"} <= not_used(chosen | {"tpaw_objective": "tspin"})
    assert not_used(chosen | {"tpaw_engine": "openai"}) == {"tpaw_scale", "tpaw_history_weight"}
    assert {"temperature", "tpaw_engine", "tpaw_max_prompts"} <= not_used(chosen | {"tpaw_prompts": None})


@pytest.mark.parametrize(
    ("shown", "written"),
    [
        ({"train.compute_type": "fp32"}, {"bf16": None, "fp16": None}),
        ({"train.compute_type": "pure_bf16"}, {"pure_bf16": True}),
        ({"top.booster": "flashattn2"}, {"flash_attn": "fa2"}),
        (
            {"train.ds_stage": "3", "train.ds_offload": True},
            {"deepspeed": "llamaboard_cache/ds_z3_offload_config.json"},
        ),
        ({"top.quantization_bit": "4"}, {"quantization_bit": 4, "quantization_method": "bnb"}),
        ({"top.checkpoint_path": "sft"}, {"model_name_or_path": "saves/Custom/full/sft"}),
        ({"train.output_dir": "saves/Other/full/x_iter0"}, {"output_dir": "saves/Other/full/x_iter0"}),
        ({"train.max_samples": "50"}, {"max_samples": 50}),
        ({"train.enable_thinking": False}, {"enable_thinking": False}),
        (
            {"train.val_size": 0.1},
            {"val_size": 0.1, "eval_strategy": "steps", "eval_steps": 100, "per_device_eval_batch_size": 2},
        ),
        (
            {"top.finetuning_type": "lora", "top.checkpoint_path": ["a", "b"], "train.lora_rank": 16},
            {"adapter_name_or_path": "saves/Custom/lora/a,saves/Custom/lora/b", "lora_rank": 16},
        ),
    ],
)
def test_elements_that_stand_for_several_keys(shown: dict[str, Any], written: dict[str, Any]) -> None:
    settings = settings_from({**SHOWN, **shown})
    assert {key: settings.get(key) for key in written} == written
    again = settings_from({**SHOWN, **elements_from(settings, {**SHOWN, **shown})})
    assert again == settings


def test_every_element_of_ours_has_a_key() -> None:
    assert {field.element.partition(".")[2] for field in OURS} == {
        "tpaw_iteration", "tpaw_players", "tpaw_team_size", "tpaw_objective", "tpaw_reward_scale", "tpaw_eta",
        "tpaw_gamma", "tpaw_scale", "tpaw_history_weight", "tpaw_prompts", "tpaw_max_prompts", "tpaw_engine",
        "tpaw_engine_url", "tpaw_samples_per_prompt", "tpaw_reference", "tpaw_grouping", "tpaw_cache_dir",
        "tpaw_temperature", "tpaw_top_p", "tpaw_top_k", "tpaw_max_new_tokens", "tpaw_trust_remote_code",
    }  # fmt: skip
