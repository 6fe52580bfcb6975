# SPDX-License-Identifier: Apache-2.0
"""The log-prob cache: keys, round trips, several writers, checks of what is on disk, and the batches that fill it."""

from __future__ import annotations

import hashlib
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from llamafactory_tpaw.data.layout import Layout, is_shared, lay_out
from llamafactory_tpaw.errors import CacheError
from llamafactory_tpaw.team.cache import LogpCache, sequence_key
from llamafactory_tpaw.team.scorer import plan_score_batches

from .checkpoints import flip


NUMERICS = {"player": "a" * 64, "dtype": "float32", "schema": 1, "autocast": None}


def key_of(number: int) -> bytes:
    return sequence_key([number], [1, 2])


def opened(root: Path, **numerics: object) -> LogpCache:
    return LogpCache(root, NUMERICS | numerics).load()


def filled(root: Path, numbers: range) -> LogpCache:
    """A cache with one part, in which sequence i has -i - 0.5 nats over i + 1 tokens."""
    cache = opened(root)
    cache.add([key_of(i) for i in numbers], [-i - 0.5 for i in numbers], [i + 1 for i in numbers])
    cache.flush()
    return cache


def test_keys_are_of_the_content() -> None:
    expected = hashlib.sha256(struct.pack("<5q", 2, 1, 7, 300_000, 5)).digest()
    assert sequence_key([7, 300_000], [5]) == sequence_key(np.array([7, 300_000], np.int32), (5,)) == expected
    assert len({sequence_key(*ids) for ids in [([1, 2], [3]), ([1], [2, 3]), ([], [1, 2, 3]), ([2, 1], [3])]}) == 4
    for ids in ([1, -100], [1.5], [[1, 2]], ["a"]):
        with pytest.raises(ValueError, match="`response_ids` must be a flat list of token ids"):
            sequence_key([1], ids)


def test_round_trip(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(10))
    for reader in (cache, opened(tmp_path)):
        assert len(reader) == 10
        assert reader.missing([key_of(12), key_of(1), key_of(11), key_of(12)]) == [key_of(12), key_of(11)]
        found = reader.lookup([key_of(2), key_of(0), key_of(2)])
        assert found.dtype == np.float32
        assert found.tolist() == [-2.5, -0.5, -2.5]
    for change in ({"player": "b" * 64}, {"dtype": "bfloat16"}, {"more": 1}):
        assert opened(tmp_path, **change).missing([key_of(0)]) == [key_of(0)], "another cache"
    part = next(cache.folder.glob("part-*"))
    assert part.name == f"part-{hashlib.sha256(part.read_bytes()).hexdigest()[:32]}.safetensors"
    with pytest.raises(CacheError, match=f"lacks 1 of 2 sequences, the first {key_of(11).hex()}"):
        cache.lookup([key_of(0), key_of(11)])


