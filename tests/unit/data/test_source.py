# SPDX-License-Identifier: Apache-2.0
"""Entries of dataset_info.json; what is said of broken ones is in tests/integration/bad_input, too."""

from __future__ import annotations

import errno
import json
import re
import sys
from typing import Any
from unittest import mock

import pytest

from llamafactory_tpaw.arguments.parsed import RunArguments
from llamafactory_tpaw.data.source import find_entry, load_rows, locate, read_rows, triplet_entry
from llamafactory_tpaw.errors import DataError, EnvironmentProblem
from tests.runs import Project


TALK = {"formatting": "sharegpt", "columns": {"messages": "talk"}}


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
    project.add_entry("cloud", {"cloud_file_name": "s3://a/b.json", "file_name": "x.json", "home_url": "https://a.b"})
    assert find_entry("cloud", str(folder)).path is None
    project.add_entry("mine", triplet_entry("mine"))
    assert find_entry("mine", str(folder)).path == folder / "tpaw" / "mine.jsonl"
    assert find_entry("mine", str(folder)).ranking


def load(project: Project, run: RunArguments, name: str) -> Any:
    return load_rows(find_entry(name, str(project.root / "data")), run.model, run.data, run.training)


def problem(project: Project, run: RunArguments, name: str, kind: type[Exception] = DataError) -> str:
    with pytest.raises(kind) as caught:
        load(project, run, name)
    return str(caught.value).replace(f"{project.root}/", "")


@pytest.mark.parametrize(
    ("entry", "kind", "said"),
    [
        (
            {"cloud_file_name": "s3://a/b.json"},
            EnvironmentProblem,
            "`bad` .* cannot be read. A package is missing, .* s3fs",
        ),
        ({"file_name": "additions.jsonl", "columns": "question"}, DataError, "`bad` .*'str' object has no attribute"),
        ({"file_name": "additions.jsonl", "split": "test"}, DataError, 'cannot be read: Unknown split "test"'),
    ],
    ids=str,
)
def test_what_an_entry_lacks_is_no_traceback(
    project: Project, run: RunArguments, monkeypatch: pytest.MonkeyPatch, entry: Any, kind: Any, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    project.add_entry("bad", entry)
    assert re.search(said, problem(project, run, "bad", kind))


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([{"role": "user", "content": "q"}], "row 2: there is no column or key 'from'. "),
        (None, "row 2: object of type 'NoneType' has no len(). "),
        (True, "row 1: object of type 'bool' has no len(). "),
    ],
)
def test_the_row_that_is_not_converted_is_named(project: Project, run: RunArguments, turns: Any, said: str) -> None:
    good = [{"from": "human", "value": "q"}] if turns is None else turns
    project.add_dataset("bad", [{"talk": turns is True or []}, {"talk": turns}, {"talk": good}], **TALK)
    says = "(data/bad.jsonl) cannot be read as its entry in dataset_info.json says: "
    assert says + said in problem(project, run, "bad")


def test_what_is_read_and_what_is_not_there(project: Project, run: RunArguments) -> None:
    """A byte order mark before the info, and objects on several lines, as LlamaFactory's `sft` reads them."""
    info, text = project.root / "data" / "dataset_info.json", json.dumps({"q": "Why?"}, indent=2)
    (project.root / "data" / "bad.json").write_text(f"{text}\n{text}\n")
    project.add_entry("bad", {"file_name": "bad.json", "columns": {"prompt": "q", "response": "reply"}})
    info.write_text("\ufeff" + info.read_text())
    assert len(load(project, run, "additions")) == 16
    assert "says: row 1: there is no column or key 'reply'. " in problem(project, run, "bad")


def test_a_row_is_found_in_its_folder(project: Project, run: RunArguments) -> None:
    folder = project.root / "data" / "set"
    folder.mkdir()
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    for name, rows in (("b", [turns, [{"from": "moderator", "value": "q"}]]), ("a", [turns] * 3)):
        (folder / f"{name}.jsonl").write_text(lines(*({"talk": row} for row in rows)))
    project.add_entry("set", {"file_name": "set", **TALK})
    entry = find_entry("set", str(project.root / "data"))
    assert [bool(row.prompt) for row in read_rows(load(project, run, "set"), range(5))] == [True] * 4 + [False]
    assert locate(entry, 3) == f"{folder / 'a.jsonl'}, row 3"
    assert locate(entry, 5) == f"{folder / 'b.jsonl'}, row 2 with the unknown role 'moderator'"


def test_a_full_disk_under_the_cache(project: Project, run: RunArguments, monkeypatch: pytest.MonkeyPatch) -> None:
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.write_table", full)
    text = problem(project, run, "additions", EnvironmentProblem)
    assert "(data/additions.jsonl) cannot be read. No space is left on a disk: " in text
    assert "`cache_dir: cache` has " in text
