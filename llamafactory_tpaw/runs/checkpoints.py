# SPDX-License-Identifier: Apache-2.0
"""From which of its checkpoints an interrupted training continues."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..data.files import read_json
from ..errors import DataError
from ..team.fingerprint import check_checkpoint_complete


@dataclass(frozen=True)
class ResumePoint:
    r"""What an output folder offers.

    Attributes:
        checkpoint: The newest one that is whole and holds the optimizer's state; None where there is none.
        torn: Newer ones that were being written when the run ended.
    """

    checkpoint: Path | None
    torn: tuple[Path, ...] = ()


def find_resume_point(folder: Path) -> ResumePoint:
    """Look through `checkpoint-*` of an output folder, the newest first."""
    numbered = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    torn: list[Path] = []
    for checkpoint in sorted(numbered, key=lambda path: int(path.name[11:]), reverse=True):
        if not _is_whole(checkpoint):
            torn.append(checkpoint)
        elif _has_optimizer(checkpoint):
            return ResumePoint(checkpoint, tuple(torn))
    return ResumePoint(None, tuple(torn))


def _is_whole(checkpoint: Path) -> bool:
    """Weights, and the Trainer's state, which is written last."""
    try:
        if check_checkpoint_complete(checkpoint):
            return False
        read_json(checkpoint / "trainer_state.json")
    except (DataError, OSError):  # another process of this run may be removing it, because it is not
        return False
    return True


def _has_optimizer(checkpoint: Path) -> bool:
    """Whether training can continue exactly; with `save_only_model` it cannot."""
    if any(checkpoint.glob("global_step*")):  # DeepSpeed keeps the scheduler's state there, too
        return True
    # FSDP leaves optimizer.bin, or the shards of each process in a folder.
    kinds = ("optimizer.pt", "optimizer.bin", "optimizer_*/.metadata")
    return any(any(checkpoint.glob(kind)) for kind in kinds) and (checkpoint / "scheduler.pt").is_file()
