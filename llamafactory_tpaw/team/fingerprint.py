# SPDX-License-Identifier: Apache-2.0
"""What makes a checkpoint itself: SHA-256 of its weights, kept while their files are the same, and of its config."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ..arguments.start import ADAPTER_CONFIG, is_adapter
from ..data.files import digest_file, digest_json, read_json, sha256_hex, write_json_atomic
from ..data.progress import BYTES, Progress
from ..errors import DataError
from .checkpoint import MODEL_INDEX, Tensor, read_header, read_object, read_tensors, weight_paths


SCHEMA = 2
HASHING_THREADS = 8
CHUNK_BYTES = 1 << 24
# What else makes a model: how it is built, what it reads and writes, and its own code.
OTHER_FILES = (
    "config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template*", "*.model", "*.tiktoken", "*.py",
)  # fmt: skip
VOLATILE_CONFIG_KEYS = frozenset(
    {"transformers_version", "_name_or_path", "_commit_hash", "dtype", "torch_dtype", "use_cache"}
)
# What decides, beside the tensors, which model an adapter makes. Values that say nothing are left out, so that another
# version of peft, which writes more keys, changes no fingerprint; lists of names come from sets, in any order.
DECISIVE_KEYS = (
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out",
    "bias", "lora_bias", "target_modules", "target_parameters", "modules_to_save", "layer_replication",
    "trainable_token_indices", "use_qalora",
)  # fmt: skip


class Weights(NamedTuple):
    """What a checkpoint's weights are: the SHA-256 of all tensors, and one of each file by name, header included."""

    fingerprint: str
    files: dict[str, str]


def fingerprint_checkpoint(folder: Path, store_dir: Path) -> str:
    """Compute the fingerprint of a checkpoint, 64 hex digits; see `hash_weights`."""
    return hash_weights(folder, store_dir).fingerprint


def hash_weights(folder: Path, store_dir: Path | None, *, trust_stat: bool = True) -> Weights:
    r"""Compute the SHA-256 of a checkpoint's tensors: names, shapes, dtypes and bytes, in the order of the names.

    Of an adapter, what its config says of their use belongs to it; the model below it does not. How the tensors are
    spread over files does not matter. The model is not loaded. The result is kept in the store, unless that is None,
    and with `trust_stat` believed while each weight file has the size, time of change and inode that it had then.
    """
    folder = Path(folder).resolve()
    read_tensors(folder)
    state = _state(folder)
    if store_dir is not None and trust_stat:
        kept = _read_record(record_of(folder, store_dir), state)
        if kept is not None:
            return kept
    weights = _hash_weights(folder)
    if _state(folder) != state:
        raise DataError(f"The weights in {folder} changed while they were read. Wait until they are written.")
    if store_dir is not None:
        record = state | {"fingerprint": weights.fingerprint, "digests": weights.files}
        write_json_atomic(record_of(folder, store_dir), record, seal=True)
    return weights


def chain_fingerprints(folders: Sequence[Path], store_dir: Path) -> list[str]:
    """Compute the fingerprint of a model, of the model with the first adapter, and so on; see `hash_weights`."""
    own = (fingerprint_checkpoint(folder, store_dir) for folder in folders)
    return list(itertools.accumulate(own, with_adapter))


def with_adapter(below: str, adapter: str) -> str:
    """Return the fingerprint of a model with one more adapter from those of the two."""
    return digest_json({"below": below, "adapter": adapter})


def identity(own: str, described: Mapping[str, Any]) -> str:
    """Return the fingerprint of a θ as `tpaw.json` describes it, with what is `below`, from that of its own folder."""
    below = described.get("below")
    return with_adapter(below[-1]["fingerprint"], own) if below else own


def record_of(folder: Path, store_dir: Path) -> Path:
    """Where the fingerprint of a checkpoint is kept."""
    return Path(store_dir) / "fingerprints" / f"{sha256_hex(os.fsencode(Path(folder).resolve()))}.json"


def digest_other_files(folder: str | Path) -> dict[str, str]:
    """Return the SHA-256 of each file but the weights that makes a model: config, tokenizer, template, code."""
    paths = {path for pattern in OTHER_FILES for path in Path(folder).glob(pattern) if path.is_file()}
    return {path.name: digest_file(path) for path in sorted(paths)}