def test_other_writers_are_seen_when_the_cache_is_loaded_again(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    one.add([key_of(0)], [-1.0], [2])
    assert one.missing([key_of(0)]) == [key_of(0)], "what is buffered is not there yet"
    assert list(tmp_path.iterdir()) == []
    one.flush()
    assert one.flush() is None
    other.add([key_of(0), key_of(1)], [-1.0, -2.0], [2, 2])
    other.load().flush()
    assert one.missing([key_of(1)]) == [key_of(1)]
    assert one.load().lookup([key_of(1)]).tolist() == [-2.0]
    assert len(one) == len(other) == 2


def test_keys_with_zero_bytes_are_told_apart(tmp_path: Path) -> None:
    """Fixed-width byte strings in numpy drop trailing zeros; no key may be lost or confused by it."""
    keys = [bytes(32), bytes(31) + b"\1", b"\1" + bytes(31), b"\1" + bytes(30) + b"\1", b"\1\0\1" + bytes(29)]
    cache = opened(tmp_path)
    cache.add(keys, [-1.0, -2.0, -3.0, -4.0, -5.0], [1] * 5)
    cache.flush()
    reader = opened(tmp_path)
    assert reader.lookup(keys).tolist() == [-1.0, -2.0, -3.0, -4.0, -5.0]
    assert reader.missing([b"\1\1" + bytes(30), bytes(30) + b"\1\0"]) == [b"\1\1" + bytes(30), bytes(30) + b"\1\0"]


@pytest.mark.parametrize(
    ("keys", "logps", "tokens", "said"),
    [
        *(([b"0" * 32, b"1" * 32], [-1.0, logp], [2, 2], "row 1 is") for logp in (math.nan, -math.inf, 0.5, -1e39)),
        ([b"0" * 32, b"1" * 32], [-1.0], [1, 1], "2 keys, 1 log-probs and 2 counts"),
        ([b"0" * 32], [-1.0], [-1], "row 0 is -1.0 nats over -1 tokens"),
        ([b"short"], [-1.0], [1], "must have 32 bytes"),
    ],
)
def test_add_refuses_what_cannot_be(tmp_path: Path, keys: list, logps: list, tokens: list, said: str) -> None:
    cache = opened(tmp_path)
    with pytest.raises(ValueError, match=said):
        cache.add(keys, logps, tokens)
    assert cache.flush() is None
    assert list(tmp_path.iterdir()) == []


def test_entries_of_two_parts_agree_within_the_tolerance(tmp_path: Path) -> None:
    caches = [opened(tmp_path) for _ in range(3)]
    for cache, logp in zip(caches, (-100.0, -100.01, -100.02), strict=True):
        cache.add([key_of(0), key_of(1)], [logp, 1e-6], [40, 3])  # rounding may lift a log-prob above 0
        cache.flush()
    parts, reader = sorted(caches[0].folder.glob("part-*")), opened(tmp_path)
    assert (len(parts), len(reader)) == (3, 2)
    assert reader.lookup([key_of(0)]).item() in load_file(parts[0])["logps"], "the first part's is kept"
    for logp, tokens in ((-100.2, 40), (-100.0, 41)):
        reader.add([key_of(0)], [logp], [tokens])
        with pytest.raises(CacheError, match=f"two log-probs of sequence {key_of(0).hex()}.*delete the folder"):
            reader.flush()
    wider = LogpCache(tmp_path, NUMERICS, tolerance=1e-2).load()
    wider.add([key_of(0)], [-100.9], [40])
    wider.flush()
    with pytest.raises(CacheError, match="two log-probs of sequence"):
        opened(tmp_path)
    for logp in (-1.7, -1.83):  # as a token of a real model in bfloat16, in batches of two shapes
        bf16 = LogpCache(tmp_path / "bf16", NUMERICS, tolerance=2e-2)
        bf16.add([key_of(0)], [logp], [1])
        bf16.flush()
    assert len(bf16.load()) == 1


def test_damaged_part_is_named_and_deleting_it_is_enough(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(3))
    part = next(cache.folder.glob("part-*"))
    cache.add([key_of(9)], [-9.0], [9])
    cache.flush()
    flip(part, -5)
    with pytest.raises(CacheError, match=rf"{part.name} is damaged: .* Delete this file; only its sequences"):
        opened(tmp_path)
    part.unlink()
    rest = opened(tmp_path)
    assert rest.missing([key_of(0), key_of(1), key_of(2), key_of(9)]) == [key_of(0), key_of(1), key_of(2)]


def test_impossible_content_is_refused_even_with_the_right_name(tmp_path: Path) -> None:
    keys, tokens = np.ones((2, 32), np.uint8), np.ones(2, np.int32)
    for logps, said in (([-1.0, math.nan], "row 1 is nan nats over 1 tokens"), ([[-1.0], [-1.0]], "it holds")):
        content = save({"keys": keys, "logps": np.array(logps, np.float32), "tokens": tokens})
        part = filled(tmp_path, range(3)).folder / f"part-{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
        part.write_bytes(content)
        with pytest.raises(CacheError, match=rf"{part.name} is damaged: {said}"):
            opened(tmp_path)
        part.unlink()


@pytest.mark.parametrize("sharing", ["never", "cheaper", "always"])
@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_every_sequence_is_scored_once_under_its_own_key(sharing: str, batch_tokens: int) -> None:
    """Each prompt has one to four responses, of lengths that vary."""
    rng, todo = np.random.default_rng(0), {}
    for number in range(12):
        prompt = np.full(5 + number, number, dtype=np.int32)
        for _ in range(1 + number % 4):
            response = rng.integers(0, 99, size=rng.integers(1, 20), dtype=np.int32)
            todo[sequence_key(prompt, response)] = prompt, response
    seen = []
    for batch in plan_score_batches(todo, batch_tokens, Layout(sharing=sharing)):
        for row, keys in batch:
            for key, response in zip(keys, row.responses, strict=True):
                assert sequence_key(row.prompt, response) == key
                seen.append(key)
        laid_out = lay_out([row for row, _ in batch], pad_token_id=0)
        assert len(batch) == 1 or laid_out["input_ids"].numel() <= batch_tokens
        assert len({is_shared([row]) for row, _ in batch}) == 1
    assert sorted(seen) == sorted(todo)
