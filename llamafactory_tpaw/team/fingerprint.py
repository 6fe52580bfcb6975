# SPDX-License-Identifier: Apache-2.0
"""What makes a checkpoint itself: a digest of its weights, one of its config, and whether it is all there."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ..data.files import digest_json, read_json, sha256_hex, write_json_atomic
from ..errors import DataError


SCHEMA = 1
CHUNK_BYTES = 1 << 24
HASHING_THREADS = 8
MAX_HEADER_BYTES = 100_000_000
# In the order in which transformers looks for them.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX_SUFFIX = ".index.json"
VOLATILE_CONFIG_KEYS = frozenset(
    {"transformers_version", "_name_or_path", "_commit_hash", "dtype", "torch_dtype", "use_cache"}
)
# Names of safetensors for the dtypes of torch.
TORCH_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


class _Tensor(NamedTuple):
    """Where one tensor of a safetensors file is: `start` and `size` in bytes."""

    name: str
    dtype: str
    shape: list[int]
    path: Path
    start: int
    size: int


def fingerprint_checkpoint(folder: Path, store_dir: Path, *, trust_stat: bool = True) -> str:
    r"""Compute the SHA-256 of a checkpoint's tensors: names, shapes, dtypes and bytes, in the order of the names.

    How they are spread over files does not matter. The model is not loaded. `.bin` files are read, with
    `weights_only`, only where there are no safetensors.

    Args:
        folder: Checkpoint.
        store_dir: The result is kept in its folder `fingerprints`, a file for each checkpoint.
        trust_stat: Take the kept result while each weight file has the size, time of change and inode it had then;
            otherwise compute it anew.

    Returns:
        64 hex digits.

    Raises:
        DataError: If weights are absent or damaged, or change while they are read.
    """
    folder = Path(folder).resolve()
    problems = _folder_problems(folder) or _weight_problems(folder)
    if problems:
        raise DataError(problems)
    record_path = Path(store_dir) / "fingerprints" / f"{sha256_hex(os.fsencode(folder))}.json"
    state = _stat_weights(folder)
    if trust_stat:
        kept = _read_record(record_path, folder, state)
        if kept is not None:
            return kept
    fingerprint = _hash_weights(folder)
    if _stat_weights(folder) != state:
        raise DataError(f"The weights in {folder} changed while they were read. Wait until they are written.")
    record = {"schema": SCHEMA, "path": str(folder), "fingerprint": fingerprint, "files": state}
    write_json_atomic(record_path, record)
    return fingerprint


def weight_dtype(folder: Path) -> str:
    r"""Name the dtype that most of a checkpoint's bytes are in, as safetensors does (`F32`, `BF16`); `bin` for others.

    Raises:
        DataError: If there are no weights or a header cannot be read.
    """
    main = _main_file(folder)
    if not _is_safetensors(main):
        return "bin"
    sizes: Counter[str] = Counter()
    for shard in [main] if main.suffix == ".safetensors" else _shards(main):
        for tensor in _read_header(shard):
            sizes[tensor.dtype] += tensor.size
    return sizes.most_common(1)[0][0]


def check_checkpoint_complete(folder: Path) -> list[str]:
    r"""Say what a checkpoint lacks, without reading a tensor: files, shards, and bytes at the end of a file.

    Returns:
        Problems as messages; empty where the checkpoint is whole.
    """
    folder = Path(folder)
    problems = _folder_problems(folder)
    if problems:
        return problems
    try:
        config = read_json(folder / "config.json")
        if not isinstance(config, dict):
            problems.append(f"{folder / 'config.json'} must hold a JSON object. Save the checkpoint again.")
    except DataError as error:
        problems.append(str(error))
    return problems + _weight_problems(folder)


def config_digest(folder: Path) -> str:
    r"""Compute the SHA-256 of a checkpoint's config without what says nothing about the model.

    Left out at every level: versions, paths, the dtype (which the weights say themselves), `use_cache`, and the order
    of `architectures`.

    Raises:
        DataError: If `config.json` is missing or not JSON.
    """
    return digest_json(_stable_config(read_json(Path(folder) / "config.json")))


def _folder_problems(folder: Path) -> list[str]:
    if folder.is_dir():
        return []
    kind = "is not a folder" if folder.exists() else "does not exist"
    return [f"{folder} {kind}. Give the folder of a saved checkpoint."]


def _stable_config(value: Any) -> Any:
    if isinstance(value, dict):
        stable = {key: _stable_config(item) for key, item in value.items() if key not in VOLATILE_CONFIG_KEYS}
        if isinstance(stable.get("architectures"), list):
            stable["architectures"] = sorted(stable["architectures"])
        return stable
    return [_stable_config(item) for item in value] if isinstance(value, list) else value


def _stat_weights(folder: Path) -> dict[str, dict[str, int]]:
    """Size, time of change and inode of every weight file, by name."""
    main = _main_file(folder)
    paths = [main, *_shards(main)] if main.name.endswith(INDEX_SUFFIX) else [main]
    stats = {path.name: path.stat() for path in paths}
    return {
        name: {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}
        for name, stat in stats.items()
    }


def _read_record(path: Path, folder: Path, state: dict[str, dict[str, int]]) -> str | None:
    """Return the kept fingerprint if it is of these files, None where it must be computed."""
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except DataError:
        return None  # A damaged record costs the time to hash again, nothing more.
    fingerprint = record.get("fingerprint") if isinstance(record, dict) else None
    if record != {"schema": SCHEMA, "path": str(folder), "fingerprint": fingerprint, "files": state}:
        return None
    return fingerprint if isinstance(fingerprint, str) and len(fingerprint) == 64 else None


def _main_file(folder: Path) -> Path:
    """Return the file that transformers would load: the weights or the index of their shards."""
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return folder / name
    raise DataError(_no_weights(folder))


def _is_safetensors(main: Path) -> bool:
    return ".safetensors" in main.name


def _no_weights(folder: Path) -> str:
    parts = sorted(path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    found = f" It has {', '.join(parts[:3])}, but no index of shards." if parts else ""
    return (
        f"{folder} holds no weights: none of {', '.join(WEIGHT_FILES)} is there.{found} "
        "Was saving interrupted? Save the checkpoint again or name another one."
    )


def _shards(index: Path) -> list[Path]:
    """Return the shards that an index names, in order.

    Raises:
        DataError: If it is no index.
    """
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise DataError(f"{index} must hold a `weight_map` from tensors to files. Save the checkpoint again.")
    return [index.parent / name for name in sorted(set(weight_map.values()))]


def _weight_problems(folder: Path) -> list[str]:
    """Say what is wrong with the weight files, from their sizes and headers."""
    try:
        main = _main_file(folder)
        if not main.name.endswith(INDEX_SUFFIX):
            return _file_problems(main)
        shards = _shards(main)
    except DataError as error:
        return [str(error)]
    problems = []
    for shard in shards:
        if shard.is_file():
            problems += _file_problems(shard)
        else:
            problems.append(f"{shard} is missing, but {main.name} names it. Save or download the checkpoint again.")
    if not problems and _is_safetensors(main):
        there = {tensor.name for shard in shards for tensor in _read_header(shard)}
        absent = sorted(read_json(main)["weight_map"].keys() - there)
        if absent:
            problems.append(
                f"{main} names {len(absent)} tensors that no shard holds, the first `{absent[0]}`. "
                "Save or download the checkpoint again."
            )
    return problems


def _file_problems(path: Path) -> list[str]:
    try:
        if path.suffix == ".safetensors":
            _read_header(path)
        else:
            _check_bin(path)
    except DataError as error:
        return [str(error)]
    return []


def _check_bin(path: Path) -> None:
    with open(path, "rb") as stream:
        start = stream.read(2)
    # A zip archive ends with its directory, so one that was cut is none.
    if not start or (start == b"PK" and not zipfile.is_zipfile(path)):
        raise DataError(f"{path} is cut off at {path.stat().st_size} bytes. Save or download it again.")


def _read_header(path: Path) -> list[_Tensor]:
    """Read which tensors a safetensors file holds, and check that it ends where the last of them does.

    Raises:
        DataError: If it cannot be read, is cut off or no safetensors file.
    """
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"it has {size} bytes, too few for its header")
            header = json.loads(stream.read(length))
        tensors = [
            _Tensor(name, entry["dtype"], entry["shape"], path, 8 + length + entry["data_offsets"][0],
                    entry["data_offsets"][1] - entry["data_offsets"][0])
            for name, entry in header.items()
            if name != "__metadata__"
        ]  # fmt: skip
        end = max((tensor.start + tensor.size for tensor in tensors), default=8 + length)
        if end != size:
            raise ValueError(f"it has {size} bytes, its header says {end}")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is cut off or damaged: {error}. Save or download it again.") from error
    return tensors


def _hash_weights(folder: Path) -> str:
    main = _main_file(folder)
    paths = _shards(main) if main.name.endswith(INDEX_SUFFIX) else [main]
    if _is_safetensors(main):
        tensors = [tensor for path in paths for tensor in _read_header(path)]
        with ThreadPoolExecutor(min(HASHING_THREADS, os.cpu_count() or 1)) as pool:
            digests = list(pool.map(_hash_tensor, tensors))
        described = [
            (tensor.name, tensor.dtype, tensor.shape, digest) for tensor, digest in zip(tensors, digests, strict=True)
        ]
        return _combine(folder, described)
    return _combine(folder, (entry for path in paths for entry in _hash_bin(path)))


def _combine(folder: Path, tensors: Iterable[tuple[str, str, list[int], str]]) -> str:
    """Digest names, dtypes, shapes and digests of the bytes; a tensor that two files hold alike counts once."""
    unique: dict[str, tuple[str, str, list[int], str]] = {}
    for tensor in tensors:
        if unique.setdefault(tensor[0], tensor) != tensor:
            raise DataError(f"{folder} holds two different tensors `{tensor[0]}`. Save the checkpoint again.")
    return digest_json([list(unique[name]) for name in sorted(unique)])


def _hash_tensor(tensor: _Tensor) -> str:
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


def _hash_bin(path: Path) -> Iterator[tuple[str, str, list[int], str]]:
    """Describe the tensors of a file that `torch.save` wrote. Nothing but tensors is unpickled."""
    import torch

    with open(path, "rb") as stream:
        is_zip = stream.read(2) == b"PK"
    try:
        # Only the zip format can be mapped.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:
        raise DataError(f"{path} cannot be loaded: {error}. Save the checkpoint as safetensors.") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise DataError(f"{path} must hold tensors by name and nothing else. Save the checkpoint as safetensors.")
    for name, tensor in tensors.items():
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        digest = hashlib.sha256()
        for start in range(0, data.numel(), CHUNK_BYTES):
            digest.update(data[start : start + CHUNK_BYTES].numpy())
        dtype = str(tensor.dtype).removeprefix("torch.")
        yield name, TORCH_DTYPES.get(dtype, dtype), list(tensor.shape), digest.hexdigest()
