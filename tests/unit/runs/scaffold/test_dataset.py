# SPDX-License-Identifier: Apache-2.0
"""Entries that are there, files that get one, and names for these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from llamafactory_tpaw.errors import ConfigError, DataError, TpawError
from llamafactory_tpaw.runs.scaffold.dataset import SAMPLE_ROWS, SftSet, find_sft_set
from llamafactory_tpaw.runs.scaffold.settings import Settings


ROWS = [{"question": str(number), "answer": "a"} for number in range(3)]
COLUMNS = {"prompt": "question", "response": "answer"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_rows(path: str, rows: list[Any] = ROWS) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_info(**entries: Any) -> None:
    Path("data").mkdir(exist_ok=True)
    Path("data/dataset_info.json").write_text(json.dumps(entries))


def find(data: str, **settings: Any) -> SftSet:
    return find_sft_set(Settings("m", data, **settings))


def test_an_entry_is_used_as_it_is() -> None:
    write_rows("data/mine.jsonl")
    entry = {"file_name": "mine.jsonl", "columns": {"prompt": "question", "response": "answer"}, "split": "train"}
    write_info(mine=entry)
    found = find("mine")
    assert (found.name, found.entry, found.is_new, found.total) == ("mine", entry, False, 3)


def test_a_file_that_has_an_entry_already_gets_no_second_one() -> None:
    write_rows("data/mine.jsonl")
    write_info(known={"file_name": "mine.jsonl", "columns": COLUMNS, "split": "train"})
    assert (find("data/mine.jsonl").name, find("data/mine.jsonl").is_new) == ("known", False)
    write_info(ranked={"file_name": "mine.jsonl", "columns": COLUMNS, "ranking": True})
    assert (find("data/mine.jsonl").name, find("data/mine.jsonl").is_new) == ("mine", True)


@pytest.mark.parametrize(
    ("path", "name", "file_name"),
    [
        ("data/sums.jsonl", "sums", "sums.jsonl"),
        ("sums.jsonl", "sums", "../sums.jsonl"),
        ("gsm8k/train.jsonl", "gsm8k_train", "../gsm8k/train.jsonl"),
        ("a b.jsonl", "a_b", "../a b.jsonl"),
    ],
)
def test_names_of_new_entries(path: str, name: str, file_name: str) -> None:
    write_rows(path)
    found = find(path)
    assert (found.name, found.entry) == (name, {"file_name": file_name, "columns": COLUMNS})


def test_a_name_that_is_taken_is_left_alone() -> None:
    write_rows("set/sums.jsonl")
    write_info(sums={"hf_hub_url": "other/sums"}, set_sums={"hf_hub_url": "more/sums"})
    assert find("set/sums.jsonl").name == "sft_sums"
    assert find("set/sums.jsonl", name="run").name == "run_sums"


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_a_large_file_is_sampled(ending: str) -> None:
    rows = [{"prompt": str(number), "response": "a"} for number in range(SAMPLE_ROWS + 500)]
    name = f"many.{ending}"
    if ending == "jsonl":
        write_rows(name, rows)
    elif ending == "json":
        Path(name).write_text(json.dumps(rows, indent=1))
    elif ending == "csv":
        Path(name).write_text("prompt,response\n" + "".join(f"{row['prompt']},a\n" for row in rows))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), name, row_group_size=999)
    found = find(name)
    assert (len(found.rows), found.total) == (SAMPLE_ROWS, SAMPLE_ROWS + 500)
    assert all(int(row["prompt"]) + 1 == number for row, number in zip(found.rows, found.numbers, strict=True))
    assert found.numbers == find(name).numbers
    assert max(found.numbers) > SAMPLE_ROWS


def test_a_hub_entry_is_not_read_here() -> None:
    write_info(far={"hf_hub_url": "a/b"})
    assert find("far") == SftSet("far", {"hf_hub_url": "a/b"}, False)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], type[TpawError], str]] = [
    ({"mine": {"hf_hub_url": "a/b", "ranking": True}}, {}, ConfigError, "is a ranking set in"),
    ({"mine": {"hf_hub_url": "a/b", "num_samples": 5}}, {}, ConfigError, "has `num_samples` in"),
    ({"mine": {"file_name": "gone.json"}}, {}, DataError, "names data/gone.json in"),
    ({"mine": "text"}, {}, DataError, "is 'text', but must be an object"),
    ({"mine": {"hf_hub_url": "a/b"}}, {"columns": {"prompt": "a"}}, ConfigError, "`--columns` is for a file"),
    ({"mime": {"hf_hub_url": "a/b"}}, {}, ConfigError, "Did you mean `mime`?"),
]


@pytest.mark.parametrize(("info", "settings", "kind", "message"), REFUSED)
def test_refused(info: dict[str, Any], settings: dict[str, Any], kind: type[TpawError], message: str) -> None:
    write_info(**info)
    with pytest.raises(kind) as caught:
        find("mine", **settings)
    assert message in str(caught.value)
