# SPDX-License-Identifier: Apache-2.0
"""Opponent data D_O: the triplets of the last rounds as token ids, and their split for evaluation."""

from __future__ import annotations

import copy
import hashlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..lf.logs import get_logger
from .encoding import TokenFile, TurnEncoder, cut_response, prompt_id
from .progress import Progress
from .prompts import BadRow, Limits, UnusableRowError, check_bad_rows, encode_rows
from .source import AlignedRow, Entry, load_rows, read_rows
from .triplets import RESTORE, TripletMeta, TripletRow, read_triplets


if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from pathlib import Path

    import numpy as np

FOREIGN = -1

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Triplet:
    """A prompt with its target and one generated response, as int32 token ids ready for training."""

    id: str  # of the prompt
    iteration: int  # which θ generated the response; `FOREIGN` for other ranking data
    prompt_ids: np.ndarray  # uncut
    target_ids: np.ndarray  # cut to what the prompt leaves of `cutoff_len`
    generated_ids: np.ndarray  # likewise
    truncated: bool  # whether the generated response has no end of turn
    proto_ids: np.ndarray | None = None  # y_0, the response of θ_0 to the prompt (T-SPIN)
    sample: int = 0  # which of the round's responses to the prompt it is
    weight: float = 1.0  # of its loss

    @property
    def responses(self) -> tuple[np.ndarray, ...]:
        """The responses in batch order: target, generated and, where there is one, y_0."""
        both = (self.target_ids, self.generated_ids)
        return both if self.proto_ids is None else (*both, self.proto_ids)

    @property
    def equal(self) -> bool:
        """Whether the generated response is the target."""
        return self.target_ids.tobytes() == self.generated_ids.tobytes()


def is_exact(meta: TripletMeta, encoder: TurnEncoder) -> bool:
    """Whether a file was generated with this tokenizer and template, so that its sampled ids can be trained on."""
    return (encoder.tokenizer_digest, encoder.template_digest) == (meta.tokenizer, meta.template)


def encoding_problems(metas: Sequence[tuple[Path, TripletMeta]], encoder: TurnEncoder, template: str) -> list[str]:
    """Check that triplet files, with their meta, were generated from the tokens that this run trains on."""
    return [
        f"{path} was generated with another tokenizer or template than this run's, so other tokens would be trained "
        f"on than were sampled. Restore the tokenizer, `template: {template}`, `default_system`, `enable_thinking` "
        "and the like, or delete the file and its meta file to sample again."
        for path, meta in metas
        if not is_exact(meta, encoder)
    ]


def load_triplets(
    entry: Entry, meta: TripletMeta, encoder: TurnEncoder, limits: Limits, folder: Path | None = None
) -> list[Triplet]:
    """Read a triplet file as token ids, which are kept in a file in `folder`.

    The sampled ids are used where tokenizer and template are those of the file's meta; otherwise texts are encoded,
    and prompts are named by the content that they have now.
    """
    exact = is_exact(meta, encoder)
    rows = Progress(f"reading {entry.path.name}", meta.rows, items=read_triplets(entry.path, meta))

    def encode(numbered: tuple[int, TripletRow]) -> Triplet:
        number, row = numbered
        prompt_ids, target_ids = encoder.encode(row.messages, row.target, row.system, row.tools)
        content, (given, _, occurrence) = prompt_id(prompt_ids, target_ids, {})[:16], row.id.partition("-")
        if exact and content != given:
            raise DataError(
                f"{entry.path}, row {number}: its prompt and target encode to id {content}-0, but the row says "
                f"{row.id}: it is foreign, or was altered. {RESTORE}"
            )
        limits.check_room(prompt_ids)
        if exact and row.generated_ids:
            if not (0 <= min(row.generated_ids) and max(row.generated_ids) < limits.vocabulary):
                raise UnusableRowError(f"`generated_ids` holds an id beyond the model's {limits.vocabulary}")
            generated_ids = encoder.finish(row.generated_ids, row.finish_reason)
        else:
            generated_ids = encoder.encode_text(row.generated, row.finish_reason)
        responses, truncated = (target_ids, generated_ids), row.finish_reason == "length"
        return Triplet(f"{content}-{occurrence}", row.iteration, prompt_ids, *responses, truncated, sample=row.sample)

    numbered = ((number, (number, row)) for number, row in enumerate(rows, start=1))
    return _collect(numbered, encode, entry, limits, folder)


def load_foreign(
    entry: Entry,
    encoder: TurnEncoder,
    limits: Limits,
    model_args: Any,
    data_args: Any,
    training_args: Any,
    folder: Path | None = None,
) -> list[Triplet]:
    """Read any other ranking dataset: the better response is the target, the worse one counts as generated."""
    all_rows, seen = copy.copy(data_args), {}
    all_rows.max_samples = None
    rows = load_rows(entry, model_args, all_rows, training_args)

    def encode(row: AlignedRow) -> Triplet:
        if len(row.prompt) % 2 != 1 or len(row.responses) != 2 or row.has_media:
            raise UnusableRowError("it is not one prompt with two responses in text")
        prompt_ids, target_ids = encoder.encode(row.prompt, row.responses[0], row.system, row.tools)
        generated_ids = encoder.encode(row.prompt, row.responses[1], row.system, row.tools)[1]
        name = prompt_id(prompt_ids, target_ids, seen)
        limits.check_room(prompt_ids)
        return Triplet(name, FOREIGN, prompt_ids, target_ids, generated_ids, truncated=False)

    read = Progress(f"encoding {entry.name}", len(rows), items=read_rows(rows, range(len(rows))))
    return _collect(enumerate(read, start=1), encode, entry, limits, folder)


