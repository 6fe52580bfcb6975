# SPDX-License-Identifier: Apache-2.0
"""Prompts as numbers in memory-mapped files: 32 bytes and the token ids of each, none of them in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .encoding import content_number, name_prompt
from .token_store import GrowingArray


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What is kept of a prompt beside its token ids.
RECORD = np.dtype(
    [
        ("content", "<u8"),  # the first half of its id
        ("begin", "<i8"),  # where its token ids begin: prompt, then target
        ("row", "<u4"),  # of the dataset, from 0
        ("occurrence", "<u4"),  # the second half of its id
        ("prompt_tokens", "<i4"),
        ("target_tokens", "<i4"),
    ]
)
# Records that are looked at together, in memory.
BLOCK = 1 << 14


class PromptStore:
    r"""Keeps ids and token ids of prompts.

    Args:
        folder: On a file system with room for the data; None keeps them in memory, for a few prompts.
    """

    def __init__(self, folder: Path | None) -> None:
        self._records = GrowingArray(RECORD, folder)
        self._tokens = GrowingArray(np.int32, folder)
        self._folder = folder

    def __len__(self) -> int:
        return len(self._records)

    def add(self, row: int, prompt_ids: np.ndarray, target_ids: np.ndarray) -> None:
        """Keep the next prompt, of row `row` of the dataset; its occurrence is counted by `number` afterwards."""
        content = content_number(prompt_ids, target_ids)
        self._records.append((content, len(self._tokens), row, 0, len(prompt_ids), len(target_ids)))
        self._tokens.extend(prompt_ids)
        self._tokens.extend(target_ids)

    def number(self) -> None:
        r"""Count, for each prompt, how often its content has occurred before it.

        A content is the number of 64 bits that its id shows, so equal numbers are equal contents by definition, as
        in `encoding.prompt_id`. The numbers are sorted in a file of their own; the first place of a number there is
        where its occurrences are counted, block by block.
        """
        contents = self._records.array["content"]
        ordered, counts = GrowingArray(contents.dtype, self._folder), GrowingArray(np.uint32, self._folder)
        for start in range(0, len(self), BLOCK):
            block = contents[start : start + BLOCK]
            ordered.extend(block)
            counts.extend(np.zeros(len(block), dtype=np.uint32))
        ordered.array.sort()
        for start in range(0, len(self), BLOCK):
            places = np.searchsorted(ordered.array, contents[start : start + BLOCK])
            before = counts.array[places] + _occurrences(places)
            self._records.array["occurrence"][start : start + BLOCK] = before
            np.maximum.at(counts.array, places, before + 1)

    @property
    def rows(self) -> np.ndarray:
        """Row of each prompt in the dataset, from 0, uint32."""
        return self._column("row")

    @property
    def prompt_tokens(self) -> np.ndarray:
        """Number of prompt token ids of each prompt, int32."""
        return self._column("prompt_tokens")

    @property
    def target_tokens(self) -> np.ndarray:
        """Number of target token ids of each prompt, int32, end of turn included, uncut."""
        return self._column("target_tokens")

    def id(self, index: int) -> str:
        """A prompt's id."""
        record = self._records.array[index]
        return name_prompt(int(record["content"]), int(record["occurrence"]))

    def ids(self) -> Iterator[str]:
        """All ids, in order."""
        for start in range(0, len(self), BLOCK):
            block = self._records.array[start : start + BLOCK]
            yield from map(name_prompt, block["content"].tolist(), block["occurrence"].tolist())

    def prompt_ids(self, index: int) -> np.ndarray:
        """Prompt token ids, read-only int32."""
        record = self._records.array[index]
        return self._slice(int(record["begin"]), int(record["prompt_tokens"]))

    def target_ids(self, index: int) -> np.ndarray:
        """Target token ids, end of turn included, uncut, read-only int32."""
        record = self._records.array[index]
        return self._slice(int(record["begin"]) + int(record["prompt_tokens"]), int(record["target_tokens"]))

    def _slice(self, begin: int, count: int) -> np.ndarray:
        return _frozen(self._tokens.array[begin : begin + count])

    def _column(self, name: str) -> np.ndarray:
        return _frozen(self._records.array[name])


def _occurrences(values: np.ndarray) -> np.ndarray:
    """How often each value stands before its own place, uint32."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    places = np.arange(len(values))
    begins = np.where(np.r_[True, ordered[1:] != ordered[:-1]], places, 0)
    before = np.empty(len(values), dtype=np.uint32)
    before[order] = places - np.maximum.accumulate(begins)
    return before


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
