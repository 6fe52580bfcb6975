# SPDX-License-Identifier: Apache-2.0
"""All files or none, and nothing lost of what is there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llamafactory_tpaw.errors import ConfigError, DataError, EnvironmentProblem
from llamafactory_tpaw.runs.scaffold.writing import write_project


FILES = {"yaml/a_iter0.yaml": "stage: tpaw\n", "yaml/a_iter1.yaml": "stage: tpaw\nseed: 1\n"}
ENTRIES = {"mine": {"file_name": "mine.json"}, "a_iter0": {"file_name": "tpaw/a_iter0.jsonl"}}
# Laid out by hand, a key in the middle that sorting would move, and a text beyond ASCII.
INFO = '{\n  "zeta": {"file_name": "z.json",   "columns": {"prompt": "für"}},\n\n  "alpha": {"file_name": "a.json"}\n}'


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_a_fresh_folder(tmp_path: Path) -> None:
    written = write_project(tmp_path / "new", "data", FILES, ENTRIES)
    assert (written.new, written.entries) == (list(FILES), list(ENTRIES))
    assert {name for name, content in snapshot(tmp_path / "new").items() if content} == {
        *FILES,
        "data/dataset_info.json",
    }
    assert json.loads((tmp_path / "new/data/dataset_info.json").read_text()) == ENTRIES


def test_entries_are_added_behind_what_is_there(tmp_path: Path) -> None:
    info = tmp_path / "data" / "dataset_info.json"
    info.parent.mkdir()
    info.write_text(INFO, encoding="utf-8")
    write_project(tmp_path, "data", {}, ENTRIES)
    text = info.read_text(encoding="utf-8")
    assert text.startswith(INFO.rstrip("}").rstrip() + ",\n")
    assert list(json.loads(text)) == ["zeta", "alpha", *ENTRIES]
    assert json.loads(text) == json.loads(INFO) | ENTRIES


@pytest.mark.parametrize("empty", ["{}", "{\n}\n"])
def test_an_empty_info_is_filled(tmp_path: Path, empty: str) -> None:
    (tmp_path / "dataset_info.json").write_text(empty)
    write_project(tmp_path, ".", {}, ENTRIES)
    assert json.loads((tmp_path / "dataset_info.json").read_text()) == ENTRIES


def test_the_same_again_writes_nothing(tmp_path: Path) -> None:
    write_project(tmp_path, "data", FILES, ENTRIES)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    written = write_project(tmp_path, "data", FILES, ENTRIES)
    assert (written.new, written.replaced, written.same, written.entries) == ([], [], list(FILES), [])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_is_missing_is_added(tmp_path: Path) -> None:
    write_project(tmp_path, "data", FILES, ENTRIES)
    (tmp_path / "yaml/a_iter1.yaml").unlink()
    written = write_project(tmp_path, "data", FILES, ENTRIES)
    assert (written.new, written.same) == (["yaml/a_iter1.yaml"], ["yaml/a_iter0.yaml"])


def test_every_conflict_is_named_and_nothing_written(tmp_path: Path) -> None:
    write_project(tmp_path, "data", FILES, ENTRIES)
    before = snapshot(tmp_path)
    other = {name: text + "# other\n" for name, text in FILES.items()} | {"yaml/b.yaml": "new\n"}
    with pytest.raises(ConfigError) as caught:
        write_project(tmp_path, "data", other, {"mine": {"file_name": "other.json"}, "more": {}})
    message = str(caught.value)
    assert message.startswith("3 things would be overwritten by other content: ")
    assert f"{tmp_path}/yaml/a_iter0.yaml, {tmp_path}/yaml/a_iter1.yaml, entry `mine` of" in message
    assert message.endswith("add `--force`. Nothing was written.")
    assert snapshot(tmp_path) == before


def test_force_replaces_and_keeps_the_order(tmp_path: Path) -> None:
    write_project(tmp_path, "data", FILES, ENTRIES)
    other = {"yaml/a_iter0.yaml": "stage: sft\n"}
    written = write_project(tmp_path, "data", other, {"mine": {"file_name": "other.json"}}, force=True)
    assert (written.replaced, written.entries) == (["yaml/a_iter0.yaml"], ["mine"])
    assert (tmp_path / "yaml/a_iter0.yaml").read_text() == "stage: sft\n"
    info = json.loads((tmp_path / "data/dataset_info.json").read_text())
    assert list(info) == list(ENTRIES)
    assert info["mine"] == {"file_name": "other.json"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_full_disk_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, fails_at: int
) -> None:
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml/a_iter0.yaml").write_text("old\n")
    before, real, calls = snapshot(tmp_path), getattr(os, call), []

    def fail(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(EnvironmentProblem, match=r"cannot be written: No space left on device\. Free space"):
        write_project(tmp_path, "data", FILES, ENTRIES, force=True)
    assert len(calls) == fails_at
    assert snapshot(tmp_path) == before


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "yaml").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        write_project(tmp_path, "data", FILES, ENTRIES)
    assert snapshot(tmp_path) == {"yaml": b""}


@pytest.mark.parametrize(("text", "message"), [("[]", "must hold a JSON object"), ("{", "is not valid JSON")])
def test_a_damaged_info_is_not_replaced(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset_info.json").write_text(text)
    with pytest.raises(DataError, match=message):
        write_project(tmp_path, ".", FILES, ENTRIES, force=True)
    assert snapshot(tmp_path) == {"dataset_info.json": text.encode()}
