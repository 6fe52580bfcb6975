# SPDX-License-Identifier: Apache-2.0
"""Opponent data D_O: the triplets of the last rounds as token ids, and their split for evaluation."""

from __future__ import annotations

import copy
import hashlib
import math
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .encoding import UNENCODABLE, TurnEncoder, cut_response, prompt_id
from .progress import track
from .prompts import BadRow, check_bad_rows
from .source import TRIPLET_COLUMNS, Entry, load_rows
from .triplets import ANEW, TripletMeta, TripletRow, read_triplets


if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    import numpy as np

    from .token_store import TokenStore

FOREIGN = -1
# How much of a JSON file is looked at for the columns of its first row.
HEAD_CHARACTERS = 1 << 16


@dataclass(frozen=True, slots=True)
class Triplet:
    """A prompt with its target and one generated response, as int32 token ids ready for training.

    Attributes:
        id: The prompt's id.
        iteration: Which θ generated the response; `FOREIGN` for other ranking data.
        prompt_ids: The prompt, uncut.
        target_ids: The target, cut to what the prompt leaves of `cutoff_len`.
        generated_ids: The generated response by the same rule.
        truncated: Whether the generated response has no end of turn.
        proto_ids: y_0, the response of θ_0 to the prompt (T-SPIN), or None.
        sample: Which of the round's responses to the prompt it is, from 0.
    """

    id: str
    iteration: int
    prompt_ids: np.ndarray
    target_ids: np.ndarray
    generated_ids: np.ndarray
    truncated: bool
    proto_ids: np.ndarray | None = None
    sample: int = 0

    @property
    def responses(self) -> tuple[np.ndarray, ...]:
        """The responses in batch order: target, generated and, where there is one, y_0."""
        both = (self.target_ids, self.generated_ids)
        return both if self.proto_ids is None else (*both, self.proto_ids)

    @property
    def equal(self) -> bool:
        """Whether the generated response is the target."""
        return self.target_ids.tobytes() == self.generated_ids.tobytes()


@dataclass(frozen=True)
class Limits:
    """How rows are cut and when they are dropped: `cutoff_len`, `tpaw_min_response`, `tpaw_max_bad_rows`."""

    cutoff_len: int
    min_response: int
    max_bad_rows: int


def is_exact(meta: TripletMeta, encoder: TurnEncoder) -> bool:
    """Whether a file was generated with this tokenizer and template, so that its sampled ids can be trained on."""
    return (encoder.tokenizer_digest, encoder.template_digest) == (meta.tokenizer, meta.template)


def encoding_problems(metas: Sequence[tuple[Path, TripletMeta]], encoder: TurnEncoder, template: str) -> list[str]:
    r"""Check that triplets of this run were generated from the tokens that it trains on.

    Args:
        metas: Triplet files with their meta.
        encoder: Tokenizer and template of the run.
        template: The template's name, for the message.
    """
    problems = []
    for path, meta in metas:
        if is_exact(meta, encoder):
            continue
        what = "tokenizer" if meta.tokenizer != encoder.tokenizer_digest else "template"
        advice = "Restore it (a template may add tokens, too)" if what == "tokenizer" else "Restore the setting"
        how = (
            ""
            if what == "tokenizer"
            else f" (`template: {template}`, with `default_system`, `enable_thinking` and the like)"
        )
        problems.append(
            f"{path} was generated with another {what} than this run's{how}, so other tokens would be trained on than "
            f"were sampled. {advice}, or delete the file and its meta file to sample anew."
        )
    return problems


def load_triplets(
    entry: Entry,
    meta: TripletMeta,
    encoder: TurnEncoder,
    limits: Limits,
    store: TokenStore | None = None,
    first: int | None = None,
) -> list[Triplet]:
    r"""Read a triplet file as token ids.

    The sampled ids are used where tokenizer and template are those of the file's meta; otherwise texts are encoded.

    Args:
        entry: The file's entry.
        meta: Its meta.
        encoder: Tokenizer and template of the run.
        limits: How rows are cut and when they are dropped.
        store: Where the ids are kept; in memory without it.
        first: How many rows are read, for a look at a file that is not checked against its meta; all by default.

    Raises:
        DataError: If a row's prompt does not encode to the tokens it was generated from, or rows are bad.
    """
    exact = is_exact(meta, encoder)
    triplets, bad_rows, prompts = [], [], _PromptIds(meta, exact=exact)
    rows: Iterable[TripletRow] = islice(read_triplets(entry.path, meta if first is None else None), first)
    if first is None:
        rows = track(rows, f"reading {entry.path.name}", total=meta.rows)
    for number, row in enumerate(rows, start=1):
        try:
            prompt_ids, target_ids = encoder.encode(row.messages, row.target, row.system, row.tools)
        except UNENCODABLE as error:
            bad_rows.append(BadRow(number, f"the template cannot encode it: {error!r}"))
            continue
        identity = prompts.name(row, prompt_ids, target_ids)
        if exact and identity != row.id:
            raise DataError(
                f"{entry.path}, row {number}: its prompt and target encode to id {identity}, but the row says "
                f"{row.id}: it is doubled, foreign, or was altered. {ANEW}"
            )
        generated_ids = _generated_ids(row, encoder, exact)
        truncated = row.finish_reason == "length"
        triplet = Triplet(identity, row.iteration, prompt_ids, target_ids, generated_ids, truncated, sample=row.sample)
        _keep(_cut(triplet, limits), number, limits, triplets, bad_rows, store)
    check_bad_rows(f"`dataset: {entry.name}` ({entry.path})", bad_rows, limits.max_bad_rows)
    return triplets


