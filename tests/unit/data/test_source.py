# SPDX-License-Identifier: Apache-2.0
"""Entries of dataset_info.json, and rows through LlamaFactory's loader with errors that name file and row."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from llamafactory_tpaw.data.source import AlignedRow, find_entry, is_triplet_file, load_rows, read_rows, triplet_entry
from llamafactory_tpaw.errors import ConfigError, DataError


if TYPE_CHECKING:
    from pathlib import Path

    from llamafactory_tpaw.arguments.parsed import RunArguments
    from tests.runs import Project

COLUMNS = {"prompt": "question", "response": "answer"}
GOOD = {"question": "1 + 1?", "answer": "2"}


def rows_of(project: Project, run: RunArguments, name: str) -> list[AlignedRow]:
    entry = find_entry(name, run.data.dataset_dir)
    dataset = load_rows(entry, run.model, run.data, run.training)
    return list(read_rows(dataset, range(len(dataset))))


def write(project: Project, text: str, file_name: str = "sft.jsonl", **entry: Any) -> None:
    (project.root / "data" / file_name).write_text(text)
    project.add_entry("sft", {"file_name": file_name, "columns": COLUMNS, **entry})


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


def test_entries_that_are_not_there(project: Project, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"`dataset: nothing` is not an entry of .*dataset_info\.json\. .* add the entry, for example: ",
    ):
        find_entry("nothing", str(project.root / "data"))
    with pytest.raises(ConfigError, match=r"`dataset_dir` is .*empty', but .*dataset_info\.json does not exist"):
        find_entry("additions", str(tmp_path / "empty"))


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


@pytest.mark.parametrize(
    ("text", "file_name", "message"),
    [
        (lines(GOOD) + '\n{"question": "x"', "sft.jsonl", r"sft\.jsonl, row 3 is not valid JSON: .*remove the row"),
        (lines(GOOD, "x"), "sft.jsonl", r"sft\.jsonl, row 2 must be a JSON object in braces, got str"),
        (json.dumps([GOOD, 3]), "sft.json", r"sft\.json, row 2 must be a JSON object in braces, got int"),
        (json.dumps([GOOD])[:-2], "sft.json", r"sft\.json is not valid JSON: .*Correct the file"),
        ("[]", "sft.json", r"sft\.json has no rows"),
        (" \n", "sft.jsonl", r"sft\.jsonl has no rows"),
        (
            lines(GOOD, GOOD | {"answer": 3}),
            "sft.jsonl",
            r"`sft` \(.*sft\.jsonl\) cannot be read .*/answer\) changed from string to number",
        ),
        ("question,answer\n", "sft.csv", r"`sft` \(.*sft\.csv\) cannot be read as its entry"),
        (lines({"question": "x"}), "sft.jsonl", r"`sft` has no column 'answer', which its entry .* Correct `columns`"),
        (lines({"q": "x", "answer": "y"}), "sft.jsonl", r"`sft` has no column 'question'"),
    ],
)
def test_unreadable_files(project: Project, run: RunArguments, text: str, file_name: str, message: str) -> None:
    write(project, text, file_name)
    with pytest.raises(DataError, match=message):
        rows_of(project, run, "sft")


def test_files_that_are_no_dataset(project: Project, run: RunArguments) -> None:
    project.add_entry("sft", {"file_name": "absent.json"})
    with pytest.raises(DataError, match=r"`sft` names .*absent\.json, which does not exist\. .*`file_name`"):
        rows_of(project, run, "sft")
    write(project, lines({"talk": None}, {"talk": []}), formatting="sharegpt", columns={"messages": "talk"})
    with pytest.raises(DataError, match=r"`sft` \(.*\) cannot be read as its entry .*NoneType"):
        rows_of(project, run, "sft")
