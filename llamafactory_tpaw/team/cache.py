# SPDX-License-Identifier: Apache-2.0
"""Log-probs of token sequences under one player, kept on disk and shared by all iterations and objectives.

A cache is a folder `<root>/logps/<2 hex>/<digest>/`, where the digest is of everything but the sequence that changes a
number: weights, config, masking rule, dtypes, attention kernel. It holds parts `part-<SHA-256 of the
content>.safetensors`, and `numerics.json`, which tells people what the digest is of. Any number of processes add
parts; no file is ever changed, so a reader needs no lock. Every part is checked when it is read, and a sequence that
is not there is an error, never a default.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..data.files import cannot_read, digest_json, sha256_hex, write_atomic, write_json_atomic
from ..errors import CacheError


KEY_BYTES = 32
NAME_DIGITS = 32
NUMERICS = "numerics.json"
# Rounding averages out over many tokens: in a sequence of few, as much as in so many more is allowed.
SHORT = 30
# Rounding may lift the log-prob of a certain sequence above 0 by this much, in nats.
ROUNDING = 1e-3


class _Entries(NamedTuple):
    """Many entries: keys (n,) as 32-byte strings, log-probs in nats (n,) float32, token counts (n,) int32."""

    keys: NDArray[np.bytes_]
    logps: NDArray[np.float32]
    tokens: NDArray[np.int32]


def sequence_key(prompt_ids: Sequence[int], response_ids: Sequence[int]) -> bytes:
    """Name a sequence by its content: the 32 bytes of SHA-256 over both lengths and all ids as little-endian int64."""
    digest = hashlib.sha256(np.array([len(prompt_ids), len(response_ids)], dtype="<i8").tobytes())
    for name, ids in (("prompt_ids", prompt_ids), ("response_ids", response_ids)):
        values = np.asarray(ids)
        if values.size and (values.dtype.kind not in "iu" or values.ndim != 1 or values.min() < 0):
            raise ValueError(f"`{name}` must be a flat list of token ids >= 0, got {str(ids)[:80]}.")
        digest.update(values.astype("<i8").tobytes())
    return digest.digest()


class LogpCache:
    r"""The log-probs under one player with one set of numerics; nothing is read or written before `load`.

    `root` is `tpaw_cache_dir`; `numerics` is everything but the sequence that changes a number. Two log-probs of one
    sequence may be apart by `tolerance`, a share of the larger of their size in nats and their number of tokens, and
    `SHORT`: rounding differs with the shape of a batch.
    """

    def __init__(self, root: str | Path, numerics: Mapping[str, Any], *, tolerance: float = 1e-3) -> None:
        self.numerics = dict(numerics)
        self.tolerance = tolerance
        self.digest = digest_json(self.numerics)
        self.folder = Path(root) / "logps" / self.digest[:2] / self.digest
        self._parts: set[str] = set()
        self._index = _entries([], [], [])
        self._pending: list[_Entries] = []

    def __len__(self) -> int:
        return len(self._index.keys)

    def load(self) -> LogpCache:
        """Read and check the parts that were not read yet, also those that other processes wrote."""
        fresh = sorted({path.name for path in self.folder.glob("part-*.safetensors")} - self._parts)
        if fresh:
            self._index = self._merged([self._index, *(_read_part(self.folder / part) for part in fresh)])
            self._parts |= set(fresh)
        return self

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Return the keys without an entry in the parts that were read, each once, in the order given."""
        found, _ = self._find(keys)
        return list(dict.fromkeys(keys[row] for row in np.flatnonzero(~found)))

    def lookup(self, keys: Sequence[bytes]) -> NDArray[np.float32]:
        """Return the log-probs of sequences in nats, (n,), in the order of `keys`; one that is absent is an error."""
        found, places = self._find(keys)
        if not found.all():
            raise CacheError(
                f"{self.folder} lacks {int((~found).sum())} of {len(keys)} sequences, the first "
                f"{keys[int(np.argmin(found))].hex()}. Score them before they are used."
            )
        return self._index.logps[places]

    def means(self) -> dict[bytes, float]:
        """Return the log-probs per token of all sequences in the parts that were read, by key."""
        return dict(zip(self._index.keys.tolist(), self._index.logps / self._index.tokens.clip(1), strict=True))

    def add(self, keys: Sequence[bytes], logps: Sequence[float], tokens: Sequence[int]) -> None:
        """Buffer log-probs in nats, and how many tokens each sums, for `flush`; impossible ones are a ValueError."""
        self._pending.append(_check(_entries(keys, logps, tokens)))

    def flush(self) -> Path | None:
        """Write the buffered entries as one part and return its path; None where nothing is buffered."""
        if not self._pending:
            return None
        entries = self._merged(self._pending)
        merged = self._merged([self._index, entries])
        if not (self.folder / NUMERICS).exists():
            write_json_atomic(self.folder / NUMERICS, self.numerics)
        content = save(entries._asdict() | {"keys": entries.keys.view(np.uint8).reshape(-1, KEY_BYTES)})
        part = self.folder / f"part-{sha256_hex(content)[:NAME_DIGITS]}.safetensors"
        write_atomic(part, content)
        self._index, self._pending = merged, []
        self._parts.add(part.name)
        return part

    def _find(self, keys: Sequence[bytes]) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """Return which keys are in the parts that were read, and their places there."""
        if not len(keys) or not len(self._index.keys):
            return np.zeros(len(keys), dtype=bool), np.zeros(len(keys), dtype=np.intp)
        wanted = _key_array(keys)
        places = np.searchsorted(self._index.keys, wanted).clip(max=len(self._index.keys) - 1)
        return self._index.keys[places] == wanted, places

    def _merged(self, parts: Sequence[_Entries]) -> _Entries:
        """Join parts, by key. Of a key that several have the first is kept, if all agree."""
        keys, logps, tokens = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = np.ones(len(keys), dtype=bool)
        first[1:] = keys[1:] != keys[:-1]
        kept = order[first]
        reference = kept[np.cumsum(first) - 1]  # what is kept for the key of each entry
        gap = np.abs(logps[order] - logps[reference])
        size = np.maximum(np.maximum(np.abs(logps[order]), np.abs(logps[reference])), tokens[order]) + SHORT
        apart = np.flatnonzero((gap > self.tolerance * size) | (tokens[order] != tokens[reference]))
        if len(apart):
            one, other = (int(places[apart[0]]) for places in (reference, order))
            name = bytes(keys[apart[0]]).ljust(KEY_BYTES, bytes(1)).hex()
            raise CacheError(
                f"{self.folder} has two log-probs of sequence {name}: {logps[one]} nats over {tokens[one]} tokens and "
                f"{logps[other]} over {tokens[other]}. Something that changes the numbers is not named in {NUMERICS}: "
                "delete the folder, and its sequences are scored again."
            )
        return _Entries(keys[first], logps[kept], tokens[kept])


