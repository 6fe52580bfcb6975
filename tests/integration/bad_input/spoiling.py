# SPDX-License-Identifier: Apache-2.0
"""Ways to spoil a played run in one place. Paths are relative to its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests import tiny
from tests.runs import Project


COLUMNS = {"prompt": "question", "response": "answer"}
OTHER = "saves/other"


def anew(project: Project, iteration: int, **changes: Any) -> dict[str, Any]:
    """Settings of an iteration as it was played, but for its output folder."""
    return project.settings(iteration, **{"output_dir": "saves/anew", "num_train_epochs": 2.0} | changes)


def triplets_of(iteration: int) -> Path:
    return Path(f"data/tpaw/play_iter{iteration}.jsonl")


def meta_of(iteration: int) -> Path:
    return triplets_of(iteration).with_suffix(".meta.json")


def remove_triplets(iteration: int) -> None:
    """As if they were never generated."""
    triplets_of(iteration).unlink()
    meta_of(iteration).unlink()


def contents(root: Path) -> dict[str, bytes | None]:
    """All folders and files but the cache, which may know more fingerprints afterwards, and empty lock files."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
        if (".tpaw_cache" not in path.parts or path.suffix == ".tmp") and path.suffix != ".lock"
    }


def cut(path: str | Path) -> None:
    """Keep the beginning of a file, as an interrupted copy does; of JSON so little that it is always the same."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: 12 if Path(path).suffix == ".json" else len(content) // 2])


def change_json(path: str | Path, **values: Any) -> None:
    Path(path).write_text(json.dumps(json.loads(Path(path).read_text()) | values | {"own_digest": None}))


def remove_key(path: str | Path, key: str) -> None:
    content = json.loads(Path(path).read_text())
    del content[key]
    content.pop("own_digest", None)
    Path(path).write_text(json.dumps(content))


def other_model(**config: Any) -> None:
    tiny.save_model(Path(OTHER), seed=5, **config)


def other_weights(folder: str) -> None:
    """Put another checkpoint's weights into a folder."""
    other_model()
    shutil.copy(f"{OTHER}/model.safetensors", f"{folder}/model.safetensors")
    shutil.rmtree(OTHER)


def write(path: str, content: str | bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def sft_set(content: str | bytes | list[dict[str, Any]], name: str = "bad", **entry: Any) -> None:
    text = "".join(json.dumps(row) + "\n" for row in content) if isinstance(content, list) else content
    write(f"data/{name}.jsonl", text)
    change_json("data/dataset_info.json", **{name: {"file_name": f"{name}.jsonl", "columns": COLUMNS, **entry}})
