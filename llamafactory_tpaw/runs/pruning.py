# SPDX-License-Identifier: Apache-2.0
"""`tpaw_keep_checkpoints`: after an iteration, the weights that nothing needs any more are removed.

What says where they came from, and what was logged, stays. A folder says that it is pruned before its first file goes,
so that one which a crash left half is never taken for a whole one; the next iteration finishes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..arguments.checks import read_tpaw_args
from ..arguments.start import Start
from ..data.files import locked, readable_bytes, write_json_atomic
from ..errors import TpawError
from ..lf.given import YAML_ENDINGS, is_first_process, is_true, read_given
from ..lf.logs import get_logger
from ..team.checkpoint import PRUNED, is_pruned
from ..team.manifest import MANIFEST, now, read_manifest
from ..team.players import list_players


WEIGHTS = ("model*.safetensors", "adapter_model.*", "*.safetensors.index.json")
LEVELS_UP, LEVELS_DOWN = 2, 4
# Keys of run files of any stage that name checkpoints.
MODEL_KEYS = ("model_name_or_path", "adapter_name_or_path", "ref_model", "ref_model_adapters", "tpaw_opponent_model")

logger = get_logger(__name__)


def prune(given: Mapping[str, Any], run_file: str = "") -> None:
    """Remove what nothing needs after a finished iteration, if it asks for that, also no file beside `run_file`."""
    tpaw_args, _ = read_tpaw_args(given)
    is_asked = tpaw_args.tpaw_keep_checkpoints != "all" and is_true(given, "do_train")
    if not is_asked or not is_first_process():
        return
    folder = Path(str(given["output_dir"]))
    if not _holds(folder, tpaw_args.tpaw_iteration + 1):
        return
    players = list_players(tpaw_args, Start.of(given))
    run = [Path(player.path) for player in players[1:] if _holds(Path(player.path), player.theta)]
    own = {path.resolve() for path in (*run, folder)}
    # θ_0, and the team of the iteration that has just finished: all that the next one needs, and to repeat it.
    team = [players[0], *players[-tpaw_args.candidates :]]
    kept = {Path(part).resolve() for player in team for part in player.parts}
    try:
        kept |= set(_named_by_others(folder.resolve(), own))
    except TpawError as error:
        return logger.warning_rank0(f"`tpaw_keep_checkpoints`: nothing is removed, since a run may need it. {error}")
    kept |= {Path(name).resolve() for name in _named_in_run_files(Path(run_file))}
    for path in run:
        try:
            with locked(path, str(path)):
                _prune_one(path, folder, kept)
        except TpawError as error:
            logger.info_rank0(f"{path} is not pruned: {error}")


def _holds(folder: Path, theta: int) -> bool:
    """Whether an iteration of stage `tpaw` made a folder's θ, and finished it."""
    with contextlib.suppress(TpawError):
        manifest = None if folder.is_symlink() else read_manifest(folder)
        return manifest is not None and manifest.status == "finished" and manifest.produces == theta
    return False


def _named_by_others(folder: Path, own: set[Path]) -> Iterator[Path]:
    """What a `tpaw.json` outside this run names: another run plays on from it, or against it."""
    root = folder.parents[:LEVELS_UP][-1]
    for file in (file for level in range(LEVELS_DOWN + 1) for file in root.glob(f"{'*/' * level}{MANIFEST}")):
        if any(file.is_relative_to(each) for each in own):
            continue
        manifest = read_manifest(file.parent)
        described = [manifest.policy, *manifest.players]
        described += [part for each in described for part in each.get("below") or ()]
        names = [each.get("path") for each in described] + [each.get("opponent") for each in manifest.triplets]
        yield from ((file.parent / name).resolve() for name in names if name)


def _named_in_run_files(run_file: Path) -> Iterator[str]:
    """What run files beside this one need that are not finished: other stages, other runs, other teams."""
    for file in run_file.parent.iterdir() if run_file.is_file() else ():
        if not file.name.endswith(YAML_ENDINGS):
            continue
        with contextlib.suppress(TpawError):
            given = read_given([str(file)])
            tpaw_args, _ = read_tpaw_args(given)
            is_iteration = given.get("stage") == "tpaw"
            if is_iteration and _holds(Path(str(given.get("output_dir") or "")), tpaw_args.tpaw_iteration + 1):
                continue
            for key in MODEL_KEYS:
                yield from filter(None, (part.strip() for part in re.split(r"[,+]", str(given.get(key) or ""))))
            # Last, since what is wrong with the players must not leave the others unnamed.
            for player in list_players(tpaw_args, Start.of(given))[-tpaw_args.candidates :] if is_iteration else ():
                yield from player.parts


def _prune_one(path: Path, by: Path, kept: set[Path]) -> None:
    """Remove the trainer's checkpoints, and the weights, where nothing needs them."""

    def needed(place: Path) -> bool:
        return any(each.is_relative_to(place.resolve()) for each in kept)

    steps = [step for step in path.glob("checkpoint-*") if step.is_dir() and not (step.is_symlink() or needed(step))]
    weights = [] if needed(path) else sorted({file for pattern in WEIGHTS for file in path.glob(pattern)})
    if weights and not is_pruned(path):  # which is said once, before the first file goes
        size = sum(file.stat().st_size for file in weights)
        write_json_atomic(path / PRUNED, {"by": os.path.relpath(by, path), "when": now(), "size": size})
    files = [file for step in steps for file in step.rglob("*") if file.is_file()]
    freed = readable_bytes(sum(file.stat().st_size for file in (*files, *weights)))
    for step in steps:
        shutil.rmtree(step)
    for file in weights:
        file.unlink()
    if files or weights:
        what = " and ".join(["weights"] * bool(weights) + ["checkpoints of its training"] * bool(files))
        logger.info_rank0(f"`tpaw_keep_checkpoints: needed`: {path}'s {what} are removed, {freed}.")
