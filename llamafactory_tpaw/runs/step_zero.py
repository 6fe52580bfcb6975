# SPDX-License-Identifier: Apache-2.0
"""`check --model`: θ_t as policy and as newest player, whose reward is 0 at step 0; and a warm-up sample."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..data.collator import TripletDataset
from ..data.layout import Row
from ..errors import DataError, EnvironmentProblem, Findings
from ..generation.base import Request, SamplingSettings
from ..generation.hf import HfEngine
from ..lf import facade
from ..team.fingerprint import chain_fingerprints
from ..team.forward import autocast, disable_dropout, response_logps, rounding
from ..team.loading import load_generator, load_policy, to_device
from ..team.members import load_team
from ..team.players import team_of
from ..team.scorer import TeamScorer
from ..team.sharding import autocast_dtype
from ..team.shortcuts import find_shortcuts
from ..train.setup import load_setup
from .estimates.hours import Measured, TrainingSample
from .estimates.passes import collator_of
from .warm_up import measure_training


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..arguments.parsed import RunArguments
    from ..data.encoding import TurnEncoder
    from ..data.opponents import Triplet
    from ..team.members import Member
    from .estimates.memory import Traced
    from .estimates.workload import Sample, Workload
    from .preflight import Plan

SAMPLE_TRIPLETS = 16
SAMPLE_NEW_TOKENS = 32


@dataclass(frozen=True)
class StepZero:
    r"""What scoring θ_t twice showed.

    Attributes:
        responses: Responses that were scored.
        largest: Largest difference between policy and newest player, in nats.
        reward: The same as a reward: times `tpaw_reward_scale`.
        allowed: What rounding may make of the response with the largest difference, in nats.
        fingerprints: Of the players that are folders here, recomputed, by name.
        measured: The warm-up sample.
    """

    responses: int
    largest: float
    reward: float
    allowed: float
    fingerprints: dict[str, str]
    measured: Measured

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        plain = {name: value for name, value in vars(self).items() if name != "measured"}
        return plain | {"measured": self.measured.as_dict()}


class _Policy(NamedTuple):
    """What the policy gave: sums of the responses in nats, seconds to load it, and a short training."""

    pairs: list[tuple[Any, Any]]
    sums: torch.Tensor
    load: float
    training: TrainingSample


def examine(
    run: RunArguments,
    plan: Plan,
    workload: Workload,
    traced: Traced,
    sample: Sample,
    say: Callable[[str], object],
) -> StepZero:
    r"""Recompute fingerprints, load θ_t as policy and as player, and compare what they say of the same responses.

    Args:
        run: The run's arguments.
        plan: Its players and datasets.
        workload: Gives the responses; where triplets are missing, targets stand in for what will be generated.
        traced: Gives the rows of a batch of generation.
        sample: Gives prompts to answer.
        say: Told what is being done.

    Raises:
        TpawError: If a checkpoint is not what it was, a triplet file does not fit, or policy and player differ by more
            than rounding.
    """
    fingerprints = _recompute(run, plan, say)
    say("triplets")
    encoder, tokenizer, policy, triplets = _load(run, plan, workload)
    try:
        say("the policy")
        names = [player.name for player in team_of(plan.players, run.finetuning.tpaw_team_size)]
        scored = _as_policy(run, tokenizer, triplets, names if run.finetuning.tpaw_objective == "tpaw" else [])
        say("the newest player")
        sums, token_scored, load = _as_player(run, tokenizer, policy, scored.pairs)
        token_sampled = None
        if workload.generates:
            say("a few tokens of generation")
            token_sampled = _sample_speed(run, plan, encoder, policy, sample, traced.rows)
    except torch.OutOfMemoryError as error:
        raise EnvironmentProblem(
            f"The device ran out of memory with theta_t and {SAMPLE_TRIPLETS} triplets: {error}. Lower "
            "`per_device_train_batch_size`, `tpaw_score_batch_tokens` or `tpaw_generate_batch_tokens`."
        ) from error
    measured = Measured(scored.training, scored.load, load, token_scored, token_sampled)
    apart = (scored.sums - sums).abs()
    tokens = torch.tensor([len(response) for _, response in scored.pairs])
    allowed = rounding(autocast_dtype(run.training), run.model.quantization_bit) * torch.maximum(
        scored.sums.abs(), tokens
    )
    worst = int((apart / allowed).argmax())
    if apart[worst] > allowed[worst]:
        raise DataError(
            f"Before the first update theta_t ({policy.player.path}) as policy and as newest player are one model, "
            f"but their log-probs of a response differ by {apart[worst]:.3g} nats, where rounding allows "
            f"{allowed[worst]:.3g}. Look at the keys that change how the model is loaded or computes (`flash_attn`, "
            "`bf16`, `upcast_layernorm`, `enable_liger_kernel`), and remove the one that does."
        )
    largest = float(apart.max())
    scale = run.finetuning.tpaw_reward_scale
    return StepZero(len(tokens), largest, scale * largest, float(allowed[worst]), fingerprints, measured)


def _recompute(run: RunArguments, plan: Plan, say: Callable[[str], object]) -> dict[str, str]:
    """Read every byte of the players here; what was kept of earlier times is written anew."""
    fingerprints, problems = {}, []
    for player in team_of(plan.players, run.finetuning.rounds_played):
        if not player.is_local:
            continue
        say(f"the fingerprint of {player.name}")
        folders, store = [Path(part) for part in player.parts], Path(run.finetuning.tpaw_cache_dir)
        kept = chain_fingerprints(folders, store)[-1]
        now = fingerprints[player.name] = chain_fingerprints(folders, store, trust_stat=False)[-1]
        if kept != now:
            problems.append(
                f"{player.name} ({player.path}) has fingerprint {now[:12]}, but had {kept[:12]} when it was read "
                "last, and its files have the same size and time: its weights were changed or are damaged. Restore "
                "them."
            )
    if problems:
        raise DataError("\n".join(problems))
    return fingerprints


def _load(run: RunArguments, plan: Plan, workload: Workload) -> tuple[TurnEncoder, Any, Member, list[Triplet]]:
    """Encoder, tokenizer, θ_t and a few triplets; all that training would check is checked."""
    if plan.to_generate:
        with Findings() as findings:
            team = load_team(run, findings)
        return team.encoder, team.tokenizer, team.policy, workload.triplets[:SAMPLE_TRIPLETS]
    setup = load_setup(run)
    triplets = (setup.train or setup.held_out)[:SAMPLE_TRIPLETS]
    return setup.team.encoder, setup.team.tokenizer, setup.team.policy, triplets


def _as_policy(run: RunArguments, tokenizer: Any, triplets: Sequence[Triplet], names: Sequence[str]) -> _Policy:
    """Score as the Trainer does, then train a few steps on the sample."""
    started = _now(run)
    model = to_device(load_policy(run, tokenizer), run.training.device)
    load = _now(run) - started
    disable_dropout(model)
    shortcuts = find_shortcuts(model, run.training, run.finetuning)
    collator = collator_of(run, tokenizer, shortcuts)
    size = run.training.per_device_train_batch_size
    pairs, sums = [], {"target": [], "generated": []}
    for start in range(0, len(triplets), size):
        part = list(triplets[start : start + size])
        batch = collator([TripletDataset(part)[index] for index in range(len(part))])
        batch = {name: value.to(run.training.device) for name, value in batch.items()}
        with torch.no_grad(), autocast(run.training.device, autocast_dtype(run.training)):
            logps = response_logps(model, batch, head=shortcuts.head)
        for kind, parts in sums.items():
            parts.append(logps.sums[batch[f"{kind}_index"]].cpu())
    for kind in sums:
        pairs += [(triplet.prompt_ids, getattr(triplet, f"{kind}_ids")) for triplet in triplets]
    both = {kind: torch.cat(parts) for kind, parts in sums.items()}
    # Every player is given the policy's own log-probs: what they are does not change how long a step takes.
    columns = [both[kind].numpy()[:, None].repeat(max(len(names), 1), axis=1) for kind in ("target", "generated")]
    training = measure_training(run, tokenizer, model, shortcuts, triplets, (columns[0], columns[1]), names)
    del model
    facade.torch_gc()
    return _Policy(pairs, torch.cat(list(both.values())), load, training)


def _as_player(
    run: RunArguments, tokenizer: Any, policy: Member, pairs: Sequence[tuple[Any, Any]]
) -> tuple[torch.Tensor, float, float]:
    """Score the same responses as the cache is filled: sums, seconds a token, and seconds that loading took."""
    scorer = TeamScorer(run, tokenizer)
    begun = _now(run)
    model = scorer.players.load(policy)
    load = _now(run) - begun
    shortcuts = scorer.shortcuts_of(model)
    rows = [Row(prompt, [response]) for prompt, response in pairs]
    scorer.score_rows(model, rows[:1], shortcuts)
    begun = _now(run)
    sums = torch.cat([scorer.score_rows(model, rows[at : at + 4], shortcuts)[0] for at in range(0, len(rows), 4)])
    seconds = _now(run) - begun
    del model
    facade.torch_gc()
    return sums.cpu(), seconds / sum(row.length for row in rows), load


def _sample_speed(
    run: RunArguments, plan: Plan, encoder: TurnEncoder, policy: Member, sample: Sample, rows: int
) -> float:
    """Seconds a token of a batch of generation, cut after a few tokens."""
    dtype = torch.bfloat16 if run.finetuning.pure_bf16 else autocast_dtype(run.training) or torch.float32
    model = load_generator(run, encoder.tokenizer, policy.folder, policy.adapters, dtype)
    settings = SamplingSettings.of({**vars(run.generating), "seed": run.training.seed})
    stops = encoder.stop_token_ids(model.generation_config.eos_token_id)
    engine = HfEngine(
        model, settings, stops, encoder.tokenizer.pad_token_id, run.finetuning.tpaw_generate_batch_tokens
    )
    limit = min(SAMPLE_NEW_TOKENS, settings.max_new_tokens)
    requests = [
        Request(prompt.id, prompt.prompt_ids, limit, plan.tpaw_args.tpaw_iteration) for prompt in sample.prompts[:rows]
    ]
    engine.generate(requests[:1])
    begun = _now(run)
    responses = engine.generate(requests)
    seconds = _now(run) - begun
    del model, engine
    facade.torch_gc()
    return seconds / sum(len(response.ids) for response in responses)


def _now(run: RunArguments) -> float:
    if run.training.device.type == "cuda":
        torch.cuda.synchronize(run.training.device)
    return time.perf_counter()
