# SPDX-License-Identifier: Apache-2.0
"""The prompts of self-play: which rows of the SFT set, their token ids, and the rows that cannot be used."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..arguments.fields import FIELDS
from ..errors import ConfigError, DataError
from ..plugin.logs import get_logger
from .encoding import UNENCODABLE, TurnEncoder, digest_of_ids, prompt_id
from .progress import track
from .source import AlignedRow, Entry, find_entry, load_rows


if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np

    from .encoding import Message


# Beside the SFT set's name, the keys on which the prompts of a run depend.
SELECTION = (
    "tpaw_max_prompts",
    "tpaw_prompts_seed",
    "tpaw_turn",
    "tpaw_min_response",
    "max_samples",
)


@dataclass(frozen=True)
class Prompt:
    """One SFT row as a prompt and its target.

    Attributes:
        id: Content hash and occurrence number, see `encoding.prompt_id`.
        messages: The conversation up to the user's last turn.
        system: System text of the row, empty for the template's default.
        tools: Tool descriptions of the row, empty for none.
        target: The SFT response, a message.
        prompt_ids: Prompt token ids, never cut.
        target_ids: Target token ids, end of turn included, uncut.
    """

    id: str
    messages: list[Message]
    system: str
    tools: str
    target: Message
    prompt_ids: np.ndarray
    target_ids: np.ndarray


@dataclass(frozen=True)
class BadRow:
    """A row that no triplet can be made of: its number in the dataset from 1, and why."""

    row: int
    reason: str


@dataclass(frozen=True)
class PromptSet:
    """The prompts that all iterations of a run answer.

    Attributes:
        entry: Where they come from.
        prompts: The usable ones, in the order of the dataset's rows.
        bad_rows: The dropped ones.
        digest: SHA-256 over the ids in order.
    """

    entry: Entry
    prompts: list[Prompt]
    bad_rows: list[BadRow]
    digest: str


def load_prompts(
    encoder: TurnEncoder, model_args: Any, data_args: Any, training_args: Any, tpaw_args: Any
) -> PromptSet:
    r"""Read `tpaw_prompts` and encode what `tpaw_max_prompts` and `tpaw_prompts_seed` choose of it.

    Args:
        encoder: Tokenizer and template of the run.
        model_args: LlamaFactory's model arguments.
        data_args: LlamaFactory's data arguments (`dataset_dir`, `cutoff_len`, `max_samples`).
        training_args: The training arguments.
        tpaw_args: The `tpaw_*` keys.

    Raises:
        ConfigError: If the entry is a ranking set or asks for `num_samples`.
        DataError: If the set is empty or unreadable, or more than `tpaw_max_bad_rows` rows are bad.
    """
    entry = find_entry(tpaw_args.tpaw_prompts, data_args.dataset_dir, "tpaw_prompts")
    _check_entry(entry)
    rows = load_rows(entry, model_args, data_args, training_args)
    if not rows:
        raise DataError(f"`tpaw_prompts: {entry.name}` has no rows. Give an SFT set with at least one row.")
    indices = choose_rows(len(rows), tpaw_args.tpaw_max_prompts, tpaw_args.tpaw_prompts_seed)
    progress = track(indices, f"encoding the prompts of {entry.name}")
    prompts, bad_rows = _encode_rows(rows, progress, encoder, data_args, tpaw_args)
    check_bad_rows(
        f"`tpaw_prompts: {entry.name}` ({entry.path or 'on the hub'})", bad_rows, tpaw_args.tpaw_max_bad_rows
    )
    if not prompts:
        raise DataError(f"`tpaw_prompts: {entry.name}` has no usable row. {_first(bad_rows)} Correct the rows.")
    return PromptSet(entry, prompts, bad_rows, digest_of_ids(prompt.id for prompt in prompts))


def load_first_prompts(
    encoder: TurnEncoder, model_args: Any, data_args: Any, training_args: Any, tpaw_args: Any, count: int
) -> tuple[PromptSet, int]:
    r"""Encode the first rows of `tpaw_prompts` alone, for a look at them before the whole set is read.

    Args:
        encoder: Tokenizer and template of the run.
        model_args: LlamaFactory's model arguments.
        data_args: LlamaFactory's data arguments.
        training_args: The training arguments, or what stands in for them.
        tpaw_args: The `tpaw_*` keys.
        count: How many rows are read; all of them are encoded, whatever `tpaw_max_prompts` would choose.

    Returns:
        Their prompts and bad rows, refused by nobody, and how many rows were read.

    Raises:
        ConfigError: If the entry is a ranking set or asks for `num_samples`.
        DataError: If the set is unreadable.
    """
    entry = find_entry(tpaw_args.tpaw_prompts, data_args.dataset_dir)
    _check_entry(entry)
    head = copy.copy(data_args)
    head.max_samples = min(count, data_args.max_samples or count)
    rows = load_rows(entry, model_args, head, training_args)
    prompts, bad_rows = _encode_rows(rows, range(len(rows)), encoder, data_args, tpaw_args)
    return PromptSet(entry, prompts, bad_rows, digest_of_ids(prompt.id for prompt in prompts)), len(rows)


def selection(given: Mapping[str, Any]) -> dict[str, Any]:
    r"""The keys that settle which prompts there are, for a triplet file's meta.

    Args:
        given: Keys of a run with their values; one that is absent counts as its default.
    """
    defaults = {name: FIELDS[name].default for name in SELECTION if name in FIELDS}
    return {name: given.get(name, defaults.get(name)) for name in SELECTION}


def choose_rows(rows: int, max_prompts: int | None, seed: int) -> list[int]:
    """Indices of the rows that are prompts, ascending; the same for every iteration whatever `seed` of the run is."""
    if max_prompts is None or max_prompts >= rows:
        return list(range(rows))
    return sorted(random.Random(seed).sample(range(rows), max_prompts))


def check_bad_rows(what: str, bad_rows: list[BadRow], allowed: int) -> None:
    """Refuse more bad rows than allowed; say how many are dropped otherwise. The first is shown."""
    found = f"{len(bad_rows)} bad row{'' if len(bad_rows) == 1 else 's'}"
    if 0 < len(bad_rows) <= allowed:
        get_logger(__name__).warning_rank0(f"{what}: dropped {found}. {_first(bad_rows)}")
    if len(bad_rows) > allowed:
        raise DataError(
            f"{what} has {found}, but `tpaw_max_bad_rows` allows {allowed}. {_first(bad_rows)} Correct the rows, or "
            "raise `tpaw_max_bad_rows` to drop them."
        )


class _UnusableError(Exception):
    """Why a row cannot be used."""


def _encode_rows(
    rows: Sequence[AlignedRow], indices: Iterable[int], encoder: TurnEncoder, data_args: Any, tpaw_args: Any
) -> tuple[list[Prompt], list[BadRow]]:
    prompts, bad_rows, seen = [], [], {}
    for index in indices:
        try:
            prompts.append(_encode_row(rows[index], encoder, tpaw_args.tpaw_turn, _room(data_args, tpaw_args), seen))
        except _UnusableError as error:
            bad_rows.append(BadRow(index + 1, str(error)))
    return prompts, bad_rows


def _encode_row(
    row: AlignedRow, encoder: TurnEncoder, turn: str, room: tuple[int, int], seen: dict[str, int]
) -> Prompt:
    if row.has_media:
        raise _UnusableError("it has images, videos or audio, which stage `tpaw` does not support")
    if len(row.prompt) % 2 != 1 or len(row.responses) != 1:
        raise _UnusableError("it has no response, or its turns do not alternate")
    prompt, target = row.prompt, row.responses[0]
    if turn == "first" and len(prompt) > 1:
        prompt, target = prompt[:1], prompt[1]
    if not target["content"]:
        raise _UnusableError("its response is empty")
    try:
        prompt_ids, target_ids = encoder.encode(prompt, target, row.system, row.tools)
    except UNENCODABLE as error:
        raise _UnusableError(f"the template cannot encode it: {error!r}") from error
    cutoff_len, min_response = room
    if cutoff_len - len(prompt_ids) < min_response:
        raise _UnusableError(
            f"its prompt has {len(prompt_ids)} tokens, which leaves fewer than {min_response} "
            f"(`tpaw_min_response`) under `cutoff_len: {cutoff_len}`"
        )
    return Prompt(
        prompt_id(prompt_ids, target_ids, seen), prompt, row.system, row.tools, target, prompt_ids, target_ids
    )


def _room(data_args: Any, tpaw_args: Any) -> tuple[int, int]:
    return data_args.cutoff_len, tpaw_args.tpaw_min_response


def _check_entry(entry: Entry) -> None:
    problems = []
    if entry.ranking:
        problems.append(
            f"`tpaw_prompts: {entry.name}` is a ranking set, but prompts come from an SFT set. Name an entry without "
            "`ranking: true`."
        )
    if entry.attributes.get("num_samples") is not None:
        problems.append(
            f"`tpaw_prompts: {entry.name}` has `num_samples`, which would choose other rows with every `seed`. Remove "
            "it and set `tpaw_max_prompts`."
        )
    if problems:
        raise ConfigError(problems)


def _first(bad_rows: Iterable[BadRow]) -> str:
    first = next(iter(bad_rows), None)
    return f"First: row {first.row}, because {first.reason}." if first else ""
