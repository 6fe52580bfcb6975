# SPDX-License-Identifier: Apache-2.0
"""How far something long has come: a bar on a terminal, a line now and then elsewhere, nothing for what is short."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, TypeVar

from tqdm.auto import tqdm


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

Item = TypeVar("Item")
BAR_AFTER_S = 5.0
LINE_EVERY_S = 30.0
BYTES = "B"
# Set for a process whose progress another one shows.
SILENT = "LLAMAFACTORY_TPAW_SILENT"


class Progress:
    """Counts what is done and shows it on stderr, of several training processes only in the first.

    Args:
        what: What is being done, as its line begins.
        total: How much there is to do.
        unit: What is counted, in the singular; `BYTES` for bytes.
        done: How much was done before.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self.what, self.total, self.unit, self.n = what, total, unit, done
        self._bar: tqdm | None = None
        self._said: float | None = None

    def __enter__(self) -> Progress:
        self._said = time.monotonic()
        self._silent = os.environ.get("RANK", "0") != "0" or SILENT in os.environ
        self._spoke = False
        if sys.stderr.isatty() and not self._silent:
            scale = {"unit_scale": True, "unit_divisor": 1024} if self.unit == BYTES else {}
            named = {"desc": self.what, "unit": self.unit, "initial": self.n}
            self._bar = tqdm(total=self.total, delay=BAR_AFTER_S, **named, **scale)
        return self

    def update(self, count: int = 1) -> None:
        """Count what was done since the last call."""
        self.n += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._said >= LINE_EVERY_S:
            self._say()

    def _say(self) -> None:
        self._said, self._spoke = time.monotonic(), True
        if not self._silent:
            sys.stderr.write(f"{self.what}: {self._amount()}\n")
            sys.stderr.flush()

    def _amount(self) -> str:
        share = f"({self.n / max(self.total, 1):.0%})"
        if self.unit == BYTES:
            return f"{self.n / 1024**3:.1f} of {self.total / 1024**3:.1f} GiB {share}"
        return f"{self.n} of {self.total} {self.unit}s {share}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._spoke and kind is None:
            self._say()


def track(items: Iterable[Item], what: str, unit: str = "row", total: int | None = None) -> Iterator[Item]:
    """Yield the items and show how many were taken; `total` is for items that do not know how many they are."""
    with Progress(what, len(items) if total is None else total, unit) as progress:
        for item in items:
            yield item
            progress.update()
