# SPDX-License-Identifier: Apache-2.0
"""Token ids on disk: the same ids, read-only, over any number of files, and no file left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llamafactory_tpaw.data import token_store
from llamafactory_tpaw.data.token_store import TokenStore


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenStore:
    monkeypatch.setattr(token_store, "FILE_BYTES", 4096)
    return TokenStore(tmp_path / "new" / "tokens")


def test_ids_come_back_from_any_file(store: TokenStore) -> None:
    rng = np.random.default_rng(0)
    given = [rng.integers(0, 150_000, size=size, dtype=np.int32) for size in (0, 1, 1000, 30, 5000, 1024, 7)]
    kept = [store.keep(ids) for ids in given]
    for before, after in zip(given, kept, strict=True):
        assert after.dtype == np.int32
        np.testing.assert_array_equal(before, after)
        with pytest.raises(ValueError):
            after[:] = 0
    assert list(store.folder.iterdir()) == []


def test_what_comes_again_is_kept_once(store: TokenStore) -> None:
    prompt, target = np.arange(5, dtype=np.int32), np.arange(9, dtype=np.int32)
    first = store.keep_common("a-0", prompt, target)
    again = store.keep_common("a-0", prompt.copy(), target.copy())
    assert all(one is other for one, other in zip(first, again, strict=True))
    other = store.keep_common("a-0", prompt, target[:4])
    assert other[1].tolist() == [0, 1, 2, 3]
    assert first[1].tolist() == list(range(9))
