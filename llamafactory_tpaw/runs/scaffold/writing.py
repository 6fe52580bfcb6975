# SPDX-License-Identifier: Apache-2.0
"""Files that are written all or not at all, beside what is there already."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.files import TEMP_SUFFIX, read_json
from ...data.source import DATASET_INFO
from ...errors import ConfigError, DataError, EnvironmentProblem


@dataclass(frozen=True)
class Written:
    r"""What became of the files.

    Attributes:
        new: Written, by path relative to the folder.
        replaced: Written over another text.
        same: Were there already, with this text.
        entries: Names of the entries that `dataset_info.json` got.
    """

    new: list[str]
    replaced: list[str]
    same: list[str]
    entries: list[str]


def write_project(
    folder: Path, dataset_dir: str, files: Mapping[str, str], entries: Mapping[str, Any], force: bool = False
) -> Written:
    r"""Write run files and merge entries into `dataset_info.json`; either everything is written, or nothing.

    Raises:
        ConfigError: If files or entries are there with another content and `force` is not set, naming all of them.
        DataError: If `dataset_info.json` cannot be read.
        EnvironmentProblem: If the folder cannot be written to, or the disk is full.
    """
    info = folder / dataset_dir / DATASET_INFO
    text, added, clashes = _merged(info, entries)
    there = {name: folder / name for name in files if os.path.lexists(folder / name)}
    same = [name for name, path in there.items() if path.is_file() and _read(path) == files[name].encode()]
    replaced = [name for name in there if name not in same]
    conflicts = [*(str(there[name]) for name in replaced), *(f"entry `{name}` of {info}" for name in clashes)]
    if conflicts and not force:
        raise ConfigError(
            f"{len(conflicts)} thing{'' if len(conflicts) == 1 else 's'} would be overwritten by other content: "
            f"{', '.join(conflicts)}. Choose another `--name` or folder, or add `--force`. Nothing was written."
        )
    contents = {folder / name: files[name].encode() for name in files if name not in same}
    if text is not None:
        contents[info] = text.encode()
    _write_all(contents)
    return Written([name for name in files if name not in there], replaced, same, [*added, *clashes])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EnvironmentProblem(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error


def _merged(info: Path, entries: Mapping[str, Any]) -> tuple[str | None, list[str], list[str]]:
    """Return the new text, or None where nothing changes; the names that are added, and those that clash."""
    old = read_json(info) if info.exists() else {}
    if not isinstance(old, dict):
        raise DataError(f"{info} must hold a JSON object with an entry for each dataset. Repair or remove it.")
    added = [name for name in entries if name not in old]
    clashes = [name for name in entries if name in old and old[name] != entries[name]]
    if not added and not clashes:
        return None, [], []
    merged = {**old, **entries}
    if old and not clashes:
        # What is there keeps every byte: its author may have laid it out by hand.
        text = _read(info).decode()
        new = json.dumps({name: entries[name] for name in added}, indent=2, ensure_ascii=False)
        text = f"{text.rstrip()[:-1].rstrip()},{new[1:-1].rstrip()}\n}}\n"
        if json.loads(text) == merged:
            return text, added, clashes
    return json.dumps(merged, indent=2, ensure_ascii=False) + "\n", added, clashes


def _write_all(contents: Mapping[Path, bytes]) -> None:
    """Write next to each file first, then put all in place; what fails before leaves everything as it was."""
    waiting: dict[Path, Path] = {}
    before: dict[Path, bytes | None] = {}
    folders: list[Path] = []
    path = None
    try:
        for path, content in contents.items():
            _make_folder(path.parent, folders)
            waiting[path] = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMP_SUFFIX}")
            with open(waiting[path], "xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for path in contents:
            before[path] = path.read_bytes() if path.is_file() else None
            os.replace(waiting[path], path)
    except BaseException as error:
        _undo(waiting, before, folders)
        if isinstance(error, OSError):
            raise EnvironmentProblem(
                f"{path} cannot be written: {error.strerror or error}. Free space, or choose a folder that can be "
                "written to. Nothing was written."
            ) from error
        raise


def _make_folder(folder: Path, made: list[Path]) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir()
        made.append(each)


def _undo(waiting: Mapping[Path, Path], before: Mapping[Path, bytes | None], folders: list[Path]) -> None:
    for temporary in waiting.values():
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    for path, content in before.items():
        with contextlib.suppress(OSError):
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()
