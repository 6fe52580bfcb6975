# SPDX-License-Identifier: Apache-2.0
"""Writes `tpaw.json`: before the first step what the iteration starts from, after the last one what came out."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ..arguments.recorded import recorded_settings
from ..arguments.start import Start
from ..data.files import digest_file
from ..data.opponents import Triplet, count_repeated
from ..errors import DataError
from ..lf.logs import get_logger
from ..team import manifest as files
from ..team.checkpoint import PRUNED, STATE, weight_dtype
from ..team.fingerprint import digest_other_files, fingerprint_checkpoint, hash_weights, identity
from ..team.manifest import MANIFEST, Manifest, read_manifest, relative_path, write_manifest


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..arguments.parsed import RunArguments
    from ..team.members import Member
    from ..team.scorer import ScoreReport
    from .setup import IterationSetup

logger = get_logger(__name__)


def check_earlier_work(run: RunArguments, setup: IterationSetup) -> None:
    """Refuse to continue an iteration whose triplets or players are not those with which it was begun."""
    continues = run.training.do_train and run.training.resume_from_checkpoint
    earlier = read_manifest(run.training.output_dir) if continues else None
    if earlier is None:
        return
    # By content, not by where the files are now.
    triplets = (
        ", ".join(f"{source['entry']} {source['digest'][:12] or source['rows']}" for source in sources)
        for sources in (earlier.triplets, setup.sources)
    )
    team = [player["name"] for player in earlier.players], [member.player.name for member in setup.team.members]
    for what, (then, now) in {"triplets": triplets, "players": map(", ".join, team)}.items():
        if then != now:
            raise DataError(
                f"`output_dir: {run.training.output_dir}` holds an interrupted training, and its {what} changed since "
                f"it was begun: {then} then and {now} now. Restore them, or set `overwrite_output_dir: true` to train "
                "from the start."
            )


def start_manifest(run: RunArguments, setup: IterationSetup, report: ScoreReport) -> Manifest:
    """Record what the iteration starts from, with status `training`, and write it when the run trains."""
    folder, store = Path(run.training.output_dir), Path(run.finetuning.tpaw_cache_dir)
    team, generated = setup.team, setup.generated
    manifest = Manifest(
        iteration=run.finetuning.tpaw_iteration,
        status="training",
        objective=run.finetuning.tpaw_objective,
        policy=_describe(team.policy, folder) | {"files": _files(team.policy.home, store)},
        players=[_describe(member, folder) for member in team.members],
        triplets=setup.sources,
        tokenizer=team.encoder.tokenizer_digest,
        template={"name": str(run.data.template), "digest": team.encoder.template_digest},
        settings=recorded_settings(run.finetuning.tpaw_given),
        versions=files.versions(),
        hardware=files.hardware(run.training.device, run.training.world_size),
        seconds={"generate": generated.seconds if generated else 0.0, "score": round(report.seconds, 3)},
        counts={
            "train_triplets": len(setup.train),
            "held_out_triplets": len(setup.held_out),
            "repeated_triplets": count_repeated([*setup.train, *setup.held_out]),
            **({"left_out_triplets": setup.left_out} if setup.left_out else {}),
            **{name: count for name, count in vars(report).items() if name != "seconds"},
            "generated_tokens": generated.counts["generated_tokens"] if generated else 0,
            "epoch_tokens": count_tokens(setup.train),
        },
        seeds={name: vars(run.training)[name] for name in ("seed", "data_seed")}
        | {"tpaw_prompts_seed": run.finetuning.tpaw_prompts_seed},
        started=files.now(),
        cache=relative_path(store, folder),
    )
    if run.training.do_train and run.training.should_save:
        earlier = read_manifest(folder)
        if run.training.resume_from_checkpoint and earlier is not None:
            add_earlier_work(manifest, earlier, read_manifest(run.training.resume_from_checkpoint))
        if not run.training.resume_from_checkpoint:
            for checkpoint in folder.glob("checkpoint-[0-9]*"):  # an interruption would be continued from them
                logger.warning_rank0(f"{folder} is overwritten: {checkpoint.name} of the run before is removed.")
                shutil.rmtree(checkpoint)
        (folder / PRUNED).unlink(missing_ok=True)
        write_manifest(folder, manifest)
    return manifest


def add_earlier_work(manifest: Manifest, earlier: Manifest, checkpoint: Manifest | None) -> None:
    """Count what was done before an interruption: all of the scoring, the training up to the checkpoint."""
    manifest.started = earlier.started or manifest.started
    manifest.seconds["score"] = round(manifest.seconds["score"] + earlier.seconds.get("score", 0.0), 3)
    manifest.seconds["train"] = checkpoint.seconds.get("train", 0.0) if checkpoint else 0.0
    for name in ("scored_blocks", "scored_sequences", "scored_tokens"):
        manifest.counts[name] += earlier.counts.get(name, 0)


def finish_manifest(run: RunArguments, manifest: Manifest, seconds: float) -> None:
    """Record θ_{t+1} and set status `finished`: the last thing that an iteration records."""
    folder, store = Path(run.training.output_dir), Path(run.finetuning.tpaw_cache_dir)
    start, below = Start.of(vars(run.model) | vars(run.finetuning)), {}
    if start.is_lora:  # θ_{t+1} is on all of θ_t where it is a new adapter, else on what is below the one continued
        policy = {name: manifest.policy[name] for name in ("path", "fingerprint")}
        below["below"] = [*manifest.policy.get("below", ()), policy][: len(start.after("").adapters)]
    manifest.result = {
        "name": f"theta_{manifest.produces}",
        "fingerprint": identity(fingerprint_checkpoint(folder, store), below),
        **below,
        "dtype": weight_dtype(folder),
        "files": {name: digest for name, digest in _files(folder, store).items() if name != MANIFEST},
    }
    manifest.seconds["train"] = round(manifest.seconds.get("train", 0.0) + seconds, 3)
    manifest.finished = files.now()
    manifest.status = "finished"
    write_manifest(folder, manifest)


class CheckpointManifests(TrainerCallback):
    """Writes `tpaw.json` into the checkpoints that training saves on its way, with the seconds up to there."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.begun = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Finish what a kill kept from being done when the checkpoint was saved from which training continues."""
        folder = Path(args.output_dir)
        if not (folder / f"checkpoint-{state.global_step}" / MANIFEST).is_file():
            self.on_save(args, state, control)
        if not args.should_save:
            return
        with contextlib.suppress(FileNotFoundError), open(folder / "trainer_log.jsonl", "r+b") as log:
            log.truncate(log.read().rfind(b"\n") + 1)  # of a line that is half written LlamaBoard reads nothing
        steps = {int(path.name[11:]): path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()}
        saved = [steps[step] for step in sorted(steps, reverse=True) if step <= state.global_step]
        for old in saved[args.save_total_limit or len(saved) :]:
            if old.name != Path(state.best_model_checkpoint or "").name:
                shutil.rmtree(old, ignore_errors=True)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Describe the checkpoint that was just saved."""
        folder = Path(args.output_dir)
        checkpoint = folder / f"checkpoint-{state.global_step}"
        if not state.is_world_process_zero or not checkpoint.is_dir():
            return
        trained = self.manifest.seconds.get("train", 0.0) + time.monotonic() - self.begun
        seconds = self.manifest.seconds | {"train": round(trained, 3)}
        changes = {"status": "checkpoint", "step": state.global_step, "seconds": seconds, "finished": files.now()}
        # Those of other processes, and shards, may not be whole yet.
        own = [path for path in sorted(checkpoint.glob("*.*")) if path.is_file() and path.name[:10] != "rng_state_"]
        changes["files"] = {path.name: digest_file(path) for path in own if path.name not in (MANIFEST, "eval.json")}
        write_manifest(checkpoint, files.moved_manifest(self.manifest, folder, checkpoint, **changes))


def count_tokens(triplets: Sequence[Triplet]) -> int:
    """How many tokens an epoch has, the prompt counted with each response."""
    return sum(len(triplet.prompt_ids) + len(each) for triplet in triplets for each in triplet.responses)


def _describe(member: Member, folder: Path) -> dict[str, Any]:
    *below, own = (
        {"path": relative_path(place, folder), "fingerprint": fingerprint}
        for place, fingerprint in zip(member.player.parts, (*member.below, member.fingerprint), strict=True)
    )
    score = {} if member.score is None else {"score": member.score}
    return {"name": member.player.name, **own, **score} | ({"below": below} if below else {})


def _files(folder: Path, store: Path) -> dict[str, str]:
    """SHA-256 of each file that makes a model and says how it was made; of weights as just read or kept."""
    own = {name: digest_file(folder / name) for name in (MANIFEST, STATE) if (folder / name).is_file()}
    return hash_weights(folder, store).files | digest_other_files(folder) | own
