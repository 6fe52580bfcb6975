# SPDX-License-Identifier: Apache-2.0
"""How sequences are put into scoring batches, and reading the next player's weights meanwhile."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llamafactory_tpaw.data.layout import LayoutCosts, is_shared, lay_out
from llamafactory_tpaw.team import scorer
from llamafactory_tpaw.team.cache import sequence_key
from llamafactory_tpaw.team.scorer import plan_score_batches, read_ahead


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
    batches = plan_score_batches(todo, batch_tokens, LayoutCosts(token=10.0, pair=1.0, sharing=sharing))
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


def test_batches_begin_with_the_longest_rows() -> None:
    rows = [row for batch in plan_score_batches(make_todo(), 100, LayoutCosts()) for row, _ in batch]
    assert [row.length for row in rows] == sorted((row.length for row in rows), reverse=True)


def test_the_next_players_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model-00001.safetensors", "model-00002.safetensors", "optimizer.pt"):
        (tmp_path / name).write_bytes(bytes(10_000))
    opened = []
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *rest, **named: opened.append(path.name) or real(path, *rest, **named)
    )
    monkeypatch.setattr(scorer, "READ_AHEAD_BYTES", 4096)
    with read_ahead(SimpleNamespace(folder=tmp_path)) as reader:
        reader.join()
    assert opened == ["model-00001.safetensors", "model-00002.safetensors"]
    with read_ahead(None) as reader:
        assert reader is None
    with read_ahead(SimpleNamespace(folder=tmp_path / "gone")):
        pass
