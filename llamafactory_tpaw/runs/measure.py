# SPDX-License-Identifier: Apache-2.0
"""`check --model`: one real batch of each step, and that the newest player's reward is 0 at step 0."""

from __future__ import annotations

import copy
import itertools
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback

from ..data.collator import TripletCollator, TripletDataset
from ..data.layout import Row
from ..errors import DataError, EnvironmentProblem, Findings
from ..generation.base import Request, SamplingSettings
from ..generation.hf import HfEngine
from ..lf import facade
from ..team.fingerprint import chain_fingerprints
from ..team.loading import load_generator, load_policy, to_device
from ..team.members import Team, load_team
from ..team.players import team_of
from ..team.scorer import TeamScorer
from ..team.sharding import autocast_dtype
from ..team.shortcuts import find_shortcuts
from ..train.trainer import TpawTrainer
from .estimates import Figure, count_processes, steps_of, time_figures
from .plan import with_defaults


if TYPE_CHECKING:
    from ..arguments.parsed import RunArguments
    from ..data.opponents import Triplet
    from .plan import Plan
    from .sample import Sample

# Of the second of two steps the optimizer's state is there; nothing is saved or reported.
STEPS: dict[str, Any] = {
    "max_steps": 2, "logging_steps": 1, "logging_strategy": "steps", "save_strategy": "no", "eval_strategy": "no",
    "load_best_model_at_end": False, "push_to_hub": False, "report_to": [], "resume_from_checkpoint": None,
    "disable_tqdm": True, "dataloader_num_workers": 0, "remove_unused_columns": False, "logging_nan_inf_filter": False,
}  # fmt: skip


class Measured(NamedTuple):
    r"""What one batch of each step showed.

    Attributes:
        reward: Of the newest player at step 0, the mean over a batch of targets; None for T-SPIN.
        fingerprints: Of the players that are folders here, recomputed, by name.
        peaks: Most memory until the end of each step.
        hours: How long the iteration's steps take.
    """

    reward: float | None
    fingerprints: dict[str, str]
    peaks: dict[str, Figure]
    hours: list[Figure]


def measure(run: RunArguments, plan: Plan, sample: Sample, say: Callable[[str], object]) -> Measured:
    r"""Recompute fingerprints, then sample, score and train on one batch of the longest rows.

    Args:
        run: The run's arguments.
        plan: The iteration.
        sample: Gives the rows.
        say: Told what is being done.

    Raises:
        TpawError: If a checkpoint is not what it was, policy and newest player differ by more than rounding, or the
            device's memory is too small.
    """
    fingerprints = _recompute(run, plan, say)
    with Findings() as findings:
        team = load_team(run, findings)
    keys, name = with_defaults(plan.given) | vars(plan.tpaw_args), team.policy.player.name
    by_length = sorted(sample.triplets, key=lambda triplet: -sum(map(len, (triplet.prompt_ids, *triplet.responses))))
    triplets = by_length[: run.training.per_device_train_batch_size * min(run.training.gradient_accumulation_steps, 2)]
    if plan.to_generate:  # what comes may be as long as it is allowed to
        length = sample.longest[1]
        triplets = [replace(each, generated_ids=np.resize(each.generated_ids, length)) for each in triplets]
    mean, own = sample.tokens("prompt", "target", "prompt", "generated"), sample.rows(sample.own) or 0
    seconds, peaks, logps = {}, {}, np.zeros((len(triplets), 2), np.float32)
    try:
        if plan.to_generate and run.finetuning.tpaw_engine == "hf":
            say("a batch of generation")
            token = _generate(run, team, by_length, sample.longest)
            seconds["generate"] = own * sample.tokens("generated") * token
            peaks["generation"] = _peak(run)
        if team.members:
            say("a batch of scoring")
            token, logps = _score(run, team, triplets)
            seconds["score"] = (sample.rows(sample.scored) or 0) * mean / 2 * token / count_processes()
            peaks["scoring"] = _peak(run)
        say("two steps of training")
        step, history = _train(run, team, triplets, logps, [name] if team.members else [])
        peaks["training"] = _peak(run)
    except torch.OutOfMemoryError as error:
        raise EnvironmentProblem(
            f"The device ran out of memory with one batch: {error}. Lower `per_device_train_batch_size`, "
            "`tpaw_score_batch_tokens` or `tpaw_generate_batch_tokens`."
        ) from error
    tokens = sum(2 * len(triplet.prompt_ids) + sum(map(len, triplet.responses[:2])) for triplet in triplets)
    steps = steps_of(keys, sample.rows(sample.responses) or 0) * run.training.gradient_accumulation_steps
    seconds["train"] = steps * run.training.per_device_train_batch_size * mean / tokens * step
    hours = time_figures(seconds, "one batch, by the number of tokens")
    return Measured(history.get(f"rewards/target/{name}"), fingerprints, peaks, hours)


