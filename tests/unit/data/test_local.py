# SPDX-License-Identifier: Apache-2.0
"""Local files: any name is one, folders are in order, and what cannot be read is named with its row."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.data.local import files_of, read_files
from llamafactory_tpaw.errors import DataError


pytestmark = pytest.mark.usefixtures("elsewhere")
ROW = {"question": "Why?", "answer": "So."}
LINE = json.dumps(ROW) + "\n"
NUMBER = '{"question": "Why?", "answer": 4}'
HALF = '{"question": "a\\ud800b", "answer": "So."}'
NULL = '{"a": [null, {"b": 1}]}'  # which pyarrow reads as [{"b": 1}, {"b": <whatever comes next in memory>}]
BOM = "\ufeff"
INDENTED = (json.dumps(ROW, indent=2) + "\n") * 2


def write(name: str, content: str | bytes) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


def read(name: str) -> list[dict[str, Any]]:
    return list(read_files(files_of(Path(name)), "cache"))


@pytest.mark.parametrize("name", ["set[v1].jsonl", "root[2026]/set*/a?.jsonl"])
def test_a_name_is_no_pattern(name: str) -> None:
    write(name, LINE)
    write("seta/ab.jsonl", LINE * 3)
    assert read(name) == [ROW]


def test_a_folder_is_read_in_the_order_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "bca":
        write(f"set/{name}.jsonl", json.dumps(ROW | {"question": name}) + "\n")
    write("set/.DS_Store", b"\0")
    listdir = os.listdir
    for backwards in (False, True):
        monkeypatch.setattr(os, "listdir", lambda path, order=backwards: sorted(listdir(path), reverse=order))
        assert [row["question"] for row in read("set")] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", BOM + LINE), ("a.csv", f"{BOM}question,answer\nWhy?,So.\n"), ("a.json", json.dumps(ROW, indent=2))],
)
def test_what_is_read(name: str, content: str) -> None:
    write(name, content)
    assert read(name) == [ROW]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"a.json": LINE * 24_999 + NUMBER}, "set/a.json, row 25000: Column(/answer) changed from string to number. "),
        ({"a.json": f"[{LINE}, {NUMBER}]"}, "set/a.json, row 2: Column(/answer) changed from string to number. "),
        ({"a.json": f"{LINE}{HALF}"}, "set/a.json, row 2: The surrogate pair in string is invalid. "),
        ({"a.json": f"[{LINE}, {HALF}]"}, "set/a.json, row 2: The surrogate pair in string is invalid. "),
        ({"a.json": '{"a": "b", "a": "c"}'}, "set/a.json, row 1: Column(/a) was specified twice. "),
        ({"a.json": '{"a": null}\n' + NULL}, "set/a.json, row 2: a list begins with null, "),
        ({"a.json": f"{BOM}[{LINE}]"}, "set/a.json has a byte order mark before its array. "),
        ({"a.json": INDENTED * 5_000}, "set/a.json has rows on several lines, which only short files may. "),
        ({"a.csv": "a,b\nO\xf9 ?,b\n".encode("latin-1")}, "set/a.csv, line 2 is not UTF-8: 0xf9 at byte 2. "),
        ({"a.json": "[]"}, "set/a.json has no rows. "),
        ({"a.csv": "question,answer\n"}, "set/a.csv has no rows. "),
        ({"a.csv": "a,b\n1,2\n1,2,3\n"}, "set/a.csv cannot be read: Error tokenizing data. "),
        ({"a.jsonl": LINE, "b.jsonl": LINE + "{"}, "set/b.jsonl, row 2 is not valid JSON: "),
        ({"a.parquet": "PAR1", "b.parquet": "PAR1"}, "set/a.parquet cannot be read: "),
        ({"a.jsonl": LINE, "b.jsonl": '{"x": 1}'}, "set cannot be read: An error occurred "),
        ({"a.jsonl": LINE, "notes.md": "Hi."}, "`--data` names set/notes.md, but "),
        ({"a.jsonl": LINE, "more/b.jsonl": LINE}, "`--data` names set/more, but "),
        ({".DS_Store": "\0"}, "`--data` names set, but "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_broken_is_named(files: dict[str, str | bytes], problem: str) -> None:
    for name, content in files.items():
        write(f"set/{name}", content)
    with pytest.raises(DataError) as caught:
        read("set")
    assert str(caught.value).startswith(problem)
