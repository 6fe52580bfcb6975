# SPDX-License-Identifier: Apache-2.0
"""The prompts of self-play: which rows of the SFT set, their token ids, and the rows that cannot be used."""

from __future__ import annotations

import copy
import functools
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from ..arguments.fields import FIELDS
from ..errors import ConfigError, DataError
from ..lf.logs import get_logger
from .encoding import UNENCODABLE, TokenFile, TurnEncoder, digest_of_ids, prompt_id
from .progress import Progress
from .source import AlignedRow, Entry, find_entry, load_rows, locate, read_rows


if TYPE_CHECKING:
    from collections.abc import Mapping

    from .encoding import Message

Item, Encoded = TypeVar("Item"), TypeVar("Encoded")
# Beside the SFT set's name, the keys on which the prompts of a run depend.
SELECTION = ("tpaw_max_prompts", "tpaw_prompts_seed", "tpaw_turn", "tpaw_min_response", "max_samples")


@dataclass(frozen=True)
class Limits:
    """How rows are cut and when they are dropped: `cutoff_len`, `tpaw_min_response`, `tpaw_max_bad_rows`."""

    cutoff_len: int
    min_response: int
    max_bad_rows: int
    vocabulary: int = 2**31  # ids that the model knows

    def check_room(self, prompt_ids: np.ndarray) -> None:
        """Refuse a row whose prompt leaves too little for a response."""
        if self.cutoff_len - len(prompt_ids) < self.min_response:
            raise UnusableRowError(
                f"its prompt has {len(prompt_ids)} tokens, which leaves fewer than {self.min_response} "
                f"(`tpaw_min_response`) under `cutoff_len: {self.cutoff_len}`"
            )


class BadRow(NamedTuple):
    """A row that no triplet can be made of: its number in the dataset from 1, and why."""

    row: int
    reason: str


class UnusableRowError(Exception):
    """Why a row cannot be used."""


def encode_rows(
    rows: Iterable[tuple[int, Item]], encode: Callable[[Item], Encoded], bad_rows: list[BadRow]
) -> Iterator[tuple[int, Encoded]]:
    """Encode numbered rows; those that cannot be used are added to `bad_rows`."""
    for number, row in rows:
        try:
            encoded = encode(row)
        except UnusableRowError as error:
            bad_rows.append(BadRow(number, str(error)))
        except UNENCODABLE as error:
            bad_rows.append(BadRow(number, f"the template cannot encode it: {error!r}"))
        else:
            yield number, encoded


def check_bad_rows(what: str, entry: Entry, bad_rows: Sequence[BadRow], allowed: int) -> None:
    """Refuse more bad rows than allowed; say how many are dropped otherwise. The first is shown."""
    if not bad_rows:
        return
    found = f"{len(bad_rows)} bad row{'' if len(bad_rows) == 1 else 's'}"
    first = f"First: {locate(entry, bad_rows[0].row)}, because {bad_rows[0].reason}."
    if len(bad_rows) > allowed:
        raise DataError(
            f"{what} has {found}, but `tpaw_max_bad_rows` allows {allowed}. {first} Correct the rows, or raise "
            "`tpaw_max_bad_rows` to drop them."
        )
    get_logger(__name__).warning_rank0(f"{what}: dropped {found}. {first}")


@dataclass(frozen=True)
class Prompt:
    """One SFT row as a prompt and its target."""

    id: str  # see `encoding.prompt_id`
    messages: list[Message]  # the conversation up to the user's last turn
    system: str  # empty for the template's default
    tools: str  # empty for none
    target: Message
    prompt_ids: np.ndarray  # never cut
    target_ids: np.ndarray  # end of turn included, uncut


class Prompts:
    """Prompts that do not lie in memory: their texts are read from the dataset and their token ids from a file."""

    def __init__(
        self, rows: Any, turn: str, encoded: Iterable[tuple[int, tuple[np.ndarray, np.ndarray]]], folder: Path | None
    ) -> None:
        self._rows, self._turn, self._tokens = rows, turn, TokenFile(folder)
        self._places = array("L")  # in the dataset, from 0
        self.ids: list[str] = []
        seen: dict[int, int] = {}
        for number, both in encoded:
            self._places.append(number - 1)
            self.ids.append(prompt_id(*both, seen))
            self._tokens.append(*both)
        # Number of token ids of each prompt and of each target.
        self.prompt_tokens, self.target_tokens = np.diff(self._tokens.ends).astype(np.int32).reshape(-1, 2).T

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Prompt]:
        return map(self._join, range(len(self)), read_rows(self._rows, self._places))

    def take(self, indices: Iterable[int]) -> list[Prompt]:
        """Some prompts at once, in any order: faster than one by one."""
        indices = [int(index) for index in indices]
        return list(map(self._join, indices, read_rows(self._rows, [self._places[index] for index in indices])))

    def prompt_ids(self, index: int) -> np.ndarray:
        """A prompt's token ids, never cut, read-only int32."""
        return self._tokens[2 * int(index)]

    def _join(self, index: int, row: AlignedRow) -> Prompt:
        messages, target = _split(row, self._turn)
        texts = (self.ids[index], messages, row.system, row.tools, target)
        return Prompt(*texts, self._tokens[2 * index], self._tokens[2 * index + 1])