def _key_array(keys: Sequence[bytes]) -> NDArray[np.bytes_]:
    if any(len(key) != KEY_BYTES for key in keys):
        raise ValueError(f"A key must have {KEY_BYTES} bytes, as `sequence_key` gives, got {min(keys, key=len)!r}.")
    return np.frombuffer(b"".join(keys), dtype=f"S{KEY_BYTES}")


def _entries(keys: Sequence[bytes], logps: Sequence[float], tokens: Sequence[int]) -> _Entries:
    with np.errstate(over="ignore"):  # too large for float32 becomes inf, which is refused
        stored = np.asarray(logps, dtype=np.float64).astype(np.float32)
    return _Entries(_key_array(keys), stored, np.asarray(tokens, dtype=np.int32))


def _check(entries: _Entries) -> _Entries:
    """Raise a `ValueError` unless there are as many keys, log-probs and counts, each of them possible."""
    if not len(entries.keys) == len(entries.logps) == len(entries.tokens):
        raise ValueError(f"{len(entries.keys)} keys, {len(entries.logps)} log-probs and {len(entries.tokens)} counts")
    wrong = ~(np.isfinite(entries.logps) & (entries.logps <= ROUNDING) & (entries.tokens >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"row {row} is {entries.logps[row]} nats over {entries.tokens[row]} tokens, which no log-prob can be"
        )
    return entries


def _read_part(path: Path) -> _Entries:
    """Read one part and check its content against its name, then every entry."""
    try:
        content = path.read_bytes()
        if path.name != f"part-{sha256_hex(content)[:NAME_DIGITS]}.safetensors":
            raise ValueError("its content does not fit its name")
        tensors: dict[str, NDArray[Any]] = load(content)
        kinds = {name: (str(tensor.dtype), tensor.shape[1:]) for name, tensor in tensors.items()}
        if kinds != {"keys": ("uint8", (KEY_BYTES,)), "logps": ("float32", ()), "tokens": ("int32", ())}:
            raise ValueError(f"it holds {kinds}")
        keys = np.ascontiguousarray(tensors["keys"]).view(f"S{KEY_BYTES}").reshape(-1)
        return _check(_Entries(keys, tensors["logps"], tensors["tokens"]))
    except OSError as error:
        raise CacheError(cannot_read(path, error)) from error
    except (ValueError, SafetensorError) as error:
        raise CacheError(
            f"{path} is damaged: {error}. Delete this file; only its sequences are then scored again."
        ) from error
