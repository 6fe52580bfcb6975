# SPDX-License-Identifier: Apache-2.0
"""Files that were being written when writing failed are gone; all others stay."""

from __future__ import annotations

from pathlib import Path

from llamafactory_tpaw.train.saving import undone_on_failure


def write_and_fail(folder: Path, *names: str) -> None:
    try:
        with undone_on_failure(folder):
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text("half")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return
    raise AssertionError("the failure was swallowed")


def test_new_and_changed_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "model.safetensors").write_text("of the run before")
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "whole").write_text("whole")
    write_and_fail(tmp_path, "config.json", "model.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"old", "checkpoint-2"}
    assert (tmp_path / "checkpoint-2" / "whole").is_file()


def test_a_new_folder_is_removed_whole(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    write_and_fail(folder, "below/half")
    assert not folder.exists()


def test_nothing_happens_where_writing_succeeds(tmp_path: Path) -> None:
    with undone_on_failure(tmp_path / "new"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "file").write_text("x")
    assert (tmp_path / "new" / "file").read_text() == "x"
