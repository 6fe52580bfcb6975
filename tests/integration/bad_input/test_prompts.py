# SPDX-License-Identifier: Apache-2.0
"""SFT sets that are missing, empty, broken, or have rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.errors import DataError
from tests.runs import ADDITIONS, Project

from .conftest import Refuse
from .spoiling import COLUMNS, without_triplets


pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["data/bad.jsonl is empty"]),
        ("[]", ["data/bad.jsonl has no rows"]),
        (
            json.dumps(ADDITIONS[0]) + "\n" + json.dumps(ADDITIONS[1])[:-4] + "\n",
            ["data/bad.jsonl, row 2 is not valid JSON", "Correct or remove the row"],
        ),
        ("[{]", ["data/bad.jsonl is not valid JSON"]),
        ("question,answer\n", ["data/bad.jsonl, row 1 is not valid JSON"]),
    ],
)
def test_unreadable(project: Project, refuse: Refuse, content: str, parts: list[str]) -> None:
    project.add_dataset("bad", [], columns=COLUMNS)
    Path("data/bad.jsonl").write_text(content)
    message = refuse(without_triplets(project, 0, tpaw_prompts="bad"), DataError)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("absent", [{}, {"answer": None}, {"answer": ""}])
def test_absent_response(project: Project, refuse: Refuse, absent: dict[str, Any]) -> None:
    rows = [ADDITIONS[0], {"question": "Why?", **absent}, ADDITIONS[2], {"question": "How?", **absent}]
    project.add_dataset("bad", rows, columns=COLUMNS)
    message = refuse(without_triplets(project, 0, tpaw_prompts="bad"), DataError)
    assert "`tpaw_prompts: bad` has 2 bad rows, but `tpaw_max_bad_rows` allows 0. First: row 2, because" in message
    assert "response" in message
    assert "or raise `tpaw_max_bad_rows` to drop them" in message


def test_absent_column(project: Project, refuse: Refuse) -> None:
    project.add_dataset("bad", [{"question": "Why?"}], columns=COLUMNS)
    message = refuse(without_triplets(project, 0, tpaw_prompts="bad"), DataError)
    assert "`bad` has no column 'answer'" in message
    assert "Correct `columns`" in message


def test_prompts_beyond_the_cutoff(project: Project, refuse: Refuse) -> None:
    rows = [*ADDITIONS[:3], {"question": "Why? " * 200, "answer": "So."}]
    project.add_dataset("bad", rows, columns=COLUMNS)
    message = refuse(without_triplets(project, 0, tpaw_prompts="bad"), DataError)
    assert "has 1 bad row" in message
    assert "First: row 4, because its prompt has" in message
    assert "`cutoff_len: 256`" in message


def test_unknown_entry_and_absent_file(project: Project, refuse: Refuse) -> None:
    settings = without_triplets(project, 0, tpaw_prompts="bad")
    message = refuse(settings)
    assert "`tpaw_prompts: bad` is not an entry of data/dataset_info.json" in message
    project.add_entry("bad", {"file_name": "bad.jsonl", "columns": COLUMNS})
    message = refuse(settings)
    assert "`tpaw_prompts: bad` names data/bad.jsonl, which does not exist" in message
