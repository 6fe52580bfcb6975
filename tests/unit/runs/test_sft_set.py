# SPDX-License-Identifier: Apache-2.0
"""Files are understood by the usual names of their columns, and named in `dataset_info.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.errors import ConfigError, DataError
from llamafactory_tpaw.runs.sft_set import ROLE_TAGS, SftSet, find_sft_set


COLUMNS = {"prompt": "question", "response": "answer"}


@pytest.fixture(autouse=True)
def _in_a_folder(elsewhere: Path) -> None:
    Path("data").mkdir()
    Path("data/dataset_info.json").write_text(json.dumps({"far": {"hf_hub_url": "a/b"}}))


def find(row: dict[str, Any], given: dict[str, str]) -> dict[str, Any]:
    """The entry of a file with one row, without its `file_name`."""
    Path("data/set.jsonl").write_text(json.dumps(row) + "\n")
    entry = find_sft_set(Path("data"), "data/set.jsonl", given).entry
    assert entry.pop("file_name") == "set.jsonl"
    return entry


@pytest.mark.parametrize(
    ("names", "given", "columns"),
    [
        ("instruction input output", {}, {"prompt": "instruction", "query": "input", "response": "output"}),
        ("input target", {}, {"prompt": "input", "response": "target"}),
        ("prompt completion system id", {}, {"prompt": "prompt", "response": "completion", "system": "system"}),
        ("problem solution answer", {"prompt": "problem", "response": "answer"}, None),
    ],
)
def test_pairs(names: str, given: dict[str, str], columns: dict[str, str] | None) -> None:
    assert find(dict.fromkeys(names.split(), "text"), given) == {"columns": columns or given}


@pytest.mark.parametrize(
    ("keys", "tags"), [(("from", "value"), {}), (("role", "content"), {"tags": ROLE_TAGS})], ids=["sharegpt", "openai"]
)
def test_conversations(keys: tuple[str, str], tags: dict[str, Any]) -> None:
    row = {"prompt": "a", "chat": [dict.fromkeys(keys, "text")], "tools": "[]"}
    columns = {"messages": "chat", "tools": "tools"}
    assert find(row, {}) == {"formatting": "sharegpt", "columns": columns, **tags}


@pytest.mark.parametrize(
    ("row", "given", "message"),
    [
        ({"text": "a", "label": 1}, {}, "cannot be told in data/set.jsonl, whose columns are text, label"),
        ({"problem": "a", "solution": "b", "answer": "c"}, {}, "Prompt and response cannot be told"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {}, "Prompt and response cannot be told"),
        ({"a": "b"}, {"prompt": "x"}, "`--columns prompt=x` does not fit data/set.jsonl"),
        ({"chat": [{"speaker": "a"}]}, {}, "`chat` of data/set.jsonl must be lists of messages"),
    ],
)
def test_columns_that_are_refused(row: dict[str, Any], given: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        find(row, given)


def test_entries_and_files() -> None:
    Path("a b.jsonl").write_text('{"question": "a", "answer": "b"}\n' * 3)
    entry = {"file_name": "../a b.jsonl", "columns": COLUMNS}
    assert find_sft_set(Path("data"), "a b.jsonl", {}) == SftSet("a_b", entry, Path("a b.jsonl"), 3)
    assert find_sft_set(Path("data"), "far", {}) == SftSet("far", {"hf_hub_url": "a/b"})
    with pytest.raises(ConfigError, match="`--columns` is for a file"):
        find_sft_set(Path("data"), "far", COLUMNS)
    Path("data/dataset_info.json").write_text(json.dumps({"near": entry, "gone": {"file_name": "gone.json"}}))
    assert find_sft_set(Path("data"), "near", {}) == SftSet("near", entry, Path("data/../a b.jsonl"), 3)
    with pytest.raises(DataError, match=r"names data/gone\.json, which does not exist"):
        find_sft_set(Path("data"), "gone", {})
    Path("data/dataset_info.json").write_text("[]")
    with pytest.raises(DataError, match="must hold one JSON object"):
        find_sft_set(Path("data"), "near", {})


def test_a_folder_and_a_name_like_a_pattern() -> None:
    Path("data/set").mkdir()
    for name in ("set/b[v1].jsonl", "set/a[v1].jsonl"):
        Path("data", name).write_text('{"question": "a", "answer": "b"}\n' * 2)
    assert find_sft_set(Path("data"), "data/set/a[v1].jsonl", {})[::3] == ("a_v1", 2)
    Path("data/dataset_info.json").write_text(json.dumps({"set": {"file_name": "set", "columns": COLUMNS}}))
    assert find_sft_set(Path("data"), "set", {}).total == 4
