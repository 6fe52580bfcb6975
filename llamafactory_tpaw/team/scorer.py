# SPDX-License-Identifier: Apache-2.0
"""Log-probs of the players: loaded one at a time, scoring only what the cache lacks."""

from __future__ import annotations

import contextlib
import gc
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..data.layout import Layout, Row, is_shared, lay_out, pack, padded
from ..data.progress import Progress
from ..errors import CacheError, DataError, EnvironmentProblem
from ..lf.logs import get_logger
from .cache import LogpCache, sequence_key
from .fingerprint import config_digest
from .forward import numerics, response_logps, rounding
from .loading import PlayerLoader
from .processes import Processes
from .sharding import precision_of, shard, sharding_of
from .shortcuts import Shortcuts, find_shortcuts


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..arguments.parsed import RunArguments
    from .members import Member

CACHE_SCHEMA = 1
# A part of the cache is written after this many seconds, so that a crash loses no more than that.
FLUSH_SECONDS = 60.0
# How long what another process wrote may take to be seen here.
VISIBLE_SECONDS = 60.0

Todo = dict[bytes, tuple[np.ndarray, np.ndarray]]
Batch = list[tuple[Row, list[bytes]]]

logger = get_logger(__name__)


class Block(NamedTuple):
    """Prompts and responses that belong together: all targets, or all responses that one θ generated."""

    name: str
    pairs: list[tuple[np.ndarray, np.ndarray]]


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

    Where training runs in several processes, each scores its share. Where training holds the policy in shards, players
    are held so, too: all processes then do as many forward passes, some of them for nothing.
    """

    def __init__(self, run: RunArguments, tokenizer: Any, processes: Processes | None = None) -> None:
        self.run = run
        self.tokenizer = tokenizer  # already adapted to the template
        self.device = run.training.device
        self.precision = precision_of(run)
        self.sharding = sharding_of(run.training)
        self.processes = processes or Processes(run.training)
        self.players = PlayerLoader(run, tokenizer)
        self._caches: dict[str, LogpCache] = {}

    def cache_of(self, member: Member) -> LogpCache:
        """The player's cache under this run's numerics, with what other processes wrote in the meantime."""
        if member.fingerprint not in self._caches:
            key = {
                "schema": CACHE_SCHEMA,
                "fingerprint": member.fingerprint,
                "config": config_digest(member.folder),
                **numerics(self.run, len(member.adapters)),
            }
            tolerance = rounding(*self.precision, torch.float32 if key["weights"] == "float32" else torch.bfloat16)
            cache = LogpCache(self.run.finetuning.tpaw_cache_dir, key, tolerance=tolerance)
            self._caches[member.fingerprint] = cache
        return self._caches[member.fingerprint].load()

    def fill(self, team: Sequence[Member], blocks: Sequence[Block]) -> ScoreReport:
        """Score what the caches of the players lack, every block by every player; all processes do it together."""
        report = ScoreReport(blocks=len(team) * len(blocks))
        started = time.monotonic()
        sequences = {block.name: {sequence_key(*pair): pair for pair in block.pairs} for block in blocks}
        self.processes.meet()
        work = []
        for member in team:
            cache = self.cache_of(member)
            # What the first process sees, so that all of them do the same.
            missing = {name: self.processes.as_first(cache.missing([*keys])) for name, keys in sequences.items()}
            states = [f"{name} {'scored' if lacking else 'cached'}" for name, lacking in missing.items()]
            logger.info_rank0(f"{member.player.name} ({member.player.path}): {', '.join(states)}.")
            report.scored_blocks += sum(bool(lacking) for lacking in missing.values())
            todo = {key: sequences[name][key] for name, lacking in missing.items() for key in lacking}
            if todo:
                work.append((member, todo, cache))
        for number, (member, todo, cache) in enumerate(work, start=1):
            report.scored_sequences += len(todo)
            report.scored_tokens += sum(len(prompt) + len(response) for prompt, response in todo.values())
            following = work[number][0] if work[number:] else None
            with contextlib.ExitStack() as stack:
                stack.callback(gc.unfreeze)
                gc.freeze()  # collections meanwhile pass over a million objects of imported modules and data
                model = stack.enter_context(self.players.open(member, following))
                player = shard(model, self.run.training, self.precision)
                self._score(player, member, todo, cache)
                if player is not model and hasattr(player, "destroy"):  # DeepSpeed's engine
                    player.destroy()
                del player
            cache.flush()
        self.processes.meet()
        for _, todo, cache in work:
            self._wait_until_seen(cache, list(todo))
        report.seconds = time.monotonic() - started
        logger.info_rank0(
            f"Scored {report.scored_blocks} of {report.blocks} blocks ({report.scored_sequences} sequences); the "
            f"others are cached in {self.run.finetuning.tpaw_cache_dir}."
        )
        return report

    def lookup(self, team: Sequence[Member], pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Read the log-probs of n responses to prompts from the caches: (n, J) in nats, players oldest first."""
        keys = [sequence_key(*pair) for pair in pairs]
        return np.stack([self.cache_of(member).lookup(keys) for member in team], axis=1)

    def _wait_until_seen(self, cache: LogpCache, names: Sequence[bytes]) -> None:
        """Shared file systems show what another machine wrote a little later."""
        end = time.monotonic() + VISIBLE_SECONDS
        while lacking := len(cache.load().missing(names)):
            if time.monotonic() > end:
                raise CacheError(
                    f"{cache.folder} lacks {lacking} of {len(names)} sequences that were just scored by "
                    f"{self.processes.count} processes. `tpaw_cache_dir` must be in a file system that all of them "
                    "share."
                )
            time.sleep(1.0)

    def _score(self, model: torch.nn.Module, member: Member, todo: Todo, cache: LogpCache) -> None:
        shortcuts = find_shortcuts(model, self.run.training, self.run.finetuning)
        batches = self._own_batches(todo, shortcuts.layout)
        total = sum(len(keys) for batch, counts in batches if counts for _, keys in batch)
        flushed = time.monotonic()
        with Progress(member.player.name, total, "sequence") as progress:
            for batch, counts in batches:
                keys = [key for _, own in batch for key in own]
                try:
                    sums, tokens = self.score_rows(model, [row for row, _ in batch], shortcuts)
                except torch.OutOfMemoryError as error:
                    cache.flush()
                    raise EnvironmentProblem(
                        f"The device ran out of memory with {len(keys)} sequences in a batch. Lower "
                        "`tpaw_score_batch_tokens` and start again: what was scored is kept."
                    ) from error
                if not counts:
                    continue
                if wrong := [key for key, sound in zip(keys, sums.isfinite().tolist(), strict=True) if not sound]:
                    prompt = self.tokenizer.decode(todo[wrong[0]][0][-40:])
                    raise DataError(
                        f"{member.player.name} ({member.player.path}) gives NaN or inf for {len(wrong)} of "
                        f"{len(keys)} responses, the first to the prompt that ends with {prompt!r}. Look at the "
                        "checkpoint and its dtype; a model trained in bf16 may not be run in fp16."
                    )
                cache.add(keys, sums.tolist(), tokens.tolist())
                if time.monotonic() - flushed > FLUSH_SECONDS:
                    cache.flush()
                    flushed = time.monotonic()
                progress.update(len(keys))

    def _own_batches(self, todo: Todo, layout: Layout) -> list[tuple[Batch, bool]]:
        """The batches of this process, and whether each counts: some are only done along with the others'."""
        count, rank = self.processes.count, self.processes.rank
        batches = plan_score_batches(todo, self.run.finetuning.tpaw_score_batch_tokens, layout)
        if len(batches) < count:  # smaller ones, so that every process has one
            tokens = sum(row.length for batch in batches for row, _ in batch)
            batches = plan_score_batches(todo, -(-tokens // count), layout)
        own = [(batch, True) for batch in batches[rank::count]]
        if self.sharding:
            own += [(batches[-1], False)] * (-(-len(batches) // count) - len(own))
        return own

    def score_rows(
        self, model: torch.nn.Module, rows: Sequence[Row], shortcuts: Shortcuts
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score the S responses of some rows with a loaded player: sums (S,) and token counts (S,)."""
        packed = shortcuts.layout.packed
        laid_out = pack(rows) if packed else lay_out(rows, pad_token_id=self.tokenizer.pad_token_id)
        batch = {name: value.to(self.device) for name, value in laid_out.items()}
        # Shards that are gathered in inference mode could not be used outside of it.
        with torch.no_grad() if self.sharding else torch.inference_mode():
            return response_logps(model, batch, self.precision.autocast, head=shortcuts.head)


def plan_score_batches(todo: Todo, batch_tokens: int, layout: Layout) -> list[Batch]:
    r"""Put rows of like length together, longest first, each with the keys of its responses.

    A batch has at most `batch_tokens`, padding included, or one row. Rows with several responses are not mixed with
    others, which need no mask.
    """
    by_prompt: dict[bytes, tuple[np.ndarray, list[bytes]]] = {}
    for key, (prompt, _) in todo.items():
        by_prompt.setdefault(prompt.tobytes(), (prompt, []))[1].append(key)
    rows: list[tuple[Row, list[bytes]]] = []
    for prompt, keys in by_prompt.values():
        left = iter(keys)
        for row in layout.arrange([Row(prompt, [todo[key][1] for key in keys])], most_tokens=batch_tokens):
            rows.append((row, [next(left) for _ in row.responses]))
    rows.sort(key=lambda item: (not is_shared([item[0]]), -item[0].length, item[1]))
    batches: list[Batch] = []
    width = 0
    for item in rows:
        fits = batches and is_shared([item[0]]) == is_shared([batches[-1][0][0]])
        if not fits or (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
            width = item[0].length if layout.packed else padded(item[0].length)
        batches[-1].append(item)
    return batches
