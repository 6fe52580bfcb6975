# SPDX-License-Identifier: Apache-2.0
"""The prompts of self-play: which rows of the SFT set, their token ids, and the rows that cannot be used."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..arguments.fields import FIELDS
from ..errors import ConfigError, DataError
from .bad_rows import BadRow, BadRows, check_bad_rows, describe_first
from .choice import choose_rows
from .encoding import UNENCODABLE, TurnEncoder, digest_of_ids
from .progress import track
from .prompt_store import PromptStore
from .source import AlignedRow, AlignedRows, Entry, find_entry, load_rows


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

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
# Where under `tpaw_cache_dir` the files of token ids are made; they have no names and go with the process.
FOLDER = "tokens"


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


class Prompts(Sequence[Prompt]):
    r"""Prompts that do not lie in memory: token ids in memory-mapped files, texts in the dataset's own file.

    An item reads its text from the dataset; ids, token ids and their numbers do not.

    Args:
        rows: Rows of the dataset.
        turn: `tpaw_turn`.
        store: Ids and token ids of the prompts.
    """

    def __init__(self, rows: AlignedRows, turn: str, store: PromptStore) -> None:
        self._rows = rows
        self._turn = turn
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        place = range(len(self))[index]
        return self._join(place, self._rows[int(self._store.rows[place])])

    def __iter__(self) -> Iterator[Prompt]:
        for place, (_, row) in enumerate(self._rows.read(self._store.rows)):
            yield self._join(place, row)

    def take(self, indices: Sequence[int]) -> list[Prompt]:
        """Some prompts at once, in any order: faster than one by one."""
        rows = self._rows.take([int(self._store.rows[index]) for index in indices])
        return [self._join(int(index), row) for index, row in zip(indices, rows, strict=True)]

    def id(self, index: int) -> str:
        """A prompt's id."""
        return self._store.id(index)

    def ids(self) -> Iterator[str]:
        """All ids, in order."""
        return self._store.ids()

    def prompt_ids(self, index: int) -> np.ndarray:
        """A prompt's token ids, never cut, read-only int32."""
        return self._store.prompt_ids(index)

    def target_ids(self, index: int) -> np.ndarray:
        """A target's token ids, end of turn included, uncut, read-only int32."""
        return self._store.target_ids(index)

    @property
    def prompt_tokens(self) -> np.ndarray:
        """Number of prompt token ids of each prompt, read-only int32."""
        return self._store.prompt_tokens

    @property
    def target_tokens(self) -> np.ndarray:
        """Number of target token ids of each prompt, read-only int32."""
        return self._store.target_tokens

    def _join(self, index: int, row: AlignedRow) -> Prompt:
        messages, target = _split(row, self._turn)
        return Prompt(
            id=self.id(index),
            messages=messages,
            system=row.system,
            tools=row.tools,
            target=target,
            prompt_ids=self.prompt_ids(index),
            target_ids=self.target_ids(index),
        )


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
    prompts: Prompts
    bad_rows: BadRows
    digest: str

    @property
    def prompt_tokens(self) -> np.ndarray:
        """Number of prompt token ids of each prompt, read-only int32."""
        return self.prompts.prompt_tokens


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
    read = track(rows.read(indices), f"encoding the prompts of {entry.name}", total=len(indices))
    store = PromptStore(Path(tpaw_args.tpaw_cache_dir) / FOLDER)
    bad_rows = _encode_rows(read, encoder, data_args, tpaw_args, store)
    check_bad_rows(
        f"`tpaw_prompts: {entry.name}` ({entry.path or 'on the hub'})", bad_rows, tpaw_args.tpaw_max_bad_rows
    )
    if not len(store):
        first = describe_first(bad_rows)
        raise DataError(f"`tpaw_prompts: {entry.name}` has no usable row. {first} Correct the rows.")
    return _join(entry, rows, tpaw_args.tpaw_turn, store, bad_rows)


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
    store = PromptStore(None)
    bad_rows = _encode_rows(rows.read(range(len(rows))), encoder, data_args, tpaw_args, store)
    return _join(entry, rows, tpaw_args.tpaw_turn, store, bad_rows), len(rows)


def selection(given: Mapping[str, Any]) -> dict[str, Any]:
    r"""The keys that settle which prompts there are, for a triplet file's meta.

    Args:
        given: Keys of a run with their values; one that is absent counts as its default.
    """
    defaults = {name: FIELDS[name].default for name in SELECTION if name in FIELDS}
    return {name: given.get(name, defaults.get(name)) for name in SELECTION}


class _UnusableError(Exception):
    """Why a row cannot be used."""


def _encode_rows(
    rows: Iterable[tuple[int, AlignedRow]], encoder: TurnEncoder, data_args: Any, tpaw_args: Any, store: PromptStore
) -> BadRows:
    """Keep what can be used of the rows."""
    bad_rows, room = BadRows(), _room(data_args, tpaw_args)
    for index, row in rows:
        try:
            store.add(index, *_encode_row(row, encoder, tpaw_args.tpaw_turn, room))
        except _UnusableError as error:
            bad_rows.append(BadRow(index + 1, str(error)))
    store.number()
    return bad_rows


def _join(entry: Entry, rows: AlignedRows, turn: str, store: PromptStore, bad_rows: BadRows) -> PromptSet:
    return PromptSet(entry, Prompts(rows, turn, store), bad_rows, digest_of_ids(store.ids()))


def _encode_row(
    row: AlignedRow, encoder: TurnEncoder, turn: str, room: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    if row.has_media:
        raise _UnusableError("it has images, videos or audio, which stage `tpaw` does not support")
    if len(row.prompt) % 2 != 1 or len(row.responses) != 1:
        raise _UnusableError("it has no response, or its turns do not alternate")
    prompt, target = _split(row, turn)
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
    return prompt_ids, target_ids


def _split(row: AlignedRow, turn: str) -> tuple[list[Message], Message]:
    """The messages of a usable row that are its prompt, and the one that is its target."""
    if turn == "first" and len(row.prompt) > 1:
        return row.prompt[:1], row.prompt[1]
    return row.prompt, row.responses[0]


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
