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
from ..errors import InUseError, TpawError
from ..lf.given import YAML_ENDINGS, is_true, read_given
from ..lf.logs import get_logger
from ..report.collect import read_accuracies
from ..team.checkpoint import Pruned, write_pruned
from ..team.manifest import MANIFEST, Manifest, now, read_manifest
from ..team.players import Player, list_players, team_of
from .estimates.figures import readable_bytes
from .nodes import node_rank


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


def prune(given: Mapping[str, Any], run_file: Path | None = None) -> int:
    r"""Remove the weights and the trainer's checkpoints that are needed no more, if the run asks for it.

    Args:
        given: Settings of an iteration that has finished.
        run_file: Its run file; those beside it may name checkpoints, too.

    Returns:
        Bytes that are free again.
    """
    tpaw_args, _ = read_tpaw_args(given)
    folder = Path(str(given.get("output_dir") or ""))
    if tpaw_args.tpaw_keep_checkpoints == "all" or node_rank() or not is_true(given, "do_train"):
        return 0
    manifest = read_manifest(folder)
    if manifest is None or manifest.status != "finished":
        return 0
    players = list_players(tpaw_args, Start.of(given))
    run = {player.theta: Path(player.path) for player in players[1:] if _holds(player)}
    kept = _needed(players, tpaw_args.rounds_played) | _best([*run.values(), folder])
    kept |= _named_elsewhere({folder.resolve(), *(path.resolve() for path in run.values())}, folder)
    kept |= _in_run_files(run_file)
    freed = 0
    for theta, path in run.items():
        with _at_work(path) as free:
            if free:
                freed += _prune_one(path, theta, folder, kept)
    if freed:
        logger.info_rank0(f"`tpaw_keep_checkpoints: needed` made {readable_bytes(freed)} free.")
    return freed


def _holds(player: Player) -> bool:
    """Whether an iteration of stage `tpaw` made it, and finished it."""
    path = Path(player.path)
    if path.is_symlink() or not path.is_dir():
        return False
    try:
        manifest = read_manifest(path)
    except TpawError:
        return False
    return manifest is not None and manifest.status == "finished" and manifest.produces == player.theta


def _needed(players: list[Player], rounds: int) -> Reasons:
    """θ_0, and the team of the iteration that has just finished: all that the next one needs, and to repeat it."""
    kept = dict.fromkeys((Path(part).resolve() for part in players[0].parts), "theta_0")
    for player in team_of(players, rounds):
        kept |= dict.fromkeys((Path(part).resolve() for part in player.parts), "a player of this iteration")
    return kept


def _best(folders: list[Path]) -> Reasons:
    """The most accurate one, where a file beside the runs knows several."""
    for place in dict.fromkeys(above for folder in folders for above in folder.resolve().parents[:LEVELS_UP]):
        for file in sorted(place.glob(ACCURACIES), key=lambda file: file.name != "accuracy_test.json"):
            with contextlib.suppress(TpawError, OSError, KeyError, TypeError, ValueError):
                known = read_accuracies(file)
                own = [folder.resolve() for folder in folders if folder.resolve() in known]
                if len(own) > 1:
                    return {
                        max(
                            own, key=lambda folder: known[folder].correct / max(known[folder].n, 1)
                        ): f"the best by {file.name}"
                    }
    return {}


def _named_elsewhere(own: set[Path], folder: Path) -> Reasons:
    """What a `tpaw.json` outside this run names: another run plays on from it, or against it."""
    kept: Reasons = {}
    root = folder.resolve().parents[min(LEVELS_UP, len(folder.resolve().parents)) - 1]
    for path in _manifests(root, LEVELS_DOWN):
        if any(path == each or path.is_relative_to(each) for each in own):
            continue
        try:
            manifest = read_manifest(path)
        except TpawError:
            continue
        for place in _places_in(manifest, path):
            kept[place] = f"{os.path.relpath(path / MANIFEST)} names it"
    return kept