def _recompute(run: RunArguments, plan: Plan, say: Callable[[str], object]) -> dict[str, str]:
    """Read every byte of the players here and compare with what was kept of earlier times."""
    found, problems, store = {}, [], Path(run.finetuning.tpaw_cache_dir)
    for player in team_of(plan.players, run.finetuning.rounds_played):
        if player.is_local:
            say(f"the fingerprint of {player.name}")
            folders = [Path(part) for part in player.parts]
            kept = chain_fingerprints(folders, store)[-1]
            found[player.name] = now = chain_fingerprints(folders, store, trust_stat=False)[-1]
            if kept != now:
                problems.append(
                    f"{player.name} ({player.path}) has fingerprint {now[:12]}, but had {kept[:12]} when it was read "
                    "last, and its files have the same size and time. Its weights are damaged: restore them."
                )
    if problems:
        raise DataError(problems)
    return found


def _generate(run: RunArguments, team: Team, triplets: list[Triplet], longest: tuple[int, int]) -> float:
    """Answer a batch of prompts; seconds a token."""
    dtype = torch.bfloat16 if run.finetuning.pure_bf16 else autocast_dtype(run.training) or torch.float32
    model = load_generator(run, team.tokenizer, team.policy.folder, team.policy.adapters, dtype)
    settings = SamplingSettings.of({**vars(run.generating), "seed": run.training.seed})
    stops = team.encoder.stop_token_ids(model.generation_config.eos_token_id)
    most = run.finetuning.tpaw_generate_batch_tokens
    engine = HfEngine(model, settings, stops, team.tokenizer.pad_token_id, most)
    rows = max(most // sum(longest), 1)
    requests = [
        Request(triplet.id, triplet.prompt_ids, longest[1], run.finetuning.tpaw_iteration)
        for triplet in triplets[:rows]
    ]
    begun = _now(run)
    responses = engine.generate(requests)
    return (_now(run) - begun) / sum(len(response.ids) for response in responses)


def _score(run: RunArguments, team: Team, triplets: list[Triplet]) -> tuple[float, np.ndarray]:
    """Score as the cache is filled: seconds a token of a full batch; log-probs of targets and generated, (n, 2)."""
    scorer = TeamScorer(run, team.tokenizer)
    model = scorer.players.load(team.policy)
    shortcuts = scorer.shortcuts_of(model)
    rows = [Row(triplet.prompt_ids, [ids]) for triplet in triplets for ids in triplet.responses[:2]]
    size = max(run.finetuning.tpaw_score_batch_tokens // max(row.length for row in rows), 1)
    batch = list(itertools.islice(itertools.cycle(rows), size))
    begun = _now(run)
    scorer.score_rows(model, batch, shortcuts)
    token = (_now(run) - begun) / sum(row.length for row in batch)
    parts = [scorer.score_rows(model, rows[at : at + size], shortcuts)[0] for at in range(0, len(rows), size)]
    return token, torch.cat(parts).cpu().numpy().reshape(-1, 2)


def _train(
    run: RunArguments, team: Team, triplets: list[Triplet], logps: np.ndarray, names: list[str]
) -> tuple[float, dict[str, float]]:
    """Train two steps: seconds of the second, and what was logged of the first.

    The trainer itself refuses log-probs of the newest player that are not the policy's at step 0.
    """
    facade.torch_gc()
    args, clock = copy.copy(run.training), _Clock(run)
    with tempfile.TemporaryDirectory(prefix="llamafactory-tpaw-") as folder:
        accumulation = min(args.gradient_accumulation_steps, 2)
        for key, value in (STEPS | {"output_dir": folder, "gradient_accumulation_steps": accumulation}).items():
            setattr(args, key, value)
        model = to_device(load_policy(run, team.tokenizer), args.device)
        shortcuts = find_shortcuts(model, args, run.finetuning)
        grouped = run.finetuning.tpaw_grouping == "prompt"
        trainer = TpawTrainer(
            model=model,
            shortcuts=shortcuts,
            args=args,
            finetuning_args=run.finetuning,
            player_names=names,
            processing_class=team.tokenizer,
            data_collator=TripletCollator(team.tokenizer.pad_token_id, grouped, shortcuts.layout),
            train_dataset=TripletDataset(triplets, *(logps[:, at, None] for at in range(2) if names)),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.times[-1] - clock.times[-2], trainer.state.log_history[0]


class _Clock(TrainerCallback):
    """Notes when steps begin and end."""

    def __init__(self, run: RunArguments) -> None:
        self.run, self.times = run, []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(_now(self.run))

    on_step_end = on_step_begin


def _peak(run: RunArguments) -> Figure:
    """Most memory that was held until now: of the device what tensors took, of the CPU all of the process."""
    if run.training.device.type == "cuda":
        amount = torch.cuda.max_memory_allocated(run.training.device)
        torch.cuda.reset_peak_memory_stats(run.training.device)
    else:
        amount = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facade.torch_gc()
    return Figure("measured", amount, "bytes", "one real batch")


def _now(run: RunArguments) -> float:
    if run.training.device.type == "cuda":
        torch.cuda.synchronize(run.training.device)
    return time.perf_counter()
