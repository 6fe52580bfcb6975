# SPDX-License-Identifier: Apache-2.0
"""How far something long has come: a bar on a terminal, a line now and then elsewhere, nothing for what is short.

Where the environment names a file, it says so there, too, for whoever watches from outside.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

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
# A file that always says how far the work is, as JSON: see `Report`.
PROGRESS_FILE = "LLAMAFACTORY_TPAW_PROGRESS"
# Set by `run` for its child: which run file of the list is played, counted from 0.
PLAYING = "LLAMAFACTORY_TPAW_PLAYING"
REPORT_EVERY_S = 0.5

Phase = Literal["preparing", "reading", "generation", "scoring", "training"]


def is_silent() -> bool:
    """Whether another process speaks for this one: the first of several that train, or the one that started it."""
    return os.environ.get("RANK", "0") != "0" or SILENT in os.environ


class Report:
    r"""Says how far something is in the file that `LLAMAFACTORY_TPAW_PROGRESS` names; without it says nothing.

    The file is replaced whole, at most twice a second. It holds one JSON object: `phase`, `what`, `done`, `total`,
    `unit`, `per_second` and `seconds_left` (null while unknown), `ended`, and `playing`, the index of the run file
    that `run` plays (null outside of `run`). That it cannot be written stops nothing.

    Args:
        phase: What kind of work it is.
        what: What is worked on: `D_0`, a player, a file.
        total: How much there is to do.
        unit: What is counted, in the singular; `BYTES` for bytes.
        done: How much was done before.
        playing: Index of the run file, where the environment does not say it.
    """

    def __init__(
        self, phase: Phase, what: str, total: int = 0, unit: str = "", done: int = 0, playing: int | None = None
    ) -> None:
        index = os.environ.get(PLAYING, "") if playing is None else str(playing)
        self._fixed = {"phase": phase, "what": what, "total": total, "unit": unit}
        self._fixed["playing"] = int(index) if index.isdigit() else None
        self._path = None if is_silent() else os.environ.get(PROGRESS_FILE)
        self._before, self._began = done, time.monotonic()
        self._due = self._began
        self.show(done)

    def show(self, done: int, ended: bool = False) -> None:
        """Say how much is done, unless that was said a moment ago; the end is always said."""
        now = time.monotonic()
        if not self._path or (now < self._due and not ended):
            return
        self._due = now + REPORT_EVERY_S
        elapsed, gained = now - self._began, done - self._before
        speed = gained / elapsed if gained > 0 and elapsed > 0 else None
        left = max(self._fixed["total"] - done, 0) / speed if speed else None
        _replace(self._path, self._fixed | {"done": done, "per_second": speed, "seconds_left": left, "ended": ended})


def _replace(path: str, record: dict[str, Any]) -> None:
    """Replace the file whole; it is of use only while this runs, so nothing waits for the disk."""
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(record), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _warn(path, error.strerror or str(error))


@functools.cache
def _warn(path: str, reason: str) -> None:
    """Say so once; the work itself can do without."""
    sys.stderr.write(f"llamafactory-tpaw: warning: how far the work is cannot be written to {path}: {reason}.\n")
    sys.stderr.flush()


class Progress:
    """Counts what is done and shows it on stderr, of several training processes only in the first.

    Args:
        what: What is being done, as its line begins.
        total: How much there is to do.
        unit: What is counted, in the singular; `BYTES` for bytes.
        done: How much was done before.
        phase: What kind of work it is, for the file that `Report` writes.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0, phase: Phase = "reading") -> None:
        self.what, self.total, self.unit, self.n, self.phase = what, total, unit, done, phase
        self._bar: tqdm | None = None
        self._said: float | None = None

    def __enter__(self) -> Progress:
        self._said = time.monotonic()
        self._silent = is_silent()
        self._spoke = False
        self._report = Report(self.phase, self.what, self.total, self.unit, self.n)
        if sys.stderr.isatty() and not self._silent:
            scale = {"unit_scale": True, "unit_divisor": 1024} if self.unit == BYTES else {}
            named = {"desc": self.what, "unit": self.unit, "initial": self.n}
            self._bar = tqdm(total=self.total, delay=BAR_AFTER_S, **named, **scale)
        return self

    def update(self, count: int = 1) -> None:
        """Count what was done since the last call."""
        self.n += count
        self._report.show(self.n)
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
        self._report.show(self.n, ended=True)
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
