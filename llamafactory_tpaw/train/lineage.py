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
from ..data.encoding import tokenizer_digest
from ..data.opponents import FOREIGN
from ..data.rounds import split_names
from ..data.source import find_entry
from ..data.triplets import read_meta
from ..team.fingerprint import fingerprint_checkpoint
from ..team.manifest import Manifest, relative_path, write_manifest
from .setup import describe_template


if TYPE_CHECKING:
    from ..arguments.parsed import RunArguments
    from ..team.members import Member
    from ..team.scorer import ScoreReport
    from .setup import IterationSetup

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


def start_manifest(run: RunArguments, setup: IterationSetup, report: ScoreReport) -> Manifest:
    """Record what the iteration starts from, with status `training`, and write it when the run trains."""
    folder = Path(run.training.output_dir)
    manifest = Manifest(
        iteration=run.finetuning.tpaw_iteration,
        status="training",
        objective=run.finetuning.tpaw_objective,
        policy=_describe(setup.policy, folder),
        players=[_describe(member, folder) for member in setup.team],
        triplets=[asdict(source) | {"foreign": source.iteration == FOREIGN} for source in setup.sources],
        tokenizer=tokenizer_digest(setup.tokenizer),
        template=describe_template(run, setup.encoder),
        settings=recorded_settings(run.finetuning.tpaw_given),
        versions=_versions(),
        hardware=_hardware(run),
        seconds={"generate": _generation_seconds(run), "score": round(report.seconds, 3)},
        counts={
            "train_triplets": len(setup.train),
            "held_out_triplets": len(setup.held_out),
            "blocks": report.blocks,
            "scored_blocks": report.scored_blocks,
            "scored_sequences": report.scored_sequences,
            "scored_tokens": report.scored_tokens,
        },
    )
    if run.training.do_train and run.training.should_save:
        if not run.training.resume_from_checkpoint:
            _remove_older_checkpoints(folder)
        write_manifest(folder, manifest)
    return manifest


def finish_manifest(run: RunArguments, manifest: Manifest, seconds: float) -> None:
    """Record θ_{t+1} and set status `finished`: the last file that an iteration writes."""
    folder = Path(run.training.output_dir)
    fingerprint = fingerprint_checkpoint(folder, Path(run.finetuning.tpaw_cache_dir))
    manifest.result = {"name": f"theta_{manifest.produces}", "fingerprint": fingerprint}
    manifest.seconds["train"] = round(seconds, 3)
    manifest.status = "finished"
    write_manifest(folder, manifest)


def _remove_older_checkpoints(folder: Path) -> None:
    """Of a run that is overwritten: an interruption of this one would be continued from them."""
    for checkpoint in folder.glob("checkpoint-*"):
        if checkpoint.name[11:].isdigit():
            shutil.rmtree(checkpoint)


def _describe(member: Member, folder: Path) -> dict[str, str]:
    return {
        "name": member.player.name,
        "path": relative_path(member.player.path, folder),
        "fingerprint": member.fingerprint,
    }


def _generation_seconds(run: RunArguments) -> float:
    """What this iteration's own round took, from its meta file; 0 where nothing is generated."""
    if not run.finetuning.tpaw_prompts:
        return 0.0
    entry = find_entry(split_names(run.data.dataset)[-1], run.data.dataset_dir)
    return read_meta(entry.path).seconds if entry.path is not None else 0.0


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
