# SPDX-License-Identifier: Apache-2.0
"""Generates so and so many made-up rows and prints the most anonymous memory that was used each time, in bytes.

Usage: many_requests.py FOLDER COUNT…
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llamafactory_tpaw.generation.base import Answers, Response
from llamafactory_tpaw.generation.workflow import run_job
from tests.servers.rounds import STOP, make_job


AT_ONCE = 256


class Engine:
    """Answers in a random order and notes how much memory is used."""

    name, version = "stub", "1"

    def __init__(self) -> None:
        self.peak = 0

    def answer(self, requests: Any, left: np.ndarray, finished: object) -> Iterator[Answers]:
        order = np.random.default_rng(0).permutation(left.astype(np.int32))
        for start in range(0, len(order), AT_ONCE):
            indices = order[start : start + AT_ONCE].tolist()
            yield [(requests[index] and index, Response([97] * 500 + [STOP], "stop")) for index in indices]
            status = Path("/proc/self/status").read_text()
            self.peak = max(self.peak, int(status.partition("RssAnon:")[2].split()[0]) << 10)


def generate(folder: Path, count: int) -> int:
    """Generate a round and return the most memory that was used."""
    engine = Engine()
    meta = run_job(make_job(folder / f"{count}.jsonl", count, samples=1), lambda: engine)
    if meta.rows != count:
        raise ValueError(f"{meta.rows} rows")
    return engine.peak


if __name__ == "__main__":
    root = Path(sys.argv[1])
    generate(root, 500)
    sys.stdout.write(" ".join(str(generate(root, int(count))) for count in sys.argv[2:]))
