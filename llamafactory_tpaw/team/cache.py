# SPDX-License-Identifier: Apache-2.0
"""Log-probs of token sequences under one player, kept on disk and shared by all iterations and objectives.

A cache is a folder `<root>/logps/<2 hex>/<digest>/`, where the digest is of everything but the sequence that changes a
number: weights, config, masking rule, dtypes, attention kernel. It holds `numerics.json`, which says what that is, and
parts `part-<SHA-256 of the content>.safetensors`. Any number of processes add parts; no file is ever changed, so a
reader needs no lock. Every part is checked when it is read, and a sequence that is not there is an error, never a
default.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..data.files import digest_json, read_json, sha256_hex, write_atomic, write_json_atomic
from ..errors import CacheError, DataError


KEY_BYTES = 32
NAME_DIGITS = 32
NUMERICS = "numerics.json"
# Rounding may lift the log-prob of a certain sequence above 0 by this much, in nats.
ROUNDING = 1e-3

Setting = str | int | float | bool | None


class Entry(NamedTuple):
    """Log-prob of one sequence's response in nats, and how many tokens it sums."""

    logp: float
    tokens: int


class _Entries(NamedTuple):
    """Many entries: keys (n,) as 32-byte strings, log-probs (n,) float32, token counts (n,) int32."""

    keys: NDArray[np.bytes_]
    logps: NDArray[np.float32]
    tokens: NDArray[np.int32]


def sequence_key(prompt_ids: Sequence[int], response_ids: Sequence[int]) -> bytes:
    r"""Name a sequence by its content: SHA-256 over both lengths and all ids as little-endian int64.

    The same ids with another boundary between prompt and response have another key.

    Returns:
        32 bytes.

    Raises:
        ValueError: If an id is no integer or negative.
    """
    digest = hashlib.sha256(np.array([len(prompt_ids), len(response_ids)], dtype="<i8").tobytes())
    for name, ids in (("prompt_ids", prompt_ids), ("response_ids", response_ids)):
        values = np.asarray(ids)
        if values.size and (values.dtype.kind not in "iu" or values.ndim != 1 or values.min() < 0):
            raise ValueError(f"`{name}` must be a flat list of token ids >= 0, got {str(ids)[:80]}.")
        digest.update(values.astype("<i8").tobytes())
    return digest.digest()


