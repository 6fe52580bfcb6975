# SPDX-License-Identifier: Apache-2.0
"""How sequences are put into scoring batches."""

from __future__ import annotations

import numpy as np
import pytest

from llamafactory_tpaw.data.layout import Layout, is_shared, lay_out
from llamafactory_tpaw.team.cache import sequence_key
from llamafactory_tpaw.team.scorer import plan_score_batches


def make_todo(prompts: int = 12) -> dict[bytes, tuple[np.ndarray, np.ndarray]]:
    """Each prompt with one to four responses, of lengths that vary."""
    rng = np.random.default_rng(0)
    todo = {}
    for number in range(prompts):
        prompt = np.full(5 + number, number, dtype=np.int32)
        for _ in range(1 + number % 4):
            response = rng.integers(0, 99, size=rng.integers(1, 20), dtype=np.int32)
            todo[sequence_key(prompt, response)] = prompt, response
    return todo


@pytest.mark.parametrize("sharing", ["never", "cheaper", "always"])
@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_every_sequence_is_scored_once_under_its_own_key(sharing: str, batch_tokens: int) -> None:
    todo = make_todo()
    batches = plan_score_batches(todo, batch_tokens, Layout(sharing=sharing))
    seen = []
    for batch in batches:
        for row, keys in batch:
            for key, response in zip(keys, row.responses, strict=True):
                assert sequence_key(row.prompt, response) == key
                seen.append(key)
        laid_out = lay_out([row for row, _ in batch], pad_token_id=0)
        assert len(batch) == 1 or laid_out["input_ids"].numel() <= batch_tokens
        assert len({is_shared([row]) for row, _ in batch}) == 1
    assert sorted(seen) == sorted(todo)