def _collect(
    rows: Iterable[tuple[int, Any]], encode: Callable[..., Triplet], entry: Entry, limits: Limits, folder: Path | None
) -> list[Triplet]:
    """Encode rows, cut their responses to what prompts leave of `cutoff_len`, and keep the token ids in a file."""
    bad_rows: list[BadRow] = []
    tokens, kept = TokenFile(folder), []
    for _, triplet in encode_rows(rows, encode, bad_rows):
        room = len(triplet.prompt_ids), limits.cutoff_len
        target_ids, generated_ids = (cut_response(ids, *room) for ids in triplet.responses)
        tokens.append(triplet.prompt_ids, target_ids, generated_ids)
        truncated = triplet.truncated or len(generated_ids) < len(triplet.generated_ids)
        kept.append((triplet.id, triplet.iteration, truncated, triplet.sample))
    check_bad_rows(f"`dataset: {entry.name}` ({entry.path or 'on the hub'})", entry, bad_rows, limits.max_bad_rows)
    return [
        Triplet(name, iteration, *(tokens[3 * number + part] for part in range(3)), truncated, sample=sample)
        for number, (name, iteration, truncated, sample) in enumerate(kept)
    ]


def with_proto(
    triplets: list[Triplet], proto: list[Triplet], entry_name: str, failed: Collection[str] = ()
) -> tuple[list[Triplet], int]:
    """Give each triplet y_0: of what θ_0 generated for the same prompt, the response of the same number or the first.

    Prompts whose responses are all among the `failed` of D_0's meta file are left out, and counted; any other prompt
    without a y_0 is a `DataError`.
    """
    responses: dict[str, dict[int, np.ndarray]] = {}
    for triplet in proto:
        responses.setdefault(triplet.id, {})[triplet.sample] = triplet.generated_ids
    known = {key.rpartition("#")[0] for key in failed}
    prompts = dict.fromkeys(triplet.id for triplet in triplets)
    unknown = [name for name in prompts if name not in responses and name not in known]
    if unknown:
        raise DataError(
            f"`tpaw_proto: {entry_name}` lacks {len(unknown)} of {len(prompts)} prompts, the first with id "
            f"{unknown[0]}. Name the triplets that iteration 0 generated for the same prompts."
        )
    kept = []
    for triplet in triplets:
        if own := responses.get(triplet.id):
            kept.append(replace(triplet, proto_ids=own.get(triplet.sample, own[min(own)])))
    return kept, len(prompts.keys() - responses.keys())


def without(triplets: Sequence[Triplet], words: Sequence[str]) -> list[Triplet]:
    """Leave out the triplets that a word of `tpaw_opponent_filter` applies to; that none is left is an error."""

    def applies(word: str, triplet: Triplet) -> bool:
        name, _, tokens = word.partition(":")
        return len(triplet.generated_ids) < int(tokens) if tokens else getattr(triplet, name)

    first = [next((word for word in words if applies(word, triplet)), None) for triplet in triplets]
    kept = [triplet for triplet, word in zip(triplets, first, strict=True) if word is None]
    counted = ", ".join(f"{word} {first.count(word)}" for word in words)
    if triplets and not kept:
        raise DataError(
            f"`tpaw_opponent_filter` leaves nothing to train on: {counted}. Take a word out, or sample more responses."
        )
    logger.info_rank0(f"`tpaw_opponent_filter` leaves {len(kept)} triplets to train on; left out: {counted}.")
    return kept


def count_repeated(triplets: Sequence[Triplet]) -> int:
    """How many triplets have the prompt, the target and the response of one before them."""
    contents = {hash(tuple(ids.tobytes() for ids in (one.prompt_ids, *one.responses[:2]))) for one in triplets}
    return len(triplets) - len(contents)


def first_prompts(triplets: list[Triplet], count: int | None) -> list[Triplet]:
    """Keep all triplets of the first `count` prompts; all of them for None."""
    kept = set(list(dict.fromkeys(triplet.id for triplet in triplets))[:count])
    return [triplet for triplet in triplets if triplet.id in kept]


def split_by_prompt(triplets: list[Triplet], val_size: float) -> tuple[list[Triplet], list[Triplet]]:
    r"""Split into training and held-out triplets, all those of a prompt on one side.

    `val_size` is a number of prompts, or their share when below 1. The choice follows a hash of the prompts, so it is
    the same in every iteration.
    """
    contents = [triplet.id.partition("-")[0] for triplet in triplets]  # duplicates of a prompt stay on one side
    ordered = sorted(set(contents), key=lambda content: hashlib.sha256(content.encode()).hexdigest())
    count = int(val_size) if val_size >= 1 else math.ceil(val_size * len(ordered))
    held_out = set(ordered[:count])
    train = [triplet for triplet, content in zip(triplets, contents, strict=True) if content not in held_out]
    if not train:
        raise DataError(
            f"`val_size` is {val_size:g}, which holds out all {len(ordered)} prompts. Lower it so that some are "
            "trained on."
        )
    return train, [triplet for triplet, content in zip(triplets, contents, strict=True) if content in held_out]
