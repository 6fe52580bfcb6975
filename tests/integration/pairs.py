# SPDX-License-Identifier: Apache-2.0
"""Ranking pairs of known lengths, to train on without generating."""

from __future__ import annotations

import random
from typing import Any

import torch

from llamafactory_tpaw.data.opponents import Triplet
from tests.runs import Project


WORDS = "Natalia sold clips April half many May altogether earns hour worked minutes so she then you helpful".split()
COLUMNS = {"prompt": "question", "chosen": "chosen", "rejected": "rejected"}


def make_pairs(count: int, seed: int = 0, words: tuple[int, int] = (3, 20)) -> list[dict[str, Any]]:
    """Make pairs of random sentences of `words` words."""
    rng = random.Random(seed)

    def sentence() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(*words)))

    return [{"question": sentence() + "?", "chosen": sentence(), "rejected": sentence()} for _ in range(count)]


def add_pairs(project: Project, name: str, rows: list[dict[str, Any]]) -> None:
    """Add a ranking dataset to a project."""
    project.add_dataset(name, rows, ranking=True, columns=COLUMNS)


def pair_settings(project: Project, name: str, **changes: Any) -> dict[str, Any]:
    """Settings of iteration 0 on given pairs: nothing is generated."""
    settings = project.settings(0, tpaw_prompts=None, temperature=None, top_p=None, top_k=None, max_new_tokens=None)
    return {key: value for key, value in {**settings, "dataset": name, **changes}.items() if value is not None}


@torch.no_grad()
def logps_of(model: torch.nn.Module, triplet: Triplet) -> list[torch.Tensor]:
    """Log-probs of a triplet's responses as they are written down, each sequence by itself."""
    start, sums = len(triplet.prompt_ids) - 1, []
    for response in triplet.responses:
        ids = torch.tensor([[*triplet.prompt_ids, *response]])
        logps = model(ids).logits[0, start:-1].log_softmax(-1)
        sums.append(logps.gather(1, torch.tensor(response).long()[:, None]).sum())
    return sums
