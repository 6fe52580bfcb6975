# SPDX-License-Identifier: Apache-2.0
"""Stage `tpaw` in the training process: check, score what the cache lacks, train, save θ_{t+1}."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments.parsed import RunArguments
from ..data.collator import TripletCollator, TripletDataset
from ..lf import facade
from ..team.engine import sharding_of
from ..team.loading import load_policy, to_device
from ..team.members import load_members
from ..team.online import OnlineTeam
from ..team.processes import Processes
from ..team.scorer import Block, ScoreReport, TeamScorer
from ..team.shortcuts import find_shortcuts
from .lineage import CheckpointManifests, check_earlier_work, finish_manifest, start_manifest
from .saving import let_torch_load_to_cpu, undone_on_failure
from .setup import IterationSetup, load_setup
from .stopping import end_if_stopped, stop_between_steps


if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import TrainerCallback

    from ..data.opponents import Triplet
    from .trainer import TpawTrainer

PLOTTED = [
    "loss",
    "eval_loss",
    "rewards/target",
    "rewards/generated",
    "rewards/margin",
    "rewards/accuracy",
]


def run_tpaw(
    model_args: Any,
    data_args: Any,
    training_args: Any,
    finetuning_args: Any,
    generating_args: Any,
    callbacks: list[TrainerCallback] | None = None,
) -> None:
    r"""Train one iteration; called by LlamaFactory's dispatch with its arguments.

    Args:
        model_args: LlamaFactory's model arguments; the model is θ_t.
        data_args: Its data arguments.
        training_args: Its training arguments.
        finetuning_args: Its fine-tuning arguments with the `tpaw_*` keys.
        generating_args: Its generating arguments.
        callbacks: LlamaFactory's callbacks.

    Raises:
        TpawError: If settings, checkpoints, triplets or cache do not fit; before any model is loaded.
    """
    run = RunArguments(model_args, data_args, training_args, finetuning_args, generating_args)
    processes = Processes(training_args)
    with processes.alive():
        with processes.first_on_node("fingerprints"):
            load_members(run)  # reads every byte once; what it finds is kept
        setup = load_setup(run)
        check_earlier_work(run, setup)
        scorer = TeamScorer(run, setup.tokenizer)
        blocks = setup.blocks()
        cached = finetuning_args.tpaw_reference == "cached" and bool(setup.team)
        report = scorer.fill(setup.team, blocks) if cached else ScoreReport()
    datasets = [_dataset(scorer, setup, part, cached) for part in (setup.train, setup.held_out)]
    eval_sets = {name: _dataset(scorer, setup, part, cached) for name, part in setup.eval_sets.items()}
    trainer = _make_trainer(run, setup, scorer, callbacks, datasets, eval_sets)
    manifest = start_manifest(run, setup, report)
    trainer.add_callback(CheckpointManifests(manifest))
    started = time.monotonic()
    with stop_between_steps(trainer), processes.alive():
        if training_args.do_train:
            _train(trainer, run)
        if training_args.do_eval:
            metrics = trainer.evaluate(metric_key_prefix="eval")
            trainer.log_metrics("eval", metrics)
            trainer.save_metrics("eval", metrics)
        finished = training_args.do_train and trainer.is_world_process_zero() and not _aborted(trainer)
        if finished and training_args.push_to_hub:
            # What is pushed says that it is finished.
            finish_manifest(run, manifest, seconds=time.monotonic() - started)
        facade.create_modelcard_and_push(trainer, model_args, data_args, training_args, finetuning_args)
        if finished and not training_args.push_to_hub:
            finish_manifest(run, manifest, seconds=time.monotonic() - started)
        processes.meet("result")  # where a process ends the result is there, also on another machine


def score_tpaw(run: RunArguments) -> ScoreReport:
    """Only fill the cache with what an iteration's training will look up."""
    setup = load_setup(run)
    return TeamScorer(run, setup.tokenizer).fill(setup.team, setup.blocks())


def _make_trainer(
    run: RunArguments,
    setup: IterationSetup,
    scorer: TeamScorer,
    callbacks: list[TrainerCallback] | None,
    datasets: Sequence[TripletDataset],
    eval_sets: dict[str, TripletDataset],
) -> TpawTrainer:
    from ..train.log_callback import with_tpaw_metrics
    from .trainer import TpawTrainer

    run.training.remove_unused_columns = False
    # A NaN must stop the run, not be replaced by the running average.
    run.training.logging_nan_inf_filter = False
    train, held_out = datasets
    policy = load_policy(run, setup.tokenizer)
    if not sharding_of(run.training):
        policy = to_device(policy, run.training.device)  # where it is left elsewhere, the Trainer would move it
    online = run.finetuning.tpaw_reference == "online" and bool(setup.team)
    online_team = OnlineTeam(scorer, setup.team, policy, setup.policy) if online else None
    shortcuts = find_shortcuts(policy, run.training, run.finetuning)
    grouped = run.finetuning.tpaw_grouping == "prompt"
    return TpawTrainer(
        model=policy,
        shortcuts=shortcuts,
        args=run.training,
        finetuning_args=run.finetuning,
        player_names=[member.player.name for member in setup.team],
        online_team=online_team,
        processor=setup.processor,
        processing_class=setup.tokenizer,
        data_collator=TripletCollator(setup.tokenizer.pad_token_id, grouped, shortcuts.costs),
        train_dataset=train,
        eval_dataset=eval_sets or (held_out if len(held_out) else None),
        callbacks=with_tpaw_metrics(callbacks or []),
    )


def _train(trainer: TpawTrainer, run: RunArguments) -> None:
    let_torch_load_to_cpu()
    result = trainer.train(resume_from_checkpoint=run.training.resume_from_checkpoint)
    end_if_stopped(trainer)
    with undone_on_failure(run.training.output_dir):
        _save(trainer, run, result.metrics)


def _save(trainer: TpawTrainer, run: RunArguments, metrics: dict[str, float]) -> None:
    trainer.save_model()
    if run.finetuning.include_effective_tokens_per_second:
        tokens = sum(
            len(triplet.prompt_ids) + len(response)
            for triplet in trainer.train_dataset.triplets
            for response in triplet.responses
        )
        metrics["effective_tokens_per_sec"] = tokens * metrics["epoch"] / metrics["train_runtime"]
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    if trainer.is_world_process_zero() and run.finetuning.plot_loss:
        logged = {key for entry in trainer.state.log_history for key in entry}
        facade.plot_loss(run.training.output_dir, keys=[key for key in PLOTTED if key in logged])


def _dataset(scorer: TeamScorer, setup: IterationSetup, triplets: list[Triplet], cached: bool) -> TripletDataset:
    if not cached or not triplets:
        return TripletDataset(triplets)
    prompts = [triplet.prompt_ids for triplet in triplets]
    logps: list[np.ndarray] = [
        scorer.lookup(setup.team, Block(name, prompts, responses))
        for name, responses in (
            ("target", [triplet.target_ids for triplet in triplets]),
            ("generated", [triplet.generated_ids for triplet in triplets]),
        )
    ]
    return TripletDataset(triplets, *logps)


def _aborted(trainer: TpawTrainer) -> bool:
    """Whether training was stopped from outside, so that its result is not θ_{t+1}."""
    return any(getattr(callback, "aborted", False) for callback in trainer.callback_handler.callbacks)