@dataclass(frozen=True)
class PromptSet:
    """The prompts that all iterations of a run answer."""

    entry: Entry
    prompts: Prompts  # the usable ones, in the order of the dataset's rows
    bad_rows: list[BadRow]  # the dropped ones
    digest: str  # SHA-256 over the ids in order


def load_prompts(
    encoder: TurnEncoder, model_args: Any, data_args: Any, training_args: Any, tpaw_args: Any, first: int | None = None
) -> PromptSet:
    r"""Read `tpaw_prompts` and encode what `tpaw_max_prompts` and `tpaw_prompts_seed` choose of it.

    For a look at the `first` rows so many are encoded, whatever would be chosen, and no bad row is refused.
    """
    entry = find_entry(tpaw_args.tpaw_prompts, data_args.dataset_dir, "tpaw_prompts")
    name, problems = f"`tpaw_prompts: {entry.name}`", []
    if entry.ranking:
        problems.append(
            f"{name} is a ranking set, but prompts come from an SFT set. Name an entry without `ranking: true`."
        )
    if entry.attributes.get("num_samples") is not None:
        problems.append(
            f"{name} has `num_samples`, which would choose other rows with every `seed`. Remove it and set "
            "`tpaw_max_prompts`."
        )
    if problems:
        raise ConfigError(problems)
    if first is not None:
        data_args = copy.copy(data_args)
        data_args.max_samples = min(first, data_args.max_samples or first)
    rows = load_rows(entry, model_args, data_args, training_args)
    places: Sequence[int] = range(len(rows))
    most, folder = tpaw_args.tpaw_max_prompts, Path(tpaw_args.tpaw_cache_dir) / "tokens"
    if first is None and most is not None and most < len(rows):
        places = array("L", sorted(random.Random(tpaw_args.tpaw_prompts_seed).sample(places, most)))
    limits = Limits(data_args.cutoff_len, tpaw_args.tpaw_min_response, tpaw_args.tpaw_max_bad_rows)
    turn, bad_rows = tpaw_args.tpaw_turn, []
    read = Progress(f"encoding the prompts of {entry.name}", len(places), items=read_rows(rows, places))
    numbered = zip((place + 1 for place in places), read, strict=True)
    encoded = encode_rows(numbered, functools.partial(_encode_row, encoder, limits, turn), bad_rows)
    prompts = Prompts(rows, turn, encoded, folder if first is None else None)
    if first is None:
        name += f" ({entry.path or 'on the hub'})"
        check_bad_rows(name, entry, bad_rows, limits.max_bad_rows)
        if not prompts:
            reason = f" First: {locate(entry, bad_rows[0].row)}, because {bad_rows[0].reason}." if bad_rows else ""
            raise DataError(f"{name} has no usable row.{reason}")
    return PromptSet(entry, prompts, bad_rows, digest_of_ids(prompts.ids))


def selection(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that settle which prompts there are, for a triplet file's meta; one that is absent has its default."""
    return {name: given.get(name, FIELDS[name].default if name in FIELDS else None) for name in SELECTION}


def _encode_row(encoder: TurnEncoder, limits: Limits, turn: str, row: AlignedRow) -> tuple[np.ndarray, np.ndarray]:
    if row.has_media:
        raise UnusableRowError("it has images, videos or audio, which stage `tpaw` does not support")
    if len(row.prompt) % 2 != 1 or len(row.responses) != 1:
        raise UnusableRowError("it has no response, or its turns do not alternate")
    prompt, target = _split(row, turn)
    if not target["content"]:
        raise UnusableRowError("its response is empty")
    prompt_ids, target_ids = encoder.encode(prompt, target, row.system, row.tools)
    limits.check_room(prompt_ids)
    return prompt_ids, target_ids


def _split(row: AlignedRow, turn: str) -> tuple[list[Message], Message]:
    """The messages of a usable row that are its prompt, and the one that is its target."""
    if turn == "first" and len(row.prompt) > 1:
        return row.prompt[:1], row.prompt[1]
    return row.prompt, row.responses[0]