def load_foreign(
    entry: Entry,
    encoder: TurnEncoder,
    limits: Limits,
    model_args: Any,
    data_args: Any,
    training_args: Any,
    store: TokenStore | None = None,
) -> list[Triplet]:
    r"""Read any other ranking dataset: the better response is the target, the worse one counts as generated.

    Raises:
        DataError: If the entry is not a ranking set, or rows are bad.
    """
    if not entry.ranking:
        raise DataError(
            f"`dataset: {entry.name}` is not a ranking set (`ranking: true`), so it has no generated responses. SFT "
            "sets go into `tpaw_prompts`; `dataset` takes triplets."
        )
    if entry.path is not None and _holds_triplets(entry.path):
        raise DataError(
            f"`dataset: {entry.name}` ({entry.path}) holds triplets, but not as the JSON lines they were generated "
            "as, so the ends of their responses would be lost. Use the generated file and its meta file."
        )
    all_rows = copy.copy(data_args)
    all_rows.max_samples = None
    triplets, bad_rows, seen = [], [], {}
    rows = load_rows(entry, model_args, all_rows, training_args)
    for number, row in enumerate(track(rows, f"encoding {entry.name}"), start=1):
        if len(row.prompt) % 2 != 1 or len(row.responses) != 2 or row.has_media:
            bad_rows.append(BadRow(number, "it is not one prompt with two responses in text"))
            continue
        try:
            prompt_ids, target_ids = encoder.encode(row.prompt, row.responses[0], row.system, row.tools)
            generated_ids = encoder.encode(row.prompt, row.responses[1], row.system, row.tools)[1]
        except UNENCODABLE as error:
            bad_rows.append(BadRow(number, f"the template cannot encode it: {error!r}"))
            continue
        identity = prompt_id(prompt_ids, target_ids, seen)
        triplet = _cut(Triplet(identity, FOREIGN, prompt_ids, target_ids, generated_ids, False), limits)
        _keep(triplet, number, limits, triplets, bad_rows, store)
    check_bad_rows(f"`dataset: {entry.name}`", bad_rows, limits.max_bad_rows)
    return triplets


class _PromptIds:
    """Names the prompts of a triplet file by their content, as they were named when they were answered."""

    def __init__(self, meta: TripletMeta, *, exact: bool) -> None:
        failed = Counter(key.rpartition("#")[0] for key in meta.failed) if exact else Counter()
        # Prompts without any row: of a content that occurs several times, the others keep their numbers.
        self.absent = {name for name, count in failed.items() if count == meta.samples}
        self.seen: dict[str, int] = {}
        self.row: tuple[str, int] = ("", 0)
        self.named = ""

    def name(self, row: TripletRow, prompt_ids: np.ndarray, target_ids: np.ndarray) -> str:
        """Return the id of a row's prompt; rows that are further samples of the prompt before have its id."""
        (name, sample), self.row = self.row, (row.id, row.sample)
        if name == row.id and sample < row.sample:
            content = prompt_id(prompt_ids, target_ids, {}).partition("-")[0]
            if self.named.partition("-")[0] == content:
                return self.named
        self.named = prompt_id(prompt_ids, target_ids, self.seen)
        while self.named in self.absent:
            self.named = prompt_id(prompt_ids, target_ids, self.seen)
        return self.named


