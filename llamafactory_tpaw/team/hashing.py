# SPDX-License-Identifier: Apache-2.0
"""SHA-256 of every tensor in a weight file, and of all of them together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..data.files import digest_json
from ..errors import DataError
from .weight_files import Tensor, read_header


CHUNK_BYTES = 1 << 24
# Names of safetensors for the dtypes of torch.
TORCH_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


# Name, dtype, shape and SHA-256 of the bytes of a tensor.
Described = tuple[str, str, list[int], str]


def combine(folder: Path, tensors: Iterable[Described]) -> str:
    """Digest names, dtypes, shapes and digests of the bytes; a tensor that two files hold alike counts once."""
    unique: dict[str, Described] = {}
    for tensor in tensors:
        if unique.setdefault(tensor[0], tensor) != tensor:
            raise DataError(f"{folder} holds two different tensors `{tensor[0]}`. Save the checkpoint again.")
    return digest_json([list(unique[name]) for name in sorted(unique)])


def hash_safetensors(path: Path, pool: ThreadPoolExecutor) -> Iterator[tuple[Described, int]]:
    """Describe the tensors of a file, each with the bytes that were read for it."""
    tensors = read_header(path)
    for tensor, digest in zip(tensors, pool.map(_hash_tensor, tensors), strict=True):
        yield (tensor.name, tensor.dtype, tensor.shape, digest), tensor.size


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


def hash_bin(path: Path, _: ThreadPoolExecutor) -> Iterator[tuple[Described, int]]:
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
        yield (name, TORCH_DTYPES.get(dtype, dtype), list(tensor.shape), digest.hexdigest()), data.numel()
