# SPDX-License-Identifier: Apache-2.0
"""Keys of engines that go together, and secrets that stay out of messages."""

from __future__ import annotations

from typing import Any

import pytest

from llamafactory_tpaw.arguments.engine import engine_problems, url_problem


URL = "http://localhost:8000/v1"
GOOD: list[dict[str, Any]] = [
    {},
    {"tpaw_engine": "hf", "tpaw_samples_per_prompt": 4, "temperature": 1.0},
    {"tpaw_engine": "openai", "tpaw_engine_url": URL, "tpaw_engine_model": "tiny", "tpaw_prompts": "additions"},
    {"tpaw_engine": "openai"},  # nothing is generated
    {"tpaw_engine": "vllm", "tpaw_vllm_command": "/opt/v/bin/vllm", "tpaw_vllm_args": "--max-num-seqs 8 --x 'a b'"},
    {"tpaw_samples_per_prompt": "many", "temperature": 0},  # said of the key itself
]


@pytest.mark.parametrize("given", GOOD)
def test_keys_that_go_together(given: dict[str, Any]) -> None:
    assert engine_problems(given) == []


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"tpaw_engine": "vllm", "tpaw_engine_url": URL}, "tpaw_engine_url"),
        ({"tpaw_engine_model": "tiny"}, "tpaw_engine_model"),
        ({"tpaw_engine": "openai", "tpaw_vllm_args": "-O0"}, "tpaw_vllm_args"),
        ({"tpaw_engine": "hf", "tpaw_vllm_command": "vllm"}, "tpaw_vllm_command"),
        ({"tpaw_engine": "openai", "tpaw_prompts": "additions"}, "tpaw_engine: openai"),
        ({"tpaw_engine": "openai", "tpaw_prompts": "additions", "tpaw_engine_url": " , "}, "tpaw_engine: openai"),
        ({"tpaw_engine": "openai", "tpaw_engine_url": [URL, f"{URL}/"]}, "tpaw_engine_url` has the address"),
        ({"tpaw_engine": "vllm", "tpaw_vllm_args": "--api-key=x"}, "tpaw_vllm_args"),
        ({"tpaw_samples_per_prompt": 2, "temperature": "0.0"}, "tpaw_samples_per_prompt"),
        ({"tpaw_samples_per_prompt": 2, "do_sample": False}, "tpaw_samples_per_prompt"),
    ],
)
def test_keys_that_do_not(given: dict[str, Any], named: str) -> None:
    (problem,) = engine_problems(given)
    assert problem.startswith(f"`{named}")


@pytest.mark.parametrize(
    "url",
    [
        "http://me:geheim@host/v1",
        "https://geheim@host",
        "http://host/v1?key=geheim",
        "http://host/v1#geheim",
        "me:geheim@host:8000",
        "http://me:geheim@host:port/v1",
        "ftp://host/?geheim",
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(url: str) -> None:
    problem = url_problem(url)
    assert problem is not None
    assert "geheim" not in problem


@pytest.mark.parametrize("between", [";", " ", "; ", "\n", ""])
def test_several_addresses_stand_with_commas_between(between: str) -> None:
    problem = url_problem(f"{URL}{between}http://other:8000/v1")
    assert problem is not None
    assert "commas" in problem


def test_a_key_among_arguments_is_not_repeated() -> None:
    (problem,) = engine_problems({"tpaw_engine": "vllm", "tpaw_vllm_args": "--api-key geheim"})
    assert "geheim" not in problem
    assert "TPAW_ENGINE_API_KEY" in problem
