# SPDX-License-Identifier: Apache-2.0
"""Loads so and so many prompts of a made-up dataset and prints the most anonymous memory that was used, in MiB.

Usage: many_prompts.py FOLDER COUNT…
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from llamafactory_tpaw.data import bad_rows, prompts
from llamafactory_tpaw.data.source import AlignedRows


CHARACTERS = 1000
TOKENS = 100


class Dataset:
    """Rows that exist only while they are looked at, as those of a memory-mapped file; measures at each look."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.peak = 0.0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, which: Any) -> dict[str, Any]:
        self.peak = max(self.peak, anonymous_mib())
        if isinstance(which, int):
            return {key: column[0] for key, column in self[[which]].items()}
        numbers = range(self.count)[which] if isinstance(which, slice) else which
        text = {number: f"{number % 1000}".ljust(CHARACTERS) for number in numbers}
        columns = {
            "_prompt": [[{"role": "user", "content": text[number]}] for number in numbers],
            "_response": [[{"role": "assistant", "content": text[number]}] for number in numbers],
        }
        others = ("_system", "_tools", "_images", "_videos", "_audios")
        return columns | {key: [None] * len(numbers) for key in others}


class Encoder:
    """Every tenth row cannot be encoded."""

    def encode(self, prompt: Any, target: Any, system: str, tools: str) -> tuple[np.ndarray, np.ndarray]:
        number = int(target["content"])
        if number % 10 == 9:
            raise ValueError(number)
        return np.full(TOKENS, number, dtype=np.int32), np.full(TOKENS, number, dtype=np.int32)


def anonymous_mib() -> float:
    """Memory of this process that no file holds."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def load(folder: Path, count: int) -> float:
    """Load prompts, look at all of them, and return the most memory that was used."""
    dataset = Dataset(count)
    keys = {
        "tpaw_prompts": "stub",
        "tpaw_max_prompts": None,
        "tpaw_prompts_seed": 0,
        "tpaw_turn": "last",
        "tpaw_min_response": 1,
        "tpaw_max_bad_rows": count,
        "tpaw_cache_dir": str(folder),
    }
    data = SimpleNamespace(dataset_dir=str(folder), cutoff_len=1000)
    with (
        mock.patch.object(prompts, "load_rows", return_value=AlignedRows(dataset)),
        mock.patch.object(bad_rows, "get_logger"),  # LlamaFactory's, whose import takes long
    ):
        found = prompts.load_prompts(Encoder(), None, data, None, SimpleNamespace(**keys))
    for place, prompt in enumerate(found.prompts):
        if prompt.id != found.prompts.id(place) or prompt.prompt_ids[0] != int(prompt.target["content"]):
            raise ValueError(f"prompt {place} is another one")
    if (len(found.prompts), len(found.bad_rows)) != (count * 9 // 10, count // 10):
        raise ValueError(f"{len(found.prompts)} prompts")
    return max(dataset.peak, anonymous_mib())


if __name__ == "__main__":
    root = Path(sys.argv[1])
    (root / "dataset_info.json").write_text(json.dumps({"stub": {"hf_hub_url": "stub"}}))
    load(root, 1000)
    sys.stdout.write(" ".join(f"{load(root, int(count)):.2f}" for count in sys.argv[2:]))
