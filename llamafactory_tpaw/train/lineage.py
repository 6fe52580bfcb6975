# SPDX-License-Identifier: Apache-2.0
"""Writes `tpaw.json`: before the first step what the iteration starts from, after the last one what came out."""

from __future__ import annotations

import platform
import shutil
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..arguments.recorded import recorded_settings
from ..data.opponents import FOREIGN
from ..data.rounds import split_names
from ..data.source import find_entry, is_triplet_file
from ..data.triplets import TripletMeta, read_meta
from ..errors import DataError
from ..plugin.logs import get_logger
from ..team.fingerprint import fingerprint_checkpoint, weight_dtype
from ..team.manifest import Manifest, read_manifest, relative_path, write_manifest
from .setup import describe_template


if TYPE_CHECKING:
    from ..arguments.parsed import RunArguments
    from ..team.members import Member
    from ..team.scorer import ScoreReport
    from .setup import IterationSetup

logger = get_logger(__name__)

PACKAGES = (
    "llamafactory",
    "transformers",
    "torch",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "deepspeed",
)


def check_earlier_work(run: RunArguments, setup: IterationSetup) -> None:
    r"""See that an iteration which continues is trained on the same data to its end.

    Raises:
        DataError: If the triplets are not those with which it was begun.
    """
    if not run.training.do_train or not run.training.resume_from_checkpoint:
        return
    earlier, now = read_manifest(run.training.output_dir), _triplets(setup)
    if earlier is not None and earlier.triplets != now:
        raise DataError(
            f"`output_dir: {run.training.output_dir}` holds an interrupted training, and its triplets changed since "
            f"it was begun: {_rows(earlier.triplets)} then and {_rows(now)} now. Restore them, or set "
            "`overwrite_output_dir: true` to train anew."
        )


def start_manifest(run: RunArguments, setup: IterationSetup, report: ScoreReport) -> Manifest:
    """Record what the iteration starts from, with status `training`, and write it when the run trains."""
    folder = Path(run.training.output_dir)
    generated = _own_round(run)
    manifest = Manifest(
        iteration=run.finetuning.tpaw_iteration,
        status="training",
        objective=run.finetuning.tpaw_objective,
        policy=_describe(setup.policy, folder),
        players=[_describe(member, folder) for member in setup.team],
        triplets=_triplets(setup),
        tokenizer=setup.encoder.tokenizer_digest,
        template=describe_template(run, setup.encoder),
        settings=recorded_settings(run.finetuning.tpaw_given),
        versions=_versions(),
        hardware=_hardware(run),
        seconds={"generate": generated.seconds if generated else 0.0, "score": round(report.seconds, 3)},
        counts={
            "train_triplets": len(setup.train),
            "held_out_triplets": len(setup.held_out),
            "blocks": report.blocks,
            "scored_blocks": report.scored_blocks,
            "scored_sequences": report.scored_sequences,
            "scored_tokens": report.scored_tokens,
            "generated_tokens": generated.counts["generated_tokens"] if generated else 0,
        },
    )
    if run.training.do_train and run.training.should_save:
        if run.training.resume_from_checkpoint:
            _add_earlier_work(manifest, read_manifest(folder))
        else:
            _remove_older_checkpoints(folder)
        write_manifest(folder, manifest)
    return manifest


def _add_earlier_work(manifest: Manifest, earlier: Manifest | None) -> None:
    """Count what was done before an interruption."""
    if earlier is None:
        return
    manifest.seconds["score"] = round(manifest.seconds["score"] + earlier.seconds.get("score", 0.0), 3)
    for name in ("scored_blocks", "scored_sequences", "scored_tokens"):
        manifest.counts[name] += earlier.counts.get(name, 0)


def _triplets(setup: IterationSetup) -> list[dict[str, Any]]:
    return [asdict(source) | {"foreign": source.iteration == FOREIGN} for source in setup.sources]


def _rows(triplets: list[dict[str, Any]]) -> str:
    return ", ".join(f"{source['entry']} {source['digest'][:12] or source['rows']}" for source in triplets)


def finish_manifest(run: RunArguments, manifest: Manifest, seconds: float) -> None:
    """Record θ_{t+1} and set status `finished`: the last file that an iteration writes."""
    folder = Path(run.training.output_dir)
    fingerprint = fingerprint_checkpoint(folder, Path(run.finetuning.tpaw_cache_dir))
    manifest.result = {"name": f"theta_{manifest.produces}", "fingerprint": fingerprint, "dtype": weight_dtype(folder)}
    manifest.seconds["train"] = round(seconds, 3)
    manifest.status = "finished"
    write_manifest(folder, manifest)


def _remove_older_checkpoints(folder: Path) -> None:
    """Of a run that is overwritten: an interruption of this one would be continued from them."""
    older = [checkpoint for checkpoint in sorted(folder.glob("checkpoint-*")) if checkpoint.name[11:].isdigit()]
    if older:
        names = ", ".join(checkpoint.name for checkpoint in older)
        logger.warning_rank0(f"{folder} is overwritten: {names} of the run before are removed.")
    for checkpoint in older:
        shutil.rmtree(checkpoint)


def _describe(member: Member, folder: Path) -> dict[str, str]:
    return {
        "name": member.player.name,
        "path": relative_path(member.player.path, folder),
        "fingerprint": member.fingerprint,
    }


def _own_round(run: RunArguments) -> TripletMeta | None:
    """The meta of the round that this iteration generated; None where it generated none."""
    if not run.finetuning.tpaw_prompts:
        return None
    entry = find_entry(split_names(run.data.dataset)[-1], run.data.dataset_dir)
    return read_meta(entry.path) if entry.path is not None and is_triplet_file(entry.path) else None


def _versions() -> dict[str, str]:
    found = {"llamafactory_tpaw": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _hardware(run: RunArguments) -> dict[str, Any]:
    device = run.training.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": device.type, "name": name, "processes": run.training.world_size}
