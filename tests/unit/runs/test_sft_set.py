# SPDX-License-Identifier: Apache-2.0
"""Files are understood by the usual names of their columns, and named in `dataset_info.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.errors import ConfigError, DataError, TpawError
from llamafactory_tpaw.runs.sft_set import SftSet, find_columns, find_sft_set


COLUMNS = {"prompt": "question", "response": "answer"}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def talk(role: str, content: str, *roles: str, **extra: Any) -> dict[str, Any]:
    return {"chat": [{role: name, content: "text"} for name in roles], **extra}


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        ("instruction input output", {"prompt": "instruction", "query": "input", "response": "output"}),
        ("prompt response", {"prompt": "prompt", "response": "response"}),
        ("question answer id", COLUMNS),
        ("input target", {"prompt": "input", "response": "target"}),
        ("prompt completion system", {"prompt": "prompt", "response": "completion", "system": "system"}),
    ],
)
def test_pairs(names: str, columns: dict[str, str]) -> None:
    assert find_columns("a.json", [dict.fromkeys(names.split(), "text")], {}) == {"columns": columns}


@pytest.mark.parametrize(
    ("shape", "roles", "tags"),
    [
        (("from", "value"), ("human", "gpt"), {"user_tag": "human", "assistant_tag": "gpt"}),
        (
            ("role", "content"),
            ("system", "user", "assistant"),
            {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"},
        ),
        (
            ("from", "value"),
            ("human", "function_call", "observation", "gpt"),
            {
                "user_tag": "human",
                "assistant_tag": "gpt",
                "observation_tag": "observation",
                "function_tag": "function_call",
            },
        ),
    ],
)
def test_conversations(shape: tuple[str, str], roles: tuple[str, ...], tags: dict[str, str]) -> None:
    row = talk(*shape, *roles, problem="a", answer="b", system="")
    entry = find_columns("a.json", [row], {})
    tags = {"role_tag": shape[0], "content_tag": shape[1], **tags}
    assert entry == {"formatting": "sharegpt", "columns": {"messages": "chat"}, "tags": tags}


def test_tool_calls_and_system_texts() -> None:
    row = talk("role", "content", "user", "assistant", "tool", "assistant", system="Be brief.")
    row["chat"][1]["tool_calls"] = [{"function": {}}]
    entry = find_columns("a.json", [row], {})
    assert (entry["formatting"], entry["columns"]["system"]) == ("openai", "system")
    assert (entry["tags"]["observation_tag"], entry["tags"]["function_tag"]) == ("tool", "function")


def test_given_columns_settle_it() -> None:
    rows = [{"problem": "a", "solution": "b", "answer": "c", "note": "d"}]
    columns = {"prompt": "problem", "response": "solution"}
    assert find_columns("a.json", rows, columns) == {"columns": columns}
    given = {"response": "answer", "system": "note"}
    assert find_columns("a.json", rows, given) == {"columns": {"prompt": "problem", **given}}
    row = talk("from", "value", "human", "gpt", question="a", answer="b")
    assert find_columns("a.json", [row], {"prompt": "question"}) == {"columns": COLUMNS}


@pytest.mark.parametrize(
    ("row", "given", "message"),
    [
        (
            {"text": "a", "label": 1},
            {},
            "is the prompt cannot be told .* It has `text`, `label`",
        ),
        ({"problem": "a", "solution": "b", "answer": "c"}, {}, "is the response cannot be told"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {}, "a.json is a preference set"),
        ({"a": "b"}, {"prompt": "x"}, "`--columns prompt=x` does not fit a.json"),
        (talk("role", "content", "user", "narrator"), {}, "it has the roles `user`, `narrator`"),
    ],
)
def test_columns_that_are_refused(row: dict[str, Any], given: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_columns("a.json", [row], given)


def write(path: str, **entries: Any) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text('{"question": "a", "answer": "b"}\n' * 3)
    Path("data").mkdir(exist_ok=True)
    Path("data/dataset_info.json").write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("path", "name", "file_name"),
    [
        ("data/sums.jsonl", "sums", "sums.jsonl"),
        ("gsm8k/train.jsonl", "gsm8k_train", "../gsm8k/train.jsonl"),
        ("set/taken.jsonl", "set_taken", "../set/taken.jsonl"),
        ("a b.jsonl", "a_b", "../a b.jsonl"),
    ],
)
def test_names_of_new_entries(path: str, name: str, file_name: str) -> None:
    write(path, taken={"hf_hub_url": "a/b"})
    entry = {"file_name": file_name, "columns": COLUMNS}
    assert find_sft_set(Path("data"), path, {}) == SftSet(name, entry, True, Path(path), 3)
    write(path, known=entry)
    assert find_sft_set(Path("data"), path, {}) == SftSet("known", entry, False, Path(path), 3)
    assert find_sft_set(Path("data"), "known", {}).total == 3


@pytest.mark.parametrize(
    ("entry", "kind", "message"),
    [
        ({"hf_hub_url": "a/b", "ranking": True}, ConfigError, "must be an SFT set without `ranking`"),
        ({"hf_hub_url": "a/b", "num_samples": 5}, ConfigError, "and `num_samples`"),
        ("text", ConfigError, "`--data mine` names an entry of"),
        ({"file_name": "gone.json"}, DataError, "names data/gone.json"),
    ],
)
def test_entries_that_are_refused(entry: Any, kind: type[TpawError], message: str) -> None:
    write("a.jsonl", mine=entry, far={"hf_hub_url": "a/b"})
    with pytest.raises(kind, match=message):
        find_sft_set(Path("data"), "mine", {})
    assert find_sft_set(Path("data"), "far", {}) == SftSet("far", {"hf_hub_url": "a/b"}, False)