def changed_files(folder: str | Path, recorded: Mapping[str, str]) -> str:
    """Name those of them that have another SHA-256 than `recorded`; empty where none has."""
    return ", ".join(name for name, now in digest_other_files(folder).items() if recorded.get(name, now) != now)


def config_digest(folder: Path) -> str:
    """Compute the SHA-256 of a checkpoint's config without what says nothing about the model, at any level."""
    return digest_json(_stable_config(read_json(Path(folder) / "config.json")))


def _stable_config(value: Any) -> Any:
    if isinstance(value, dict):
        stable = {key: _stable_config(item) for key, item in value.items() if key not in VOLATILE_CONFIG_KEYS}
        if isinstance(stable.get("architectures"), list):
            stable["architectures"] = sorted(stable["architectures"])
        return stable
    return [_stable_config(item) for item in value] if isinstance(value, list) else value


def _state(folder: Path) -> dict[str, Any]:
    """What a kept fingerprint is of: path, and size, time of change and inode of every file that it is of, by name."""
    paths = [*weight_paths(folder), *([folder / ADAPTER_CONFIG] if is_adapter(folder) else [])]
    files = {}
    for path in paths:
        stat = path.stat()
        files[path.name] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}
    return {"schema": SCHEMA, "path": str(folder), "files": files}


def _read_record(path: Path, state: dict[str, Any]) -> Weights | None:
    """Return what is kept if it is of these files, None where it must be computed."""
    try:
        record = read_json(path)
        found = Weights(record.pop("fingerprint"), record.pop("digests"))
        return found if record == state else None
    except (DataError, AttributeError, KeyError, TypeError):
        return None  # A damaged record costs the time to hash again, nothing more.


def _hash_weights(folder: Path) -> Weights:
    paths = weight_paths(folder)
    files: dict[str, str] = {}
    if paths[0].name == MODEL_INDEX:
        index = paths.pop(0)
        files[index.name] = digest_file(index)
    described: dict[str, list[Any]] = {}
    size = sum(path.stat().st_size for path in paths)
    with (
        ThreadPoolExecutor(min(HASHING_THREADS, os.cpu_count() or 1)) as pool,
        Progress(f"reading {folder.name}", size, BYTES) as progress,
    ):
        for path in paths:
            tensors = read_header(path)
            of_file = []
            for tensor, digest in zip(tensors, pool.map(_hash_tensor, tensors), strict=True):
                of_file.append([tensor.name, tensor.dtype, tensor.shape, digest])
                progress.update(tensor.size)
            files[path.name] = digest_json([_header_digest(path), of_file])
            for one in of_file:  # a tensor that two files hold alike counts once
                if described.setdefault(one[0], one) != one:
                    raise DataError(f"{folder} holds two different tensors `{one[0]}`. Save the checkpoint again.")
    fingerprint = digest_json([described[name] for name in sorted(described)])
    if is_adapter(folder):
        files[ADAPTER_CONFIG] = digest_file(folder / ADAPTER_CONFIG)
        config = read_object(folder / ADAPTER_CONFIG)
        said = {
            key: sorted(value) if isinstance(value, list) and all(isinstance(x, str) for x in value) else value
            for key in DECISIVE_KEYS
            if (value := config.get(key)) not in (None, False, [], {}, "none")
        }
        fingerprint = digest_json({"tensors": fingerprint, "config": said})
    return Weights(fingerprint, files)


def _hash_tensor(tensor: Tensor) -> str:
    digest = hashlib.sha256()
    left = tensor.size
    with open(tensor.path, "rb", buffering=0) as stream:
        stream.seek(tensor.start)
        while left:
            chunk = stream.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise DataError(f"{tensor.path} became shorter while it was read. Wait until it is written.")
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def _header_digest(path: Path) -> str:
    """SHA-256 of a safetensors file up to its first tensor."""
    with open(path, "rb") as stream:
        start = stream.read(8)
        return sha256_hex(start + stream.read(int.from_bytes(start, "little")))