def with_proto(
    triplets: list[Triplet], proto: list[Triplet], entry_name: str, failed: Collection[str] = ()
) -> tuple[list[Triplet], int]:
    r"""Give each triplet y_0: of what θ_0 generated for the same prompt, the response of the same number.

    Where `proto` has no response of that number, y_0 is the prompt's first one.

    Args:
        triplets: Triplets of any number of rounds.
        proto: The triplets of iteration 0.
        entry_name: Their entry, for the message.
        failed: `failed` of their meta file: prompts that may have none.

    Returns:
        The triplets, without those of prompts that have no y_0 because every response failed; and how many those
        prompts are.

    Raises:
        DataError: If any other prompt has no response in `proto`.
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
        if triplet.id in responses:
            own = responses[triplet.id]
            kept.append(replace(triplet, proto_ids=own.get(triplet.sample, own[min(own)])))
    return kept, len(prompts.keys() - responses.keys())


def count_repeated(triplets: Sequence[Triplet]) -> int:
    """How many triplets have the prompt, the target and the response of one before them."""
    contents = {
        (triplet.prompt_ids.tobytes(), triplet.target_ids.tobytes(), triplet.generated_ids.tobytes())
        for triplet in triplets
    }
    return len(triplets) - len(contents)


def first_prompts(triplets: list[Triplet], count: int | None) -> list[Triplet]:
    """Keep all triplets of the first `count` prompts; all of them for None."""
    if count is None:
        return triplets
    kept = set(list(dict.fromkeys(triplet.id for triplet in triplets))[:count])
    return [triplet for triplet in triplets if triplet.id in kept]


def split_by_prompt(triplets: list[Triplet], val_size: float) -> tuple[list[Triplet], list[Triplet]]:
    r"""Hold out prompts with all their triplets.

    Args:
        triplets: Triplets of any number of rounds.
        val_size: Number of prompts, or their share when below 1, as LlamaFactory's `val_size`.

    Returns:
        Training and held-out triplets. The choice follows a hash of the prompts, so it is the same in every iteration.
    """
    contents = {_content(triplet): None for triplet in triplets}
    ordered = sorted(contents, key=lambda content: hashlib.sha256(content.encode()).hexdigest())
    count = int(val_size) if val_size >= 1 else math.ceil(val_size * len(ordered))
    held_out = set(ordered[:count])
    train = [triplet for triplet in triplets if _content(triplet) not in held_out]
    if not train:
        raise DataError(
            f"`val_size` is {val_size:g}, which holds out all {len(ordered)} prompts. Lower it so that some are "
            "trained on."
        )
    return train, [triplet for triplet in triplets if _content(triplet) in held_out]


def _holds_triplets(path: Path) -> bool:
    """Whether a local JSON file in another form than JSON lines has the columns of triplets."""
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as stream:
        head = stream.read(HEAD_CHARACTERS)
    return all(f'"{column}"' in head for column in (*TRIPLET_COLUMNS, "generated_ids"))


def _content(triplet: Triplet) -> str:
    """The id without its occurrence number: duplicates of a row stay on one side."""
    return triplet.id.partition("-")[0]


def _generated_ids(row: TripletRow, encoder: TurnEncoder, exact: bool) -> np.ndarray:
    if exact and row.generated_ids:
        return encoder.finish(row.generated_ids, row.finish_reason)
    return encoder.encode_text(row.generated, row.finish_reason)


def _cut(triplet: Triplet, limits: Limits) -> Triplet:
    prompt_tokens = len(triplet.prompt_ids)
    generated_ids = cut_response(triplet.generated_ids, prompt_tokens, limits.cutoff_len)
    return replace(
        triplet,
        target_ids=cut_response(triplet.target_ids, prompt_tokens, limits.cutoff_len),
        generated_ids=generated_ids,
        truncated=triplet.truncated or len(generated_ids) < len(triplet.generated_ids),
    )


def _keep(
    triplet: Triplet,
    number: int,
    limits: Limits,
    kept: list[Triplet],
    bad_rows: list[BadRow],
    store: TokenStore | None,
) -> None:
    left = limits.cutoff_len - len(triplet.prompt_ids)
    if left < limits.min_response:
        bad_rows.append(
            BadRow(
                number,
                f"its prompt has {len(triplet.prompt_ids)} tokens, which leaves fewer than {limits.min_response} "
                f"(`tpaw_min_response`) under `cutoff_len: {limits.cutoff_len}`",
            )
        )
    elif store is None:
        kept.append(triplet)
    else:
        prompt_ids, target_ids = store.keep_common(triplet.id, triplet.prompt_ids, triplet.target_ids)
        generated_ids = store.keep(triplet.generated_ids)
        kept.append(replace(triplet, prompt_ids=prompt_ids, target_ids=target_ids, generated_ids=generated_ids))
