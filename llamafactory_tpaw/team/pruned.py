# SPDX-License-Identifier: Apache-2.0
"""A checkpoint whose weights were removed on purpose: who it was and where it came from is still known."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from ..data.files import read_json, write_json_atomic
from ..errors import DataError


PRUNED = "tpaw_pruned.json"


@dataclass(frozen=True)
class Pruned:
    r"""What a folder says of it, from before the first file was removed.

    Attributes:
        by: The iteration's folder after which it was done, as seen from this one.
        when: UTC.
        size: Bytes of the weights.
    """

    by: str
    when: str
    size: int


def read_pruned(folder: Path) -> Pruned | None:
    """Say what a folder's weights were pruned by; None where they were not."""
    try:
        return Pruned(**read_json(folder / PRUNED))
    except TypeError:
        return Pruned("", "", 0)
    except DataError:
        return None if not (folder / PRUNED).is_file() else Pruned("", "", 0)


def write_pruned(folder: Path, pruned: Pruned) -> None:
    """Say so before the first file is removed; a second time the first word stays."""
    if not (folder / PRUNED).is_file():
        write_json_atomic(folder / PRUNED, asdict(pruned))


def pruned_problem(folder: Path) -> str | None:
    """The message where a pruned checkpoint is needed after all; None where it is not pruned."""
    pruned = read_pruned(folder)
    if pruned is None:
        return None
    when = f" on {pruned.when}" if pruned.when else ""
    return (
        f"{folder} has no weights any more: they were pruned{when} (`tpaw_keep_checkpoints: needed`). Restore them "
        f"from a copy and delete {folder / PRUNED}, or repeat its iteration with `overwrite_output_dir: true`."
    )
