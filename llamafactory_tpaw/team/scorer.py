# SPDX-License-Identifier: Apache-2.0
"""Log-probs of the players: loaded one at a time, scoring only what the cache lacks; or all in memory, every step."""

from __future__ import annotations

import copy
import gc
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.collator import pad_sequences
from ..errors import EnvironmentProblem
from ..plugin import facade
from ..plugin.logs import get_logger
from .cache import LogpCache, sequence_key
from .fingerprint import config_digest
from .forward import ROUNDING, autocast, autocast_dtype, freeze, numerics, response_logps


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedModel

    from ..arguments.parsed import RunArguments
    from .members import Member

CACHE_SCHEMA = 1
# A part of the cache is written after this many seconds, so that a crash loses no more than that.
FLUSH_SECONDS = 60.0

logger = get_logger(__name__)


class Block(NamedTuple):
    """Sequences that belong together: all targets, or all responses that one θ generated."""

    name: str
    prompts: list[np.ndarray]
    responses: list[np.ndarray]

    def keys(self) -> list[bytes]:
        """Cache keys of the sequences, in order."""
        return [sequence_key(*pair) for pair in zip(self.prompts, self.responses, strict=True)]


@dataclass
class ScoreReport:
    """What scoring did: how many (player, block) pairs there are, in how many of them something was scored."""

    blocks: int = 0
    scored_blocks: int = 0
    scored_sequences: int = 0
    scored_tokens: int = 0
    seconds: float = 0.0


class TeamScorer:
    r"""Scores sequences under the players with the numerics of the policy's first step.

    Args:
        run: The run's arguments.
        tokenizer: The tokenizer, already adapted to the template.
    """

    def __init__(self, run: RunArguments, tokenizer: Any) -> None:
        self.run = run
        self.tokenizer = tokenizer
        self.device = run.training.device
        self.dtype = autocast_dtype(run.training)
        self.batch_tokens = run.finetuning.tpaw_score_batch_tokens
        self.numerics = numerics(run.model, run.training, run.finetuning)
        self._caches: dict[str, LogpCache] = {}

    def load(self, member: Member) -> PreTrainedModel:
        """Load a player exactly as LlamaFactory loads the policy, then freeze it."""
        model_args = copy.copy(self.run.model)
        model_args.model_name_or_path = str(member.folder)
        model = facade.load_model(self.tokenizer, model_args, self.run.finetuning, True)
        return freeze(model).to(self.device)

    def cache_of(self, member: Member) -> LogpCache:
        """The player's cache under this run's numerics, with what other processes wrote in the meantime."""
        if member.fingerprint in self._caches:
            return self._caches[member.fingerprint].reload()
        key = {
            "schema": CACHE_SCHEMA,
            "fingerprint": member.fingerprint,
            "config": config_digest(member.folder),
            **self.numerics,
        }
        cache = LogpCache(self.run.finetuning.tpaw_cache_dir, key, tolerance=ROUNDING[self.dtype])
        self._caches[member.fingerprint] = cache.load()
        return cache

    def fill(self, team: Sequence[Member], blocks: Sequence[Block]) -> ScoreReport:
        r"""Score what the caches of the players lack.

        Args:
            team: The players, oldest first.
            blocks: Every player scores every block.

        Returns:
            What was done; each player's line is logged too.
        """
        report = ScoreReport(blocks=len(team) * len(blocks))
        started = time.monotonic()
        keys = {block.name: block.keys() for block in blocks}
        sequences = {
            key: pair
            for block in blocks
            for key, pair in zip(keys[block.name], zip(block.prompts, block.responses, strict=True), strict=True)
        }
        for member in team:
            cache = self.cache_of(member)
            missing = {name: cache.missing(names) for name, names in keys.items()}
            states = [f"{name} {'scored' if lacking else 'cached'}" for name, lacking in missing.items()]
            logger.info_rank0(f"{member.player.name} ({member.player.path}): {', '.join(states)}.")
            report.scored_blocks += sum(bool(lacking) for lacking in missing.values())
            todo = {key: sequences[key] for lacking in missing.values() for key in lacking}
            if todo:
                report.scored_sequences += len(todo)
                report.scored_tokens += sum(len(prompt) + len(response) for prompt, response in todo.values())
                self._score(member, todo, cache)
        report.seconds = time.monotonic() - started
        logger.info_rank0(
            f"Scored {report.scored_blocks} of {report.blocks} blocks ({report.scored_sequences} sequences); the "
            f"others are cached in {self.run.finetuning.tpaw_cache_dir}."
        )
        return report

    def lookup(self, team: Sequence[Member], block: Block) -> np.ndarray:
        """Read the log-probs of a block from the caches: shape (n, J) in nats, players oldest first."""
        keys, tokens = block.keys(), [len(response) for response in block.responses]
        columns = [self.cache_of(member).lookup_many(keys, tokens) for member in team]
        return np.stack(columns, axis=1).astype(np.float32)

    def _score(self, member: Member, todo: Mapping[bytes, tuple[np.ndarray, np.ndarray]], cache: LogpCache) -> None:
        model = self.load(member)
        flushed = time.monotonic()
        with tqdm(total=len(todo), unit="sequence", desc=member.player.name) as progress:
            for batch in plan_score_batches(todo, self.batch_tokens):
                pairs = [todo[key] for key in batch]
                try:
                    sums, counts = self.score_batch(model, pairs)
                except torch.OutOfMemoryError as error:
                    cache.flush()
                    raise EnvironmentProblem(
                        f"The device ran out of memory with {len(batch)} sequences in a batch. Lower "
                        "`tpaw_score_batch_tokens` and start again: what was scored is kept."
                    ) from error
                cache.add(batch, sums.tolist(), counts.tolist())
                if time.monotonic() - flushed > FLUSH_SECONDS:
                    cache.flush()
                    flushed = time.monotonic()
                progress.update(len(batch))
        cache.flush()
        del model
        release_memory()

    @torch.no_grad()
    def score_batch(
        self, model: PreTrainedModel, pairs: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score (prompt, response) pairs with a loaded player: sums (N,) and token counts (N,)."""
        padded = pad_sequences(
            [prompt for prompt, _ in pairs],
            [response for _, response in pairs],
            pad_token_id=self.tokenizer.pad_token_id,
        )
        batch = {name: value.to(self.device) for name, value in padded.items()}
        return response_logps(model, batch, autocast(self.device, self.dtype))


class OnlineTeam:
    """All players in memory, scoring each training batch as it comes: the plain way, kept for comparison."""

    def __init__(self, scorer: TeamScorer, team: Sequence[Member]) -> None:
        self.scorer = scorer
        self.models = [scorer.load(member) for member in team]

    @torch.no_grad()
    def score(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Score a batch of N sequences: (N, J) in nats, players oldest first."""
        context = autocast(self.scorer.device, self.scorer.dtype)
        return torch.stack([response_logps(model, batch, context).sums for model in self.models], dim=1)


def plan_score_batches(todo: Mapping[bytes, tuple[np.ndarray, np.ndarray]], batch_tokens: int) -> list[list[bytes]]:
    """Group sequences of like length, longest first, so that rows times padded length stay within `batch_tokens`."""
    lengths = {key: len(prompt) + len(response) for key, (prompt, response) in todo.items()}
    batches: list[list[bytes]] = []
    width = 0
    for key in sorted(todo, key=lambda key: (-lengths[key], key)):
        if not batches or (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
            width = lengths[key]
        batches[-1].append(key)
    return batches


def release_memory() -> None:
    """Give a player's memory back before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
