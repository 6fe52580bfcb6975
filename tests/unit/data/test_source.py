# SPDX-License-Identifier: Apache-2.0
"""Entries of dataset_info.json; what is said of broken ones is in tests/integration/bad_input, too."""

from __future__ import annotations

import errno
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from llamafactory_tpaw.data.source import find_entry, is_triplet_file, load_rows, locate, read_rows, triplet_entry
from llamafactory_tpaw.errors import DataError, EnvironmentProblem


if TYPE_CHECKING:
    from pathlib import Path

    from llamafactory_tpaw.arguments.parsed import RunArguments
    from tests.runs import Project

TALK = {"formatting": "sharegpt", "columns": {"messages": "talk"}}
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


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


def load(project: Project, run: RunArguments, name: str) -> Any:
    return load_rows(find_entry(name, str(project.root / "data")), run.model, run.data, run.training)


def problem(project: Project, run: RunArguments, name: str, kind: type[Exception] = DataError) -> str:
    with pytest.raises(kind) as caught:
        load(project, run, name)
    return str(caught.value).replace(f"{project.root}/", "")


@pytest.mark.parametrize(
    ("entry", "kind", "said"),
    [
        ({"script_url": "rows.py"}, DataError, "Dataset scripts are no longer supported"),
        ({"om_hub_url": "a/b"}, EnvironmentProblem, "pip install openmind"),
        ({"cloud_file_name": "s3://a/b.json"}, EnvironmentProblem, "s3fs"),
        ({"file_name": "additions.jsonl", "columns": "question"}, DataError, "'str' object has no attribute 'get'"),
        ({"file_name": "additions.jsonl", "formatting": "chatml"}, DataError, "Dataset converter chatml not found"),
        ({"file_name": "additions.jsonl", "split": "test"}, DataError, 'Unknown split "test"'),
    ],
    ids=str,
)
def test_what_an_entry_lacks_is_no_traceback(
    project: Project,
    run: RunArguments,
    monkeypatch: pytest.MonkeyPatch,
    entry: dict[str, Any],
    kind: type[Exception],
    said: str,
) -> None:
    (project.root / "data" / "rows.py").write_text("")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    project.add_entry("bad", entry)
    text = problem(project, run, "bad", kind)
    assert said in text
    assert text.startswith(("`bad` (", "data/additions.jsonl cannot be read: "))


@pytest.mark.parametrize(
    ("turns", "entry", "said"),
    [
        ([{"role": "user", "content": "q"}], {}, "row 2: there is no column or key 'from'. "),
        (
            [{"role": "moderator", "content": "q"}, {"role": "assistant", "content": "a"}],
            {"formatting": "openai", "tags": TAGS},
            "row 2 with the unknown role 'moderator': there is no tag for the role 'moderator'. ",
        ),
        (None, {}, "row 2: object of type 'NoneType' has no len(). "),
    ],
)
def test_the_row_that_is_not_converted_is_named(
    project: Project, run: RunArguments, turns: list[dict[str, str]] | None, entry: dict[str, Any], said: str
) -> None:
    good = [{key: turns[0].get(key, "x") for key in turns[0]}] if turns else [{"from": "human", "value": "q"}]
    project.add_dataset("bad", [{"talk": []}, {"talk": turns}, {"talk": good}], **TALK | entry)
    assert f"(data/bad.jsonl) cannot be read as its entry in dataset_info.json says: {said}" in problem(
        project, run, "bad"
    )


def test_text_that_is_not_utf8_is_seen_where_it_is_used(project: Project, run: RunArguments) -> None:
    project.add_dataset("bad", [], columns={"prompt": "question", "response": "answer"})
    rows = '{"question": "a", "answer": "b"}\n{"question": "O\xf9 ?", "answer": "L\xe0."}\n'
    (project.root / "data" / "bad.jsonl").write_bytes(rows.encode("latin-1"))
    assert problem(project, run, "bad") == (
        "data/bad.jsonl, row 2 is not UTF-8: 0xf9 at byte 16. Save the file as UTF-8."
    )


def test_a_byte_order_mark_in_the_info(project: Project, run: RunArguments) -> None:
    path = project.root / "data" / "dataset_info.json"
    path.write_text("\ufeff" + path.read_text())
    assert len(load(project, run, "additions")) == 16


def test_objects_on_several_lines(project: Project, run: RunArguments) -> None:
    """They are read as LlamaFactory's `sft` reads them, and what else is wrong is said."""
    folder = project.root / "data"
    text = "\n".join(json.dumps({"question": f"q{number}", "answer": "a"}, indent=2) for number in range(3))
    (folder / "bad.json").write_text(text)
    project.add_entry("bad", {"file_name": "bad.json", "columns": {"prompt": "question", "response": "answer"}})
    assert [row.prompt[0]["content"] for row in read_rows(load(project, run, "bad"), range(3))] == ["q0", "q1", "q2"]
    project.add_entry("bad", {"file_name": "bad.json", "columns": {"prompt": "question", "response": "reply"}})
    assert "says: row 1: there is no column or key 'reply'. " in problem(project, run, "bad")


def test_a_row_is_found_in_its_folder(project: Project, run: RunArguments) -> None:
    folder = project.root / "data" / "set"
    folder.mkdir()
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    for name, rows in (("b", [turns, [{"from": "moderator", "value": "q"}]]), ("a", [turns] * 3)):
        (folder / f"{name}.jsonl").write_text(lines(*({"talk": row} for row in rows)))
    project.add_entry("set", {"file_name": "set", **TALK})
    entry = find_entry("set", str(project.root / "data"))
    rows = list(read_rows(load(project, run, "set"), range(5)))
    assert [bool(row.prompt) for row in rows] == [True] * 4 + [False]
    assert locate(entry, 3) == f"{folder / 'a.jsonl'}, row 3"
    assert locate(entry, 5) == f"{folder / 'b.jsonl'}, row 2 with the unknown role 'moderator'"


def test_a_full_disk_under_the_cache(project: Project, run: RunArguments, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.arrow_writer import ArrowWriter

    def write_table(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ArrowWriter, "write_table", write_table)
    text = problem(project, run, "additions", EnvironmentProblem)
    assert "(data/additions.jsonl) cannot be read. No space is left on a disk: " in text
    assert "`cache_dir: cache` has " in text
