# SPDX-License-Identifier: Apache-2.0
"""Rows that no triplet can be made of: how many there are, and the first of them with their reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DataError
from ..lf.logs import get_logger


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# How many are kept with their reasons.
KEPT = 10


@dataclass(frozen=True)
class BadRow:
    """A row that no triplet can be made of: its number in the dataset from 1, and why."""

    row: int
    reason: str


class BadRows:
    """All bad rows of a set: `len` counts every one, items and iteration give the first `KEPT`."""

    def __init__(self) -> None:
        self._first: list[BadRow] = []
        self._count = 0

    def append(self, row: BadRow) -> None:
        """Count one more."""
        self._count += 1
        if len(self._first) < KEPT:
            self._first.append(row)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> BadRow:
        return self._first[index]

    def __iter__(self) -> Iterator[BadRow]:
        return iter(self._first)


def check_bad_rows(what: str, bad_rows: BadRows | Sequence[BadRow], allowed: int) -> None:
    """Refuse more bad rows than allowed; say how many are dropped otherwise. The first is shown."""
    found = f"{len(bad_rows)} bad row{'' if len(bad_rows) == 1 else 's'}"
    if 0 < len(bad_rows) <= allowed:
        get_logger(__name__).warning_rank0(f"{what}: dropped {found}. {describe_first(bad_rows)}")
    if len(bad_rows) > allowed:
        raise DataError(
            f"{what} has {found}, but `tpaw_max_bad_rows` allows {allowed}. {describe_first(bad_rows)} Correct the "
            "rows, or raise `tpaw_max_bad_rows` to drop them."
        )


def describe_first(bad_rows: BadRows | Sequence[BadRow]) -> str:
    """Name the first bad row and why it is one; nothing where there is none."""
    return f"First: row {bad_rows[0].row}, because {bad_rows[0].reason}." if bad_rows else ""
