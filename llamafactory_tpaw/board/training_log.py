# SPDX-License-Identifier: Apache-2.0
"""`trainer_log.jsonl` of a run that may be at work: only what is new is read, whatever was written how often."""

from __future__ import annotations

import json
import math
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


TRAINER_LOG = "trainer_log.jsonl"
LAST_LINES_BYTES = 64 * 1024
HEAD_BYTES = 512
WEIGHT = "weights/player/"
KEPT = ("loss", "rewards/target", "rewards/margin", "rewards/accuracy")
HELD_OUT = ("eval_loss", "eval_rewards/target", "eval_rewards/margin", "eval_rewards/accuracy")


def last_entries(log: Path) -> list[dict[str, Any]]:
    """The last entries of a log, without a line that is only half there."""
    try:
        with log.open("rb") as stream:
            start = max(0, stream.seek(0, os.SEEK_END) - LAST_LINES_BYTES)
            stream.seek(start)
            lines = stream.read().split(b"\n")
    except OSError:
        return []
    return [entry for line in (lines[1:] if start else lines) if (entry := parse_entry(line))]


def parse_entry(line: bytes) -> dict[str, Any] | None:
    """Parse one line; None for what is no whole entry."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("current_steps"), int) else None


@dataclass
class Series:
    """One metric over the optimizer steps of a run, in order."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, value: float) -> None:
        """Add a value; a step that comes again stands for all that was logged from there on."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.steps.append(step)
        self.values.append(value)

    def thinned(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        r"""Return at most so many points, each the mean of neighbours.

        Returns:
            Steps and values, (n,) each; a value that is not finite makes its point a gap.
        """
        steps, values = np.asarray(self.steps, dtype=float), np.asarray(self.values, dtype=float)
        values[~np.isfinite(values)] = math.nan
        if len(steps) <= most:
            return steps, values
        starts = np.linspace(0, len(steps), most, endpoint=False).astype(int)
        counts = np.diff([*starts, len(steps)])
        return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


class TrainingLog:
    r"""What a run's log says so far.

    Args:
        folder: Its output folder.

    Attributes:
        series: By metric: `KEPT`, those of the held-out prompts, and the weight of each player.
        last_step: The newest step logged.
        entries: How many lines were taken.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / TRAINER_LOG
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self.series: dict[str, Series] = {}
        self.last_step = self.entries = 0
        self._head, self._read = b"", 0

    def last_values(self) -> dict[str, float]:
        """Read what is new and return the newest value of each metric; may be called by several threads."""
        with self._lock:
            series = self.read().series
            return {name: found.values[-1] for name, found in series.items() if found.values}

    def read(self) -> TrainingLog:
        """Read what was added since the last call; a log that was replaced is read anew."""
        try:
            with self.path.open("rb") as stream:
                # By its start: a new file may have the number and more than the length of the one before.
                head, size = stream.read(HEAD_BYTES), stream.seek(0, os.SEEK_END)
                if size < self._read or not head.startswith(self._head):
                    self._begin()
                self._head = head
                stream.seek(self._read)
                content = stream.read()
        except OSError:
            self._begin()
            return self
        whole = content.rfind(b"\n") + 1
        self._read += whole
        for line in content[:whole].split(b"\n"):
            entry = parse_entry(line)
            if entry is not None:
                self._take(entry)
        return self

    def _take(self, entry: dict[str, Any]) -> None:
        step = entry["current_steps"]
        if step < self.last_step:  # resumed from a checkpoint before that
            for series in self.series.values():
                while series.steps and series.steps[-1] >= step:
                    series.steps.pop()
                    series.values.pop()
        self.last_step, self.entries = step, self.entries + 1
        for key, value in entry.items():
            if (key in KEPT or key in HELD_OUT or key.startswith(WEIGHT)) and isinstance(value, int | float):
                self.series.setdefault(key, Series()).add(step, float(value))

    @property
    def players(self) -> list[str]:
        """Names of the players, in the order in which they were logged."""
        return [key.removeprefix(WEIGHT) for key in self.series if key.startswith(WEIGHT)]
