# SPDX-License-Identifier: Apache-2.0
"""Stage `tpaw` in the training process: check, score what the cache lacks, train, save θ_{t+1}."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

import torch

from ..arguments.parsed import RunArguments
from ..data.collator import TripletCollator, TripletDataset
from ..lf import facade
from ..lf.logs import get_logger
from ..lf.signals import Terminated, termination_deferred
from ..team.loading import load_policy, to_device
from ..team.members import load_members
from ..team.online import OnlineTeam
from ..team.processes import Processes
from ..team.scorer import ScoreReport, TeamScorer
from ..team.sharding import sharding_of
from ..team.shortcuts import find_shortcuts
from .manifest import CheckpointManifests, check_earlier_work, count_tokens, finish_manifest, start_manifest
from .metrics import with_tpaw_metrics
from .setup import IterationSetup, load_setup
from .stopping import StopBetweenSteps
from .trainer import TpawTrainer


if TYPE_CHECKING:
    from transformers import TrainerCallback

    from ..data.opponents import Triplet

logger = get_logger(__name__)
PLOTTED = ("loss", "eval_loss", "rewards/target", "rewards/generated", "rewards/margin", "rewards/accuracy")


def run_tpaw(
    model_args: Any,
    data_args: Any,
    training_args: Any,
    finetuning_args: Any,
    generating_args: Any,
    callbacks: list[TrainerCallback] | None = None,
) -> None:
    """Train one iteration; called by LlamaFactory's dispatch with its five groups of arguments and its callbacks."""
    run = RunArguments(model_args, data_args, training_args, finetuning_args, generating_args)
    processes = Processes(training_args)
    with processes.first_on_node():
        load_members(run)  # reads every byte once; what it finds is kept
    setup = load_setup(run)
    check_earlier_work(run, setup)
    scorer = TeamScorer(run, setup.team.tokenizer, processes)
    cached = finetuning_args.tpaw_reference == "cached" and bool(setup.team.members)
    report = scorer.fill(setup.team.members, setup.blocks()) if cached else ScoreReport()
    trainer = make_trainer(run, setup, scorer, callbacks or [])
    manifest = start_manifest(run, setup, report)
    trainer.add_callback(CheckpointManifests(manifest))
    started = time.monotonic()
    with termination_deferred() as termination:
        trainer.add_callback(StopBetweenSteps(trainer, termination))
        if training_args.do_train:
            _train(trainer, run)
        if training_args.do_eval:
            metrics = trainer.evaluate(metric_key_prefix="eval")
            trainer.log_metrics("eval", metrics)
            trainer.save_metrics("eval", metrics)
        # A training that LlamaBoard's user aborted has not made θ_{t+1}.
        aborted = any(getattr(callback, "aborted", False) for callback in trainer.callback_handler.callbacks)
        if not training_args.push_to_hub:
            facade.create_modelcard_and_push(trainer, *run[:4])
        if training_args.do_train and trainer.is_world_process_zero() and not aborted:
            finish_manifest(run, manifest, seconds=time.monotonic() - started)
            if not trainer.policy_moved or manifest.result["fingerprint"] == manifest.policy["fingerprint"]:
                logger.warning_rank0(
                    f"The training changed no weight of theta_{manifest.iteration}: the learning rate was 0 in each "
                    "step, or lost in rounding. Correct it, or take more steps, and set `overwrite_output_dir: true`."
                )
        if training_args.push_to_hub:
            facade.create_modelcard_and_push(trainer, *run[:4])  # the manifest, too
        processes.meet()  # where a process ends the result is there, also on another machine
        if termination.is_set():
            raise Terminated


def score_tpaw(run: RunArguments) -> ScoreReport:
    """Only fill the cache with what an iteration's training will look up."""
    setup = load_setup(run)
    return TeamScorer(run, setup.team.tokenizer).fill(setup.team.members, setup.blocks())


def make_trainer(
    run: RunArguments, setup: IterationSetup, scorer: TeamScorer, callbacks: list[TrainerCallback]
) -> TpawTrainer:
    """Load the policy and give it to a Trainer with what the cache knows of its triplets."""
    run.training.remove_unused_columns = False
    run.training.logging_nan_inf_filter = False  # a NaN must stop the run, not be replaced by the running average
    team, players = setup.team, setup.team.members
    online = run.finetuning.tpaw_reference == "online" and bool(players)

    def dataset(triplets: list[Triplet]) -> TripletDataset:
        if online or not players or not triplets:
            return TripletDataset(triplets)
        targets = [(triplet.prompt_ids, triplet.target_ids) for triplet in triplets]
        generated = [(triplet.prompt_ids, triplet.generated_ids) for triplet in triplets]
        return TripletDataset(triplets, scorer.lookup(players, targets), scorer.lookup(players, generated))

    train, held_out = dataset(setup.train), dataset(setup.held_out)
    policy = load_policy(run, team.tokenizer)
    if not sharding_of(run.training):
        policy = to_device(policy, run.training.device)  # where it is left elsewhere, the Trainer would move it
    grouped, shortcuts = run.finetuning.tpaw_grouping == "prompt", find_shortcuts(policy, run.training, run.finetuning)
    savers = [facade.SaveProcessorCallback(team.processor)] if team.processor is not None else []
    return TpawTrainer(
        model=policy,
        shortcuts=shortcuts,
        args=run.training,
        finetuning_args=run.finetuning,
        player_names=[member.player.name for member in players],
        online_team=OnlineTeam(scorer, players, policy, team.policy) if online else None,
        processing_class=team.tokenizer,
        data_collator=TripletCollator(team.tokenizer.pad_token_id, grouped, shortcuts.layout),
        train_dataset=train,
        eval_dataset=held_out if len(held_out) else None,
        callbacks=with_tpaw_metrics(callbacks) + savers,
    )


def _train(trainer: TpawTrainer, run: RunArguments) -> None:
    _let_torch_load_to_cpu()
    metrics = trainer.train(resume_from_checkpoint=run.training.resume_from_checkpoint).metrics
    trainer.save_model()
    if run.finetuning.include_effective_tokens_per_second:
        tokens = count_tokens(trainer.train_dataset.triplets)
        metrics["effective_tokens_per_sec"] = tokens * metrics["epoch"] / metrics["train_runtime"]
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    if trainer.is_world_process_zero() and run.finetuning.plot_loss:
        logged = {key for entry in trainer.state.log_history for key in entry}
        facade.plot_loss(run.training.output_dir, keys=[key for key in PLOTTED if key in logged])


@functools.cache
def _let_torch_load_to_cpu() -> None:
    """Know the device that accelerate calls `cpu:<n>`, to which several processes load the optimizer's state."""
    torch.serialization.register_package(
        0, lambda storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
    )
