# SPDX-License-Identifier: Apache-2.0
"""A played run, spoiled in one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.runs import Project


COLUMNS = {"prompt": "question", "response": "answer"}


def anew(project: Project, iteration: int, **changes: Any) -> dict[str, Any]:
    """Settings of an iteration as it was played, but for its output folder."""
    return project.settings(iteration, output_dir="saves/anew", **{"num_train_epochs": 2.0} | changes)


def without_triplets(project: Project, iteration: int, **changes: Any) -> dict[str, Any]:
    """Settings of an iteration whose triplets are still to be generated."""
    for path in (project.root / "data" / "tpaw").glob(f"play_iter{iteration}.*"):
        path.unlink()
    return anew(project, iteration, **changes)


def contents(root: Path) -> dict[str, bytes | None]:
    """All folders and files but the cache, which may know more fingerprints afterwards, and empty lock files."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
        if ".tpaw_cache" not in path.parts and path.suffix != ".lock"
    }


def cut(path: Path) -> None:
    """Keep the first half of a file, as an interrupted copy does."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
