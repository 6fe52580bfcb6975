# SPDX-License-Identifier: Apache-2.0
"""What a file's columns are, from its rows."""

from __future__ import annotations

from typing import Any

import pytest

from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.runs.scaffold.columns import find_columns


def pair(**columns: str) -> dict[str, Any]:
    return {"columns": columns}


def talk(role: str, content: str, *roles: str, **extra: Any) -> dict[str, Any]:
    return {"chat": [{role: name, content: "text"} for name in roles], **extra}


PAIRS = [
    (["instruction", "input", "output"], pair(prompt="instruction", query="input", response="output")),
    (["instruction", "output"], pair(prompt="instruction", response="output")),
    (["prompt", "response"], pair(prompt="prompt", response="response")),
    (["question", "answer", "id"], pair(prompt="question", response="answer")),
    (["input", "target"], pair(prompt="input", response="target")),
    (["problem", "solution"], pair(prompt="problem", response="solution")),
    (["prompt", "completion", "system"], pair(prompt="prompt", response="completion", system="system")),
]


@pytest.mark.parametrize(
    ("names", "entry"), PAIRS, ids=lambda value: "-".join(value) if isinstance(value, list) else ""
)
def test_pairs(names: list[str], entry: dict[str, Any]) -> None:
    assert find_columns("a.json", [dict.fromkeys(names, "text")], {}) == entry


TALKS = [
    (
        talk("from", "value", "human", "gpt"),
        "sharegpt",
        {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
    ),
    (
        talk("role", "content", "system", "user", "assistant"),
        "sharegpt",
        {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    ),
    (
        talk("from", "value", "human", "function_call", "observation", "gpt"),
        "sharegpt",
        {
            "role_tag": "from",
            "content_tag": "value",
            "user_tag": "human",
            "assistant_tag": "gpt",
            "observation_tag": "observation",
            "function_tag": "function_call",
        },
    ),
]


@pytest.mark.parametrize(("row", "formatting", "tags"), TALKS)
def test_conversations(row: dict[str, Any], formatting: str, tags: dict[str, str]) -> None:
    entry = find_columns("a.json", [row], {})
    assert entry == {"formatting": formatting, "columns": {"messages": "chat"}, "tags": tags}


def test_tool_calls_are_openai() -> None:
    row = talk("role", "content", "user", "assistant", "tool", "assistant")
    row["chat"][1]["tool_calls"] = [{"function": {}}]
    entry = find_columns("a.json", [row], {})
    assert entry["formatting"] == "openai"
    assert (entry["tags"]["observation_tag"], entry["tags"]["function_tag"]) == ("tool", "function")


def test_a_system_column_is_used_only_where_it_holds_texts() -> None:
    rows = [
        talk("from", "value", "human", "gpt", system=""),
        talk("from", "value", "human", "gpt", system="Be brief."),
    ]
    assert find_columns("a.json", rows, {})["columns"] == {"messages": "chat", "system": "system"}
    assert find_columns("a.json", rows[:1], {})["columns"] == {"messages": "chat"}


def test_messages_count_more_than_pairs() -> None:
    row = talk("role", "content", "user", "assistant", problem="a", answer="b")
    assert find_columns("a.json", [row], {})["columns"] == {"messages": "chat"}


def test_given_columns_settle_it() -> None:
    rows = [{"problem": "a", "solution": "b", "answer": "c", "note": "d"}]
    entry = find_columns("a.json", rows, {"prompt": "problem", "response": "solution"})
    assert entry == pair(prompt="problem", response="solution")
    entry = find_columns("a.json", rows, {"response": "answer", "system": "note"})
    assert entry == pair(prompt="problem", response="answer", system="note")
    row = talk("from", "value", "human", "gpt", question="a", answer="b")
    assert find_columns("a.json", [row], {"prompt": "question"}) == pair(prompt="question", response="answer")


REFUSED = [
    ([{"text": "a", "label": 1}], {}, "a.json has the columns `text`, `label`. init finds its way by `instruction`"),
    (
        [{"problem": "a", "solution": "b", "answer": "c"}],
        {},
        "`answer`, `solution` all could be the response. Say which is which with `--columns prompt=…,response=…`",
    ),
    ([{"question": "a", "query": "a", "answer": "c"}], {}, "`question`, `query` all could be the prompt."),
    ([{"prompt": "a", "chosen": "b", "rejected": "c"}], {}, "so it is a preference set"),
    ([{"a": "b"}], {"prompt": "x", "response": "a"}, "`--columns` names `x`, but a.json has the columns `a`."),
    ([{"m": "text"}], {"messages": "m"}, "`m` of a.json does not hold lists of messages"),
    ([talk("role", "content", "user", "narrator")], {}, "have the roles `user`, `narrator`, of which init must know"),
    ([talk("role", "content", "user", "human", "assistant")], {}, "have the roles `user`, `human`, `assistant`"),
]


@pytest.mark.parametrize(("rows", "given", "message"), REFUSED)
def test_refused(rows: list[dict[str, Any]], given: dict[str, str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        find_columns("a.json", rows, given)
    assert message in str(caught.value)
