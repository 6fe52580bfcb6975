# SPDX-License-Identifier: Apache-2.0
"""`tpaw_keep_checkpoints`: after an iteration, the weights that nothing needs any more are removed.

What says where they came from, and what was logged, stays. A folder says that it is pruned before its first file goes,
so that one which a crash left half is never taken for a whole one; the next iteration finishes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..arguments.checks import read_tpaw_args
from ..arguments.start import Start
from ..data.files import locked
from ..errors import TpawError
from ..lf.given import YAML_ENDINGS, is_true, read_given
from ..lf.logs import get_logger
from ..report.collect import read_accuracies
from ..team.checkpoint import mark_pruned
from ..team.manifest import MANIFEST, Manifest, now, read_manifest
from ..team.players import Player, list_players
from .estimates import readable_bytes


WEIGHTS = (
    "model*.safetensors",
    "adapter_model.*",
    "pytorch_model*.bin",
    "*.safetensors.index.json",
    "*.bin.index.json",
)
ACCURACIES = "accuracy_*.json"
LEVELS_UP, LEVELS_DOWN = 2, 4
# Keys of run files of any stage that name checkpoints.
MODEL_KEYS = ("model_name_or_path", "adapter_name_or_path", "ref_model", "ref_model_adapters", "tpaw_opponent_model")
Reasons = dict[Path, str]

logger = get_logger(__name__)


def prune(given: Mapping[str, Any], run_file: str = "") -> int:
    r"""Remove the weights and the trainer's checkpoints that are not needed any more, if the run asks for it.

    Args:
        given: Settings of an iteration that has finished.
        run_file: Its run file; those beside it may name checkpoints, too.

    Returns:
        Bytes that are free again.
    """
    tpaw_args, _ = read_tpaw_args(given)
    folder = Path(str(given.get("output_dir") or ""))
    others_task = any(os.environ.get(name, "0") != "0" for name in ("RANK", "NODE_RANK"))
    if tpaw_args.tpaw_keep_checkpoints == "all" or others_task or not is_true(given, "do_train"):
        return 0
    manifest = read_manifest(folder)
    if manifest is None or manifest.status != "finished":
        return 0
    players = list_players(tpaw_args, Start.of(given))
    run = {player.theta: Path(player.path) for player in players[1:] if _holds(player)}
    # θ_0, and the team of the iteration that has just finished: all that the next one needs, and to repeat it.
    kept = _parts([players[0]], "theta_0") | _parts(players[-tpaw_args.rounds_played :], "a player of this iteration")
    kept |= _best([*run.values(), folder])
    kept |= _named_elsewhere({folder.resolve(), *(path.resolve() for path in run.values())}, folder)
    kept |= _in_run_files(Path(run_file)) if run_file else {}
    freed = 0
    for theta, path in run.items():
        try:
            with locked(path, str(path)):
                freed += _prune_one(path, theta, folder, kept)
        except TpawError as error:
            logger.info_rank0(f"{path} is not pruned: {error}")
    if freed:
        logger.info_rank0(f"`tpaw_keep_checkpoints: needed` made {readable_bytes(freed)} free.")
    return freed


def _holds(player: Player) -> bool:
    """Whether an iteration of stage `tpaw` made it, and finished it."""
    path = Path(player.path)
    manifest = None if path.is_symlink() or not path.is_dir() else _manifest_or_none(path)
    return manifest is not None and manifest.status == "finished" and manifest.produces == player.theta


def _manifest_or_none(folder: Path) -> Manifest | None:
    with contextlib.suppress(TpawError):
        return read_manifest(folder)
    return None


def _parts(players: list[Player], why: str) -> Reasons:
    return {Path(part).resolve(): why for player in players for part in player.parts}


def _best(folders: list[Path]) -> Reasons:
    """The most accurate one, where a file beside the runs knows several."""
    for place in dict.fromkeys(above for folder in folders for above in folder.resolve().parents[:LEVELS_UP]):
        for file in sorted(place.glob(ACCURACIES), key=lambda file: file.name != "accuracy_test.json"):
            with contextlib.suppress(TpawError, OSError, KeyError, TypeError, ValueError):
                known = read_accuracies(file)
                own = [folder.resolve() for folder in folders if folder.resolve() in known]
                if len(own) > 1:
                    best = max(own, key=lambda each: known[each].correct / max(known[each].n, 1))
                    return {best: f"the best by {file.name}"}
    return {}


def _named_elsewhere(own: set[Path], folder: Path) -> Reasons:
    """What a `tpaw.json` outside this run names: another run plays on from it, or against it."""
    kept: Reasons = {}
    root = folder.resolve().parents[min(LEVELS_UP, len(folder.resolve().parents)) - 1]
    for level in range(LEVELS_DOWN + 1):
        for path in (file.parent for file in root.glob(f"{'*/' * level}{MANIFEST}")):
            manifest = None if any(path.is_relative_to(each) for each in own) else _manifest_or_none(path)
            if manifest is None:
                continue
            described = [manifest.policy, *manifest.players]
            described += [part for each in described for part in each.get("below") or ()]
            named = [str(each.get("path") or "") for each in described]
            named += [str(source.get("opponent") or "") for source in manifest.triplets]
            kept |= {(path / name).resolve(): f"{os.path.relpath(path / MANIFEST)} names it" for name in named if name}
    return kept


def _in_run_files(run_file: Path) -> Reasons:
    """What run files beside this one need that are not finished: other stages, other runs, other teams."""
    kept: Reasons = {}
    files = sorted(run_file.parent.iterdir()) if run_file.is_file() else []
    for file in (file for file in files if file.name.endswith(YAML_ENDINGS)):
        with contextlib.suppress(TpawError, OSError, ValueError):
            given = read_given([str(file)])
            manifest = read_manifest(str(given.get("output_dir") or "")) if given.get("stage") == "tpaw" else None
            if manifest is None or manifest.status != "finished":
                kept |= dict.fromkeys((Path(name).resolve() for name in _names_in(given)), f"{file} names it")
    return kept


def _names_in(given: Mapping[str, Any]) -> Iterator[str]:
    for key in MODEL_KEYS:
        for name in str(given.get(key) or "").split(","):
            yield from filter(None, (part.strip() for part in name.split("+")))
    if given.get("stage") == "tpaw":
        tpaw_args, _ = read_tpaw_args(given)
        for player in list_players(tpaw_args, Start.of(given))[-tpaw_args.rounds_played :]:
            yield from player.parts


def _reason(path: Path, kept: Reasons) -> str | None:
    """Why a folder is kept, for itself or for something in it; None where nothing needs it."""
    own = path.resolve()
    return next((why for place, why in kept.items() if place.is_relative_to(own)), None)


def _prune_one(path: Path, theta: int, by: Path, kept: Reasons) -> int:
    """Remove the trainer's checkpoints, and the weights where nothing needs them."""
    reason = _reason(path, kept)
    steps = [each for each in path.glob("checkpoint-*") if each.is_dir() and not each.is_symlink()]
    steps = [each for each in steps if _reason(each, kept) is None]
    weights = sorted({file for pattern in WEIGHTS for file in path.glob(pattern)}) if reason is None else []
    size = sum(file.stat().st_size for file in weights)
    freed = size + sum(file.stat().st_size for step in steps for file in step.rglob("*") if file.is_file())
    if weights:
        mark_pruned(path, os.path.relpath(by, path), now(), size)
    for step in steps:
        shutil.rmtree(step)
    for file in weights:
        file.unlink()
    if freed:
        what = " and ".join([*(["weights"] if weights else []), *(["checkpoints of its training"] if steps else [])])
        rest = f"; the weights are kept ({reason})" if reason else ""
        logger.info_rank0(f"{path}: theta_{theta}'s {what} are removed, {readable_bytes(freed)}{rest}.")
    return freed
