# SPDX-License-Identifier: Apache-2.0
"""`check --model`: the three steps with one batch, and that the newest player's reward is 0 at step 0."""

from __future__ import annotations

import math
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback

from ..arguments.parsed import RunArguments, parse_single_process
from ..errors import Findings
from ..generation.base import Request, SamplingSettings
from ..generation.hf import HfEngine
from ..lf import facade
from ..team.loading import load_generator
from ..team.members import Team, load_team
from ..team.scorer import TeamScorer
from ..train.setup import IterationSetup
from ..train.workflow import make_trainer
from .estimates import count_processes, steps_of
from .plan import with_defaults


if TYPE_CHECKING:
    from ..data.opponents import Triplet
    from .checks import Sample
    from .plan import Plan

# Of the second of two steps the optimizer's state is there; nothing is saved or reported.
STEPS: dict[str, Any] = {
    "max_steps": 2, "logging_steps": 1, "logging_strategy": "steps", "save_strategy": "no", "eval_strategy": "no",
    "do_eval": False, "load_best_model_at_end": False, "push_to_hub": False, "report_to": "none",
    "resume_from_checkpoint": None, "disable_tqdm": True, "dataloader_num_workers": 0, "disable_shuffling": True,
}  # fmt: skip


def measure(plan: Plan, sample: Sample, found: dict[str, Any], say: Callable[[str], object]) -> None:
    """Fingerprint the players again; sample, score and train on one batch of the longest rows; fill in `found`."""
    keys = with_defaults(plan.given) | vars(plan.tpaw_args)
    size, accumulation = int(keys["per_device_train_batch_size"]), int(keys["gradient_accumulation_steps"])
    seconds, memory, total = {}, found["memory"], sample.total or 0
    with tempfile.TemporaryDirectory(prefix="llamafactory-tpaw-") as folder:
        # In an empty store no fingerprint is trusted by a file's size and time.
        places = {"output_dir": folder, "tpaw_cache_dir": folder}
        repeated = min(accumulation, 2)
        run = parse_single_process(plan.given | STEPS | places | {"gradient_accumulation_steps": repeated})
        say("the players' fingerprints")
        with Findings() as findings:
            team = load_team(run, findings)
        fingerprints = {member.player.name: member.fingerprint for member in team.readers}
        by_length = sorted(sample.triplets, key=_tokens, reverse=True)
        count = max(2 * size * repeated, math.ceil(int(keys["tpaw_score_batch_tokens"]) / sum(sample.longest)))
        batch = by_length[:count]
        if plan.to_generate:  # what comes may be as long as it is allowed to
            length = sample.longest[1]
            batch = [replace(triplet, generated_ids=np.resize(triplet.generated_ids, length)) for triplet in batch]
            if keys["tpaw_engine"] == "hf":
                say("a batch of generation")
                token = _generate(run, team, by_length, sample.longest)
                tokens = sum(len(triplet.generated_ids) for triplet in sample.triplets) / len(sample.triplets)
                seconds["generate"] = total * plan.tpaw_args.tpaw_samples_per_prompt * tokens * token
                memory["generation"]["measured"] = _take_peak(run)
        shorter = sum(map(_tokens, sample.triplets)) / len(sample.triplets) / (sum(map(_tokens, batch)) / len(batch))
        scorer = _TimedScorer(run, team.tokenizer)
        if sample.scored:
            say("a batch of scoring")
            team = team._replace(members=[team.policy])
            setup = IterationSetup(team, batch, [], [], None)
            scored = scorer.fill(team.members, setup.blocks()).scored_sequences
            seconds["score"] = total * sample.scored * scorer.seconds / scored * shorter / count_processes()
            memory["scoring"]["measured"] = _take_peak(run)
        say("two steps of training")
        clock = _Clock()
        trainer = make_trainer(run, IterationSetup(team, batch, [], [], None), scorer, [clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        step = (clock.times[1] - clock.times[0]) * accumulation / repeated
        seconds["train"] = steps_of(keys, total * sample.responses) * step * shorter
        memory["training"]["measured"] = _take_peak(run)
    reward = trainer.state.log_history[0].get(f"rewards/target/{team.policy.player.name}")  # none for T-SPIN
    found["time"] = seconds if total else {}
    found["step_zero"] = {"reward": reward, "fingerprints": fingerprints}


def _tokens(triplet: Triplet) -> int:
    return 2 * len(triplet.prompt_ids) + len(triplet.target_ids) + len(triplet.generated_ids)


def _generate(run: RunArguments, team: Team, triplets: list[Triplet], longest: tuple[int, int]) -> float:
    """Answer a batch of prompts; seconds a token."""
    model = load_generator(run, team.tokenizer, team.policy.folder, team.policy.adapters)
    settings = SamplingSettings.of({**vars(run.generating), "seed": run.training.seed})
    stops = team.encoder.stop_token_ids(model.generation_config.eos_token_id)
    most = run.finetuning.tpaw_generate_batch_tokens
    engine = HfEngine(model, settings, stops, team.tokenizer.pad_token_id, most)
    rows, iteration = max(most // sum(longest), 1), run.finetuning.tpaw_iteration
    requests = [Request(triplet.id, triplet.prompt_ids, longest[1], iteration) for triplet in triplets[:rows]]
    begun = time.perf_counter()
    responses = engine.generate(requests)
    return (time.perf_counter() - begun) / sum(len(response.ids) for response in responses)


class _TimedScorer(TeamScorer):
    """Counts the seconds of forward passes, without those of loading."""

    seconds = 0.0

    def score_rows(self, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        begun = time.perf_counter()
        sums, counts = super().score_rows(*args)
        sums = sums.cpu()  # waits for the device
        self.seconds += time.perf_counter() - begun
        return sums, counts


class _Clock(TrainerCallback):
    """Notes when steps are logged, for which the Trainer waits for the device."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())


def _take_peak(run: RunArguments) -> float:
    """Most memory that was held since the last time: of the device by tensors, of the CPU by all of the process."""
    if run.training.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(run.training.device)
        torch.cuda.reset_peak_memory_stats(run.training.device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facade.torch_gc()
    return peak
