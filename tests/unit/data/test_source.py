# SPDX-License-Identifier: Apache-2.0
"""Entries of dataset_info.json; what is said of broken ones is in tests/integration/bad_input."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from llamafactory_tpaw.data.source import find_entry, is_triplet_file, triplet_entry


if TYPE_CHECKING:
    from pathlib import Path

    from tests.runs import Project


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_find_entry(project: Project) -> None:
    project.add_entry("hub", {"hf_hub_url": "openai/gsm8k", "subset": "main", "ranking": True})
    project.add_entry("both", {"hf_hub_url": "openai/gsm8k", "file_name": "x.json"})
    folder = project.root / "data"
    entry = find_entry("additions", str(folder))
    assert (entry.name, entry.path, entry.ranking) == ("additions", folder / "additions.jsonl", False)
    assert find_entry("hub", str(folder)).path is None
    assert find_entry("hub", str(folder)).ranking
    assert find_entry("both", str(folder)).path is None  # LlamaFactory takes the hub first
    project.add_entry("mine", triplet_entry("mine"))
    assert find_entry("mine", str(folder)).path == folder / "tpaw" / "mine.jsonl"
    assert find_entry("mine", str(folder)).ranking


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (lines({"id": "a-0", "iteration": 0, "finish_reason": "stop"}), True),
        (lines({"id": "a-0", "iteration": 0}), False),
        ('["id", "iteration", "finish_reason"]\n', False),
        ("", False),
        ("no JSON\n", False),
        ('[{"id": "a-0", "iteration": 0, "finish_reason": "stop"}]', False),
    ],
)
def test_is_triplet_file(tmp_path: Path, text: str, answer: bool) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    assert is_triplet_file(tmp_path / "a.jsonl") is answer
    assert not is_triplet_file(tmp_path / "b.jsonl")
