# SPDX-License-Identifier: Apache-2.0
"""What is said of a run's keys before anything is read; more of it is in tests/integration/bad_input."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llamafactory_tpaw.arguments.checks import INCOMPATIBLE, read_tpaw_args, setting_problems
from llamafactory_tpaw.arguments.fields import FIELDS, RANGES, TpawArguments, parse_value
from llamafactory_tpaw.errors import ConfigError


SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
GIVEN: dict[str, Any] = {
    "model_name_or_path": "saves/sft",
    "template": "qwen",
    "dataset": "play_iter0",
    "output_dir": "saves/iter0",
    "finetuning_type": "full",
    "tpaw_prompts": "additions",
} | SAMPLING


def test_good_settings_have_no_problem() -> None:
    assert setting_problems(GIVEN) == []
    harmless = {key: values[0] for key, (values, _) in INCOMPATIBLE.items() if values}
    assert len(harmless) > 5
    assert setting_problems(GIVEN | harmless) == []


LORA = {"finetuning_type": "lora", "adapter_name_or_path": "saves/a"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (LORA | {"quantization_bit": 4, "create_new_adapter": True}, "`quantization_bit: 4` goes with one adapter"),
        (LORA | {"quantization_bit": 8, "adapter_name_or_path": ["a", "b"]}, "`quantization_bit: 8` goes with one"),
    ],
)
def test_adapters_and_quantized_models(changes: dict[str, Any], said: str) -> None:
    (problem,) = setting_problems(GIVEN | changes)
    assert problem.startswith(said)


@pytest.mark.parametrize("changes", [{}, {"create_new_adapter": True}, {"quantization_bit": 4}])
def test_good_adapters_have_no_problem(changes: dict[str, Any]) -> None:
    assert setting_problems(GIVEN | LORA | changes) == []


def test_wrong_tpaw_keys_fall_back_to_their_defaults() -> None:
    wrong = {"tpaw_eta": 0.5, "tpaw_scale": "inf", "tpaw_team_size": -1, "tpaw_iteration": True}
    arguments, problems = read_tpaw_args({"tpaw_gamma": "2", "stage": "tpaw", **wrong})
    assert (arguments.tpaw_eta, arguments.tpaw_gamma, arguments.tpaw_team_size) == (6.0, 2.0, 3)
    told = {f"`{key}` is {value}, but must be" for key, value in wrong.items()}
    assert {problem[: problem.index(" be") + 3] for problem in problems} == told


URL = "http://localhost:8000/v1"
OPENAI = {"tpaw_engine": "openai"}


@pytest.mark.parametrize(
    "changes",
    [
        {"tpaw_engine": "hf", "tpaw_samples_per_prompt": 4},
        {"tpaw_engine": "hf", "tpaw_engine_url": URL, "tpaw_engine_model": "tiny", "tpaw_vllm_command": "vllm"},
        {"tpaw_vllm_command": "vllm", "tpaw_vllm_args": "-O0"},  # may stay in a file whose engine is another one now
        OPENAI | {"tpaw_engine_url": f"{URL}, https://[::1]:8000", "tpaw_engine_model": "tiny"},
        OPENAI | {"tpaw_prompts": None},  # nothing is generated
        {
            "tpaw_engine": "vllm",
            "tpaw_vllm_command": "/opt/v/bin/vllm",
            "tpaw_vllm_args": "--max-num-seqs 8 --x 'a b'",
        },
        {"tpaw_samples_per_prompt": "many", "temperature": 0},  # said of the key itself
        {"tpaw_prompts": None, "temperature": None},
    ],
)
def test_keys_that_go_together(changes: dict[str, Any]) -> None:
    assert setting_problems(GIVEN | changes) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (OPENAI | {"tpaw_engine_url": " , "}, "tpaw_engine: openai"),
        ({"tpaw_samples_per_prompt": 2, "do_sample": False}, "tpaw_samples_per_prompt"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"cutoff_len": 0}, "cutoff_len"),
    ],
)
def test_keys_that_do_not(changes: dict[str, Any], named: str) -> None:
    (problem,) = setting_problems(GIVEN | changes)
    assert problem.startswith(f"`{named}")


@pytest.mark.parametrize("option", ["--max-model-len", "--no-enable-prefix-caching", "--api-key", "--hf-token"])
def test_what_is_set_for_vllm_cannot_be_set_again(option: str) -> None:
    for text in (f"{option} x", f"{option}=x".replace("max-model", "max_model")):
        (problem,) = setting_problems(GIVEN | {"tpaw_engine": "vllm", "tpaw_vllm_args": text})
        assert problem.startswith(f"`tpaw_vllm_args` has {option}, which the run settles")
    others = "--max-num-seqs 64 -tp 2 --tokenizer-mode slow --speculative-config '{\"a\": 1}'"
    assert setting_problems(GIVEN | {"tpaw_engine": "vllm", "tpaw_vllm_args": others}) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://me:geheim@host/v1",
        "http://host/v1?key=geheim",
        "http://host:65536/geheim",
        "ftp://host/geheim",
        "geheim.example/v1",
        "http:///geheim",
        f"{URL} http://geheim:8000/v1",
    ],
)
def test_a_wrong_address_is_refused_and_what_may_be_secret_not_repeated(url: str) -> None:
    (problem,) = setting_problems(GIVEN | OPENAI | {"tpaw_engine_url": [URL, url]})
    assert "address 2 is none. Put the key into the environment variable `TPAW_ENGINE_API_KEY`" in problem
    assert "geheim" not in problem


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("tpaw_iteration", "2", 2),
        ("tpaw_eta", 1, 1.0),
        ("tpaw_eta", "6e0", 6.0),
        ("tpaw_reward_scale", "1.0e-2", 0.01),
        ("tpaw_max_prompts", None, None),
        ("tpaw_prompts", 7, "7"),
        ("tpaw_players", "a, b,", ["a", "b"]),
        ("tpaw_players", ["a ", "b"], ["a", "b"]),
        ("tpaw_engine_url", "http://a:8000/v1, https://b/v1", ["http://a:8000/v1", "https://b/v1"]),
    ],
)
def test_values_are_read_as_their_type(name: str, value: Any, parsed: Any) -> None:
    result = parse_value(name, value)
    assert result == (parsed, None)
    assert type(result[0]) is type(parsed)


def test_every_number_has_a_range_that_holds_its_default() -> None:
    numbers = {name for name, spec in FIELDS.items() if spec.type in (int, float, int | None)}
    assert numbers == set(RANGES)
    for name in numbers:
        default = FIELDS[name].default
        assert default is None or RANGES[name].holds(default)


def test_class_coerces_and_tells_everything_at_once() -> None:
    arguments = TpawArguments(tpaw_players="a,b", tpaw_eta="2")
    assert (arguments.tpaw_players, arguments.tpaw_eta) == (["a", "b"], 2.0)
    with pytest.raises(ConfigError) as caught:
        TpawArguments(tpaw_eta=0, tpaw_gamma=-1)
    assert len(caught.value.problems) == 2
