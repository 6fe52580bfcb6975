# SPDX-License-Identifier: Apache-2.0
"""Generates so and so many made-up rows and prints the most anonymous memory that was used each time, in bytes.

Usage: many_requests.py FOLDER COUNT…
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from llamafactory_tpaw.data.encoding import digest_of_ids
from llamafactory_tpaw.data.prompts import Prompt
from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.generation.base import Response, SamplingSettings
from llamafactory_tpaw.generation.workflow import Job, run_job


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llamafactory_tpaw.generation.base import Answers

IDS = np.arange(8, dtype=np.int32)
TEXT = "x" * 500
AT_ONCE = 256


class Prompts:
    """Prompts that are made when they are asked for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def id(self, index: int) -> str:
        return f"{index:016x}-0"

    def prompt_ids(self, _: int) -> np.ndarray:
        return IDS

    def take(self, indices: Sequence[int]) -> list[Prompt]:
        message = {"role": "user", "content": TEXT}
        target = {"role": "assistant", "content": TEXT}
        return [Prompt(self.id(index), [message], "", "", target, IDS, IDS) for index in indices]


class Encoder:
    """Knows one text."""

    tokenizer_digest = template_digest = "0"

    def text_of(self, *_: object) -> str:
        return TEXT

    def finish(self, *_: object) -> np.ndarray:
        return IDS


class Engine:
    """Answers in an order of its own and notes how much memory is used."""

    name, version = "stub", "1"

    def __init__(self) -> None:
        self.peak = 0

    def answer(self, requests: Any, left: np.ndarray, finished: Callable[[int], object]) -> Iterator[Answers]:
        order = np.random.default_rng(0).permutation(left.astype(np.int32))
        for start in range(0, len(order), AT_ONCE):
            indices = order[start : start + AT_ONCE].tolist()
            yield [(requests[index] and index, Response(IDS.tolist(), "stop")) for index in indices]
            self.peak = max(self.peak, anonymous_bytes())


def anonymous_bytes() -> int:
    """Memory of this process that no file holds."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) << 10


def generate(folder: Path, count: int) -> int:
    """Generate a round and return the most memory that was used."""
    path = folder / f"{count}.jsonl"
    prompts = SimpleNamespace(
        prompts=Prompts(count),
        prompt_tokens=np.full(count, len(IDS), dtype=np.int32),
        bad_rows=[],
        digest=digest_of_ids(f"{index:016x}-0" for index in range(count)),
        entry=SimpleNamespace(name="stub"),
    )
    round_ = Round(0, SimpleNamespace(name="stub", path=path))
    settings = SamplingSettings(1.0, 1.0, 0, 1.0, 16, 0)
    engine = {"name": "stub", "version": "1", "dtype": "float32"}
    job = Job(round_, prompts, {}, Encoder(), "0", "0", settings, engine, 100)
    made = Engine()
    meta = run_job(job, lambda: made)
    if meta.rows != count or meta.rows_digest != hashlib.sha256(path.read_bytes()).hexdigest():
        raise ValueError(f"{meta.rows} rows")
    return max(made.peak, anonymous_bytes())


if __name__ == "__main__":
    root = Path(sys.argv[1])
    generate(root, 500)
    sys.stdout.write(" ".join(str(generate(root, int(count))) for count in sys.argv[2:]))
