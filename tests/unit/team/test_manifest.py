# SPDX-License-Identifier: Apache-2.0
"""`tpaw.json`: written whole, read back, refused where it is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.team.manifest import MANIFEST, Manifest, read_manifest, relative_path, write_manifest


def make_manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "iteration": 0,
        "status": "finished",
        "objective": "tpaw",
        "policy": {"name": "theta_0", "path": "../sft", "fingerprint": "fp0"},
        "players": [{"name": "theta_0", "path": "../sft", "fingerprint": "fp0"}],
        "triplets": [],
        "tokenizer": "t",
        "template": {"name": "qwen", "digest": "d"},
        "settings": {"tpaw_eta": 6.0},
        "result": {"name": "theta_1", "fingerprint": "fp1"},
    }
    return Manifest(**values | changes)


def test_round_trip(tmp_path: Path) -> None:
    manifest = make_manifest(iteration=2)
    write_manifest(tmp_path / "new" / "folder", manifest)
    assert read_manifest(tmp_path / "new" / "folder") == manifest
    assert manifest.produces == 3
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [MANIFEST]


def test_absent(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "none") is None


@pytest.mark.parametrize("content", ["", '{"iteration": 1,', "[]", "3", '{"schema": 1}', '{"schema": 1, "odd": 2}'])
def test_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(DataError) as caught:
        read_manifest(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / MANIFEST} is damaged (")
    assert "Restore the file, or repeat the iteration" in message
    assert "__init__" not in message


def test_another_schema(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest())
    content = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(content | {"schema": 99}))
    with pytest.raises(DataError, match="has schema 99, but this version reads 1"):
        read_manifest(tmp_path)


def test_paths_are_relative_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    assert relative_path(tmp_path / "sft", tmp_path / "iter0") == "../sft"
    assert relative_path("Qwen/Qwen2.5-1.5B", tmp_path / "iter0") == "Qwen/Qwen2.5-1.5B"