def _manifests(root: Path, levels: int) -> Iterator[Path]:
    if (root / MANIFEST).is_file():
        yield root
    if levels:
        with contextlib.suppress(OSError):
            for path in sorted(root.iterdir()):
                if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
                    yield from _manifests(path, levels - 1)


def _places_in(manifest: Manifest | None, folder: Path) -> Iterator[Path]:
    if manifest is None:
        return
    described = [manifest.policy, *manifest.players, *(manifest.policy.get("below") or ())]
    described += [part for player in manifest.players for part in player.get("below") or ()]
    paths = [str(each.get("path") or "") for each in described]
    paths += [str(source.get("opponent") or "") for source in manifest.triplets]
    for path in filter(None, paths):
        yield (folder / path).resolve()


def _in_run_files(run_file: Path | None) -> Reasons:
    """What run files beside this one need that are not finished: other stages, other runs, other teams."""
    kept: Reasons = {}
    files = sorted(run_file.parent.iterdir()) if run_file is not None and run_file.is_file() else []
    for file in files:
        if not file.name.endswith(YAML_ENDINGS):
            continue
        with contextlib.suppress(TpawError, OSError, ValueError):
            given = read_given([str(file)])
            if not _is_finished(given):
                kept |= dict.fromkeys((Path(name).resolve() for name in _names_in(given)), f"{file} names it")
    return kept


def _is_finished(given: Mapping[str, Any]) -> bool:
    manifest = read_manifest(str(given.get("output_dir") or "")) if given.get("stage") == "tpaw" else None
    return manifest is not None and manifest.status == "finished"


def _names_in(given: Mapping[str, Any]) -> Iterator[str]:
    for key in MODEL_KEYS:
        for name in str(given.get(key) or "").split(","):
            yield from filter(None, (part.strip() for part in name.split("+")))
    if given.get("stage") == "tpaw":
        tpaw_args, _ = read_tpaw_args(given)
        for player in team_of(list_players(tpaw_args, Start.of(given)), tpaw_args.rounds_played):
            yield from player.parts


def _reason(path: Path, kept: Reasons) -> str | None:
    """Why a folder is kept, for itself or for something in it; None where nothing needs it."""
    own = path.resolve()
    return next((why for place, why in kept.items() if place == own or place.is_relative_to(own)), None)


@contextlib.contextmanager
def _at_work(path: Path) -> Iterator[bool]:
    """Hold a folder while it is pruned; False where another process is at work on it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path, str(path)))
        except TpawError as error:
            why = "in use" if isinstance(error, InUseError) else "not to be locked"
            logger.info_rank0(f"{path} is {why}, and not pruned.")
            yield False
            return
        yield True


def _prune_one(path: Path, theta: int, by: Path, kept: Reasons) -> int:
    """Remove the trainer's checkpoints, and the weights where nothing needs them."""
    reason = _reason(path, kept)
    steps = [each for each in path.glob("checkpoint-*") if each.is_dir() and not each.is_symlink()]
    steps = [each for each in steps if _reason(each, kept) is None]
    weights = sorted({file for pattern in WEIGHTS for file in path.glob(pattern)}) if reason is None else []
    size = sum(file.stat().st_size for file in weights)
    freed = size + sum(file.stat().st_size for step in steps for file in step.rglob("*") if file.is_file())
    if weights:
        write_pruned(path, Pruned(os.path.relpath(by, path), now(), size))
    for step in steps:
        shutil.rmtree(step)
    for file in weights:
        file.unlink()
    if freed:
        what = " and ".join([*(["weights"] if weights else []), *(["checkpoints of its training"] if steps else [])])
        rest = f"; the weights are kept ({reason})" if reason else ""
        logger.info_rank0(f"{path}: theta_{theta}'s {what} are removed, {readable_bytes(freed)}{rest}.")
    return freed
