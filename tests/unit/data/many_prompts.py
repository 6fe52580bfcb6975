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

from llamafactory_tpaw.data import prompts
from llamafactory_tpaw.data.source import ROW_KEYS


CHARACTERS = 1000
TOKENS = 100
SETTINGS = {"tpaw_prompts": "made", "tpaw_max_prompts": None, "tpaw_turn": "last", "tpaw_min_response": 1}


class Dataset:
    """Rows that exist only while they are looked at, as those of a memory-mapped file; measures at each look."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.peak = 0.0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, places: Any) -> dict[str, list[Any]]:
        self.peak = max(self.peak, anonymous_mib())
        texts = [f"{place % 1000}".ljust(CHARACTERS) for place in places]
        columns = {
            "_prompt": [[{"role": "user", "content": text}] for text in texts],
            "_response": [[{"role": "assistant", "content": text}] for text in texts],
        }
        return {key: columns.get(key, [None] * len(texts)) for key in ROW_KEYS}


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
    keys = SimpleNamespace(**SETTINGS, tpaw_max_bad_rows=count, tpaw_cache_dir=str(folder))
    data = SimpleNamespace(dataset_dir=str(folder), cutoff_len=1000)
    with (
        mock.patch.object(prompts, "load_rows", return_value=dataset),
        mock.patch.object(prompts, "get_logger"),  # LlamaFactory's, whose import takes long
    ):
        found = prompts.load_prompts(Encoder(), None, data, None, keys)
    for place, prompt in enumerate(found.prompts):
        if prompt.id != found.prompts.id(place) or prompt.prompt_ids[0] != int(prompt.target["content"]):
            raise ValueError(f"prompt {place} is another one")
    if (len(found.prompts), len(found.bad_rows)) != (count * 9 // 10, count // 10):
        raise ValueError(f"{len(found.prompts)} prompts")
    return max(dataset.peak, anonymous_mib())


if __name__ == "__main__":
    root = Path(sys.argv[1])
    (root / "dataset_info.json").write_text(json.dumps({"made": {"hf_hub_url": "made"}}))
    load(root, 1000)
    sys.stdout.write(" ".join(f"{load(root, int(count)):.2f}" for count in sys.argv[2:]))
