# SPDX-License-Identifier: Apache-2.0
"""Prompts as messages of the chat API."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.generation.conversation import messages_of, tools_of


def prompt(*turns: tuple[str, str], system: str = "", tools: str = "") -> Any:
    messages = [{"role": role, "content": content} for role, content in turns]
    return SimpleNamespace(messages=messages, system=system, tools=tools)


def test_turns_and_system() -> None:
    turns = (("user", "a"), ("assistant", "b"), ("user", " c "))
    assert messages_of(prompt(*turns, system="s")) == [
        {"role": "system", "content": "s"},
        *({"role": role, "content": content} for role, content in turns),
    ]
    assert messages_of(prompt(("user", "a"))) == [{"role": "user", "content": "a"}]


def test_calls_of_tools() -> None:
    calls = '[{"name": "add", "arguments": {"a": 1}}, {"name": "now"}]'
    turns = (("user", "?"), ("function", calls), ("observation", '["1", {"hour": 2}]'))
    _, asking, *results = messages_of(prompt(*turns))
    called = asking["tool_calls"]
    assert (asking["role"], asking["content"]) == ("assistant", None)
    assert [call["function"] for call in called] == [
        {"name": "add", "arguments": '{"a": 1}'},
        {"name": "now", "arguments": "{}"},
    ]
    assert [(message["role"], message["content"]) for message in results] == [("tool", "1"), ("tool", '{"hour": 2}')]
    assert [message["tool_call_id"] for message in results] == [call["id"] for call in called]


def test_one_call_takes_any_result() -> None:
    turns = (("user", "?"), ("function", '{"name": "add"}'), ("observation", "not [JSON"))
    assert messages_of(prompt(*turns))[2]["content"] == "not [JSON"


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("observation", "1")], "no message of role 'observation' in this place"),
        ([("narrator", "1")], "no message of role 'narrator'"),
        ([("function", "add(1)")], "no JSON text"),
        ([("function", '{"call": 1}')], "names no function"),
        ([("function", "[]")], "names no function"),
        ([("function", '[{"name": "a"}, {"name": "b"}]'), ("observation", "1")], "no list of as many"),
        ([("function", '[{"name": "a"}, {"name": "b"}]'), ("observation", "x")], "no JSON list"),
    ],
)
def test_what_the_api_does_not_have(turns: list[tuple[str, str]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        messages_of(prompt(*turns))


def test_tools() -> None:
    assert tools_of(prompt()) == []
    described = {"name": "add", "parameters": {}}
    wrapped = {"type": "function", "function": described}
    assert tools_of(prompt(tools='[{"name": "add", "parameters": {}}]')) == [wrapped]
    assert tools_of(prompt(tools='[{"type": "function", "function": {"name": "add", "parameters": {}}}]')) == [wrapped]
    for tools, reason in (("add", "no JSON"), ('{"name": "add"}', "no list")):
        with pytest.raises(ValueError, match=reason):
            tools_of(prompt(tools=tools))
