# SPDX-License-Identifier: Apache-2.0
"""Token ids on disk: the same ids, read-only, over any number of files, and no file left behind."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from llamafactory_tpaw.data import token_store
from llamafactory_tpaw.data.token_store import GrowingArray, TokenStore


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


@pytest.mark.parametrize("in_files", [True, False])
def test_an_array_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_files: bool) -> None:
    monkeypatch.setattr(token_store, "FIRST_BYTES", 100)
    folder = tmp_path / "new" / "tokens"
    array = GrowingArray("<i8", folder if in_files else None)
    assert array.array.tolist() == []
    array.append(-1)
    early = array.array
    array.extend(np.arange(10_000))
    array.append(7)
    assert array.array.tolist() == [-1, *range(10_000), 7]
    assert early.tolist() == [-1]
    assert len(array) == 10_002
    assert array.array.base is not None
    assert folder.exists() == in_files
    if in_files:
        early[0] = 5  # what was mapped before is the same file
        assert array.array[0] == 5
        assert list(folder.iterdir()) == []


def test_a_full_disk_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(token_store.os, "posix_fallocate", refuse)
    for keep in (TokenStore(tmp_path).keep, GrowingArray(np.int32, tmp_path).extend):
        with pytest.raises(OSError, match="No space left") as error:
            keep(np.zeros(1, dtype=np.int32))
        assert error.value.filename == str(tmp_path)