class LogpCache:
    r"""The log-probs under one player with one set of numerics.

    Args:
        root: Cache folder of the run, `tpaw_cache_dir`.
        numerics: Everything but the sequence that changes a number.
        tolerance: How far two log-probs of one sequence may be apart, as a share of the larger of their size in nats
            and their number of tokens. Rounding differs with the shape of a batch; 1e-3 suits float32, bf16 needs
            about 1e-2.

    Nothing is read or written before `load`.
    """

    def __init__(self, root: str | Path, numerics: Mapping[str, Setting], *, tolerance: float = 1e-3) -> None:
        self.numerics = dict(numerics)
        self.tolerance = tolerance
        self.digest = digest_json(self.numerics)
        self.folder = Path(root) / "logps" / self.digest[:2] / self.digest
        self._parts: list[str] = []
        self._index = _join([])
        self._pending: dict[bytes, Entry] = {}
        self._written: dict[bytes, Entry] = {}

    def __len__(self) -> int:
        return len(self._index.keys) + len(self._written) + len(self._pending)

    def load(self) -> LogpCache:
        r"""Read and check all parts, also those that other processes wrote; what is buffered stays so.

        Returns:
            The cache itself.

        Raises:
            CacheError: If a part is damaged or two disagree, naming the file; or the folder belongs to other numerics.
        """
        parts = self._list_parts()
        self._check_numerics(required=bool(parts))
        index = _merge(parts, [_read_part(self.folder / part) for part in parts], self.folder, self.tolerance)
        self._parts, self._index, self._written = parts, index, {}
        self._drop_known_pending()
        return self

    def reload(self) -> LogpCache:
        """Do what `load` does where there are parts that were not read yet; else nothing."""
        return self if self._list_parts() == self._parts else self.load()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """Return the entries of those keys that are there, buffered ones too."""
        found, logps, tokens = self._gather(keys)
        return {keys[row]: Entry(float(logps[row]), int(tokens[row])) for row in np.flatnonzero(found)}

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Return the keys without an entry, each once, in the order given."""
        found = self._gather(keys)[0]
        return list(dict.fromkeys(keys[row] for row in np.flatnonzero(~found)))

    def lookup(self, key: bytes, tokens: int) -> float:
        r"""Return one log-prob in nats.

        Raises:
            CacheError: If it is absent or sums another number of tokens than `tokens`.
        """
        return float(self.lookup_many([key], [tokens])[0])

    def lookup_many(self, keys: Sequence[bytes], tokens: Sequence[int]) -> NDArray[np.float32]:
        r"""Return the log-probs of sequences in nats, shape (n,), in the order of `keys`.

        Raises:
            CacheError: If any is absent or sums another number of tokens than `tokens` says.
            ValueError: If `keys` and `tokens` differ in length.
        """
        _check_lengths(keys, tokens=tokens)
        found, logps, counts = self._gather(keys)
        if not found.all():
            raise CacheError(
                f"{self.folder} lacks {int((~found).sum())} of {len(keys)} sequences, the first "
                f"{keys[int(np.argmin(found))].hex()}. Score them before they are used."
            )
        wrong = np.flatnonzero(counts != np.asarray(tokens))
        if len(wrong):
            row = int(wrong[0])
            raise CacheError(
                f"{self.folder} has sequence {keys[row].hex()} with {counts[row]} response tokens, but it has "
                f"{tokens[row]}. Delete this folder; its sequences are then scored again."
            )
        return logps

    def add(self, keys: Sequence[bytes], logps: Sequence[float], tokens: Sequence[int]) -> None:
        r"""Buffer entries for `flush`. One that is there already and agrees is left as it is.

        Args:
            keys: What `sequence_key` returns.
            logps: Sums over the response's tokens in nats.
            tokens: Number of tokens in each sum.

        Raises:
            ValueError: If the lengths differ, a key has not 32 bytes, a log-prob is NaN, inf or above 0, or a count
                is negative. Nothing is buffered then.
            CacheError: If an entry that is there already disagrees.
        """
        _check_lengths(keys, logps=logps, tokens=tokens)
        with np.errstate(over="ignore"):  # Too large for float32 becomes inf, which is refused below.
            stored = np.asarray(logps, dtype=np.float64).astype(np.float32)
        entries = [Entry(float(logp), int(count)) for logp, count in zip(stored, tokens, strict=True)]
        for row, (key, entry) in enumerate(zip(keys, entries, strict=True)):
            if not math.isfinite(entry.logp) or entry.logp > ROUNDING or entry.tokens < 0:
                raise ValueError(
                    f"`logps`, row {row} of {len(keys)}: sequence {key.hex()} has {entry.logp} nats over "
                    f"{entry.tokens} tokens. A log-prob must be finite and <= 0, a count >= 0: look at the model that "
                    "gave it."
                )
        found, old_logps, old_tokens = self._gather(keys)
        for row, (key, entry) in enumerate(zip(keys, entries, strict=True)):
            old = Entry(float(old_logps[row]), int(old_tokens[row])) if found[row] else self._pending.get(key)
            if old is None:
                self._pending[key] = entry
            elif not self._agree(old, entry):
                raise CacheError(_disagreement(self.folder, key, old, entry))

    def flush(self) -> Path | None:
        r"""Write the buffered entries as one part.

        Returns:
            The part, or None where nothing was buffered.

        Raises:
            CacheError: If the folder belongs to other numerics.
        """
        if not self._pending:
            return None
        if not self._check_numerics(required=bool(self._list_parts())):
            write_json_atomic(self.folder / NUMERICS, self.numerics)
        keys = sorted(self._pending)
        content = save(
            {
                "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES),
                "logps": np.array([self._pending[key].logp for key in keys], dtype=np.float32),
                "tokens": np.array([self._pending[key].tokens for key in keys], dtype=np.int32),
            }
        )
        part = self.folder / f"part-{sha256_hex(content)[:NAME_DIGITS]}.safetensors"
        write_atomic(part, content)
        self._written |= self._pending
        self._pending = {}
        return part

    def _list_parts(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("part-*.safetensors"))

    def _check_numerics(self, *, required: bool) -> bool:
        """Say whether `numerics.json` is there; raise where it differs, or is absent though `required`."""
        path = self.folder / NUMERICS
        if not path.exists() and not required:
            return False
        try:
            stored = read_json(path)
        except DataError as error:
            raise CacheError(f"{error} Deleting {self.folder} makes its sequences be scored again.") from error
        if stored != self.numerics:
            raise CacheError(
                f"{path} says {_differences(stored, self.numerics)}. Delete {self.folder}; its sequences are then "
                "scored again."
            )
        return True

    def _find(self, keys: Sequence[bytes]) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """Return which keys are in the parts that were read, and their places there."""
        for key in keys:
            if len(key) != KEY_BYTES:
                raise ValueError(f"A key must have {KEY_BYTES} bytes, as `sequence_key` gives, got {key!r}.")
        if not len(keys) or not len(self._index.keys):
            return np.zeros(len(keys), dtype=bool), np.zeros(len(keys), dtype=np.intp)
        wanted = np.frombuffer(b"".join(keys), dtype=f"S{KEY_BYTES}")
        places = np.searchsorted(self._index.keys, wanted).clip(max=len(self._index.keys) - 1)
        return self._index.keys[places] == wanted, places

    def _gather(self, keys: Sequence[bytes]) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.int64]]:
        """Return which keys are there, and log-probs and counts that mean nothing where they are not."""
        found, places = self._find(keys)
        logps = np.full(len(keys), np.nan, dtype=np.float32)
        tokens = np.full(len(keys), -1, dtype=np.int64)
        logps[found] = self._index.logps[places[found]]
        tokens[found] = self._index.tokens[places[found]]
        for row in np.flatnonzero(~found) if self._written or self._pending else ():
            entry = self._written.get(keys[row]) or self._pending.get(keys[row])
            if entry is not None:
                found[row], logps[row], tokens[row] = True, entry.logp, entry.tokens
        return found, logps, tokens

    def _drop_known_pending(self) -> None:
        """Forget what is buffered and meanwhile came from another process; raise where the two disagree."""
        keys = list(self._pending)
        found, places = self._find(keys)
        for row in np.flatnonzero(found):
            old = Entry(float(self._index.logps[places[row]]), int(self._index.tokens[places[row]]))
            new = self._pending.pop(keys[row])
            if not self._agree(old, new):
                raise CacheError(_disagreement(self.folder, keys[row], old, new))

    def _agree(self, one: Entry, other: Entry) -> bool:
        size = max(abs(one.logp), abs(other.logp), one.tokens)
        return one.tokens == other.tokens and abs(one.logp - other.logp) <= self.tolerance * size


def _join(parts: list[_Entries]) -> _Entries:
    keys = np.empty(0, dtype=f"S{KEY_BYTES}")
    return _Entries(
        np.concatenate([keys, *(part.keys for part in parts)]),
        np.concatenate([np.empty(0, np.float32), *(part.logps for part in parts)]),
        np.concatenate([np.empty(0, np.int32), *(part.tokens for part in parts)]),
    )


def _merge(names: list[str], parts: list[_Entries], folder: Path, tolerance: float) -> _Entries:
    """Sort the entries by key. Of a key that several parts have, the first part's by name is kept, if all agree."""
    keys, logps, tokens = _join(parts)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.ones(len(keys), dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    kept = order[first]
    # What is kept for the key of each entry.
    reference = kept[np.cumsum(first) - 1]
    gap = np.abs(logps[order] - logps[reference])
    size = np.maximum(np.maximum(np.abs(logps[order]), np.abs(logps[reference])), tokens[order])
    apart = np.flatnonzero((gap > tolerance * size) | (tokens[order] != tokens[reference]))
    if len(apart):
        row = int(apart[0])
        ends = np.cumsum([len(part.keys) for part in parts])
        one, other = int(reference[row]), int(order[row])
        where = [names[int(np.searchsorted(ends, place, side="right"))] for place in (one, other)]
        old, new = (Entry(float(logps[place]), int(tokens[place])) for place in (one, other))
        raise CacheError(_disagreement(folder, bytes(keys[row]), old, new, f" in {where[0]} and {where[1]}"))
    return _Entries(keys[first], logps[kept], tokens[kept])


def _read_part(path: Path) -> _Entries:
    """Read one part and check its content against its name, then every entry."""
    try:
        content = path.read_bytes()
        if path.name != f"part-{sha256_hex(content)[:NAME_DIGITS]}.safetensors":
            raise ValueError("its content does not fit its name")
        return _check_tensors(load(content))
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error
    except (ValueError, KeyError, SafetensorError) as error:
        raise CacheError(
            f"{path} is damaged: {error}. Delete this file; only its sequences are then scored again."
        ) from error


def _check_tensors(tensors: dict[str, NDArray[Any]]) -> _Entries:
    """Raise a `ValueError` unless these are the arrays of a part and every entry is possible."""
    count = len(tensors["keys"]) if "keys" in tensors else 0
    expected = {"keys": ("uint8", (count, KEY_BYTES)), "logps": ("float32", (count,)), "tokens": ("int32", (count,))}
    given = {name: (str(tensor.dtype), tensor.shape) for name, tensor in tensors.items()}
    if given != expected:
        raise ValueError(f"it holds {given}, not {expected}")
    wrong = ~(np.isfinite(tensors["logps"]) & (tensors["logps"] <= ROUNDING) & (tensors["tokens"] >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"row {row} is {tensors['logps'][row]} nats over {tensors['tokens'][row]} tokens, which no log-prob can be"
        )
    keys = np.ascontiguousarray(tensors["keys"]).view(f"S{KEY_BYTES}").reshape(-1)
    return _Entries(keys, tensors["logps"], tensors["tokens"])


def _check_lengths(keys: Sequence[bytes], **others: Sequence[Any]) -> None:
    for name, values in others.items():
        if len(values) != len(keys):
            raise ValueError(f"`{name}` must have one value for each of {len(keys)} keys, got {len(values)}.")


def _differences(stored: object, wanted: dict[str, Setting]) -> str:
    if not isinstance(stored, dict):
        return f"{str(stored)[:80]}, which are no numerics"
    names = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
    return "; ".join(f"`{name}` is {stored.get(name)!r}, not {wanted.get(name)!r}" for name in names)


def _disagreement(folder: Path, key: bytes, old: Entry, new: Entry, where: str = "") -> str:
    return (
        f"{folder} has two log-probs of sequence {key.ljust(KEY_BYTES, bytes(1)).hex()}{where}: {old.logp} nats over "
        f"{old.tokens} tokens and {new.logp} over {new.tokens}. Something that changes the numbers is not named in "
        f"{NUMERICS}. Delete the folder; its sequences are then scored again."
    )
