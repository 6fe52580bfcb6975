# SPDX-License-Identifier: Apache-2.0
"""Prompts as numbers in files: the ids of counting with a dict, the token ids that were given, and memory that stays.

The limit on memory is far below what prompts in memory would take, and far above what one measurement varies by.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llamafactory_tpaw.data import prompt_store, token_store
from llamafactory_tpaw.data.encoding import digest_of_ids, prompt_id
from llamafactory_tpaw.data.prompt_store import RECORD, PromptStore
from tests.unit.data import many_prompts


@pytest.fixture(params=["files", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PromptStore:
    monkeypatch.setattr(token_store, "FIRST_BYTES", 96)
    monkeypatch.setattr(token_store, "FILE_BYTES", 4096)
    monkeypatch.setattr(prompt_store, "BLOCK", 7)
    return PromptStore(tmp_path / "new" / "tokens" if request.param == "files" else None)


def test_ids_and_tokens_are_those_of_a_dict_and_a_list(store: PromptStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = [[rng.integers(0, 3, size=rng.integers(1, 4)), rng.integers(0, 2, size=1)] for _ in range(500)]
    seen: dict[str, int] = {}
    expected = [prompt_id(*pair, seen) for pair in given]
    assert max(seen.values()) > 3 * prompt_store.BLOCK
    early = store.prompt_tokens
    for row, pair in enumerate(given):
        store.add(2 * row, *pair)
    store.number()
    assert len(store) == 500
    assert len(early) == 0
    assert list(store.ids()) == [store.id(index) for index in range(500)] == expected
    assert store.rows.tolist() == list(range(0, 1000, 2))
    for index, (prompt_ids, target_ids) in enumerate(given):
        assert store.prompt_ids(index).tolist() == prompt_ids.tolist()
        assert store.target_ids(index).tolist() == target_ids.tolist()
    assert store.prompt_tokens.tolist() == [len(prompt) for prompt, _ in given]
    assert store.target_tokens.tolist() == [len(target) for _, target in given]
    assert store.prompt_tokens.dtype == store.prompt_ids(0).dtype == np.int32
    for array in (store.prompt_tokens, store.target_tokens, store.rows, store.prompt_ids(0), store.target_ids(0)):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_no_prompt_at_all(store: PromptStore) -> None:
    store.number()
    assert list(store.ids()) == []


def test_fixed_ids(store: PromptStore) -> None:
    for prompt, target in [([1, 2], [3]), ([1], [2, 3]), ([1, 2], [3]), ([151643] * 3, [0]), ([280], [1])]:
        store.add(0, np.asarray(prompt, dtype=np.int32), np.asarray(target, dtype=np.int32))
    store.number()
    expected = ["be3cb7e04dcce365-0", "e139c24f6a3856bf-0", "be3cb7e04dcce365-1", "5ae5d0987744e067-0"]
    assert list(store.ids()) == [*expected, "008be97c1ea1e673-0"]
    assert digest_of_ids(expected) == "0710daa717639ed070fa1c31f0762e8c1f35553f1ac0d33819c3305cc51bc13d"


def test_bytes_a_prompt() -> None:
    assert RECORD.itemsize == 32


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_prompts(tmp_path: Path) -> None:
    """Each prompt's text has 1,000 characters: in memory, 38,000 more prompts would take 100 MiB and more."""
    command = [sys.executable, many_prompts.__file__, str(tmp_path), "2000", "40000"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    few, many = map(float, result.stdout.split())
    assert 0 < many < few + 4
