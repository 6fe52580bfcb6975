# SPDX-License-Identifier: Apache-2.0
"""The first rows of a run's data: what `check` looks at, and where the estimates have their lengths from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.encoding import cut_response
from ..data.opponents import Limits, Triplet, load_foreign, load_triplets
from ..data.prompts import load_prompts
from ..data.triplets import read_meta
from ..errors import DataError


if TYPE_CHECKING:
    from ..data.encoding import TurnEncoder
    from ..data.prompts import BadRow, Prompt
    from .plan import Plan

# Text of a token, an id with its comma, and the names of the fields.
TEXT_BYTES, ID_BYTES, FIELD_BYTES = 4, 7, 300


@dataclass(frozen=True)
class Sample:
    r"""Rows that were looked at, and how many there are of them.

    Attributes:
        prompts: What `tpaw_prompts` gave; empty where it is not set.
        triplets: What `dataset` gave where `tpaw_prompts` is not set; else the prompts, each with another one's
            target in place of what will be generated.
        bad_rows: Rows that cannot be used, among those looked at.
        how: What was looked at, in words.
        path: The file of the prompts, where it is local.
        total: Prompts of the whole set; None where that cannot be told.
        responses: Responses a prompt of all rounds together.
        own: How many of these are this iteration's.
        players: Players that score; 0 for T-SPIN.
        longest: Tokens of the longest prompt, and of the longest response that can come after it.
    """

    prompts: list[Prompt]
    triplets: list[Triplet]
    bad_rows: list[BadRow]
    how: str
    path: Path | None
    total: int | None
    responses: int
    own: int
    players: int
    longest: tuple[int, int]

    def rows(self, each: float) -> float | None:
        """So many for each prompt; None where the number of prompts cannot be told."""
        return None if self.total is None else self.total * each

    @property
    def scored(self) -> int:
        """Log-probs a prompt that no earlier iteration needed: all of θ_t's, the new round's of each other player."""
        return 1 + self.responses + (self.players - 1) * self.own if self.players else 0

    def tokens(self, *kinds: str) -> float:
        """Mean tokens of a triplet's `prompt`, `target` and `generated`, those named."""
        lengths = [len(getattr(triplet, f"{kind}_ids")) for triplet in self.triplets for kind in kinds]
        return sum(lengths) / max(len(self.triplets), 1)

    @property
    def row_bytes(self) -> float:
        """Size of a line of the triplet file."""
        return (
            TEXT_BYTES * self.tokens("prompt", "target", "generated")
            + ID_BYTES * self.tokens("generated")
            + FIELD_BYTES
        )


def take_sample(
    plan: Plan, encoder: TurnEncoder, model_args: Any, data_args: Any, training_args: Any, rows: int
) -> Sample:
    r"""Look at the first rows of a run's data.

    Args:
        plan: Its settings, players and datasets.
        encoder: Tokenizer and template.
        model_args: LlamaFactory's, with which the data is read, as the next two.
        data_args: With `cutoff_len`.
        training_args: With the number of workers.
        rows: How many.

    Raises:
        TpawError: If the data cannot be read.
    """
    args, cutoff, opponents = plan.tpaw_args, data_args.cutoff_len, plan.opponents
    finished = [(round_, read_meta(round_.path)) for round_ in opponents.rounds if round_.complete]
    prompts, bad_rows, path, triplets = [], [], None, []
    if args.tpaw_prompts:
        found = load_prompts(encoder, model_args, data_args, training_args, args, first=rows)
        prompts, bad_rows, path = list(found.prompts), found.bad_rows, found.entry.path
        how = f"the first {(read := len(prompts) + len(bad_rows))} rows of {found.entry.name}"
        bounds = [data_args.max_samples, args.tpaw_max_prompts, read if read < rows else _count_lines(path)]
        total = finished[0][1].prompts if finished else min((bound for bound in bounds if bound), default=None)
        for prompt, other in zip(prompts, [*prompts[1:], *prompts[:1]], strict=True):
            target, generated = (cut_response(p.target_ids, len(prompt.prompt_ids), cutoff) for p in (prompt, other))
            triplets.append(Triplet(prompt.id, args.tpaw_iteration, prompt.prompt_ids, target, generated, False))
    else:
        limits = Limits(cutoff, args.tpaw_min_response, args.tpaw_max_bad_rows)
        for round_, meta in finished:
            triplets += load_triplets(round_.entry, meta, encoder, limits)
        for entry in opponents.foreign:
            triplets += load_foreign(entry, encoder, limits, model_args, data_args, training_args)
        if not triplets:
            raise DataError(f"`dataset` has no usable row under `cutoff_len: {cutoff}`. Give other data.")
        total = min(len({triplet.id for triplet in triplets}), data_args.max_samples or len(triplets))
        how = f"all {len(triplets)} triplets of `dataset`"
    prompt = max((len(triplet.prompt_ids) for triplet in triplets), default=0)
    response = max((len(ids) for triplet in triplets for ids in triplet.responses), default=0)
    if plan.to_generate:
        response = max(response, int(plan.given.get("max_new_tokens", 1024)))
    own, samples = args.tpaw_samples_per_prompt, {round_.iteration: meta.samples for round_, meta in finished}
    responses = sum(samples.get(round_.iteration, own) for round_ in opponents.rounds) + len(opponents.foreign)
    players = min(len(plan.players), args.tpaw_team_size) if args.tpaw_objective == "tpaw" else 0
    longest = prompt, max(min(response, cutoff - prompt), 1)
    return Sample(prompts, triplets, bad_rows, how, path, total, responses, own, players, longest)


def _count_lines(path: Path | None) -> int | None:
    """Count the rows of a local file of JSON lines; other formats are not opened for this."""
    if path is None or not path.is_file() or path.suffix not in (".json", ".jsonl"):
        return None
    with path.open("rb") as stream:
        return None if stream.read(1) == b"[" else sum(1 for _ in stream)
