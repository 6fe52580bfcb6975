# SPDX-License-Identifier: Apache-2.0
"""Which files hold a checkpoint's weights, and what the headers of safetensors files say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..arguments.start import is_adapter
from ..data.files import read_json, sha256_hex
from ..errors import DataError


if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_HEADER_BYTES = 100_000_000
# In the order in which transformers looks for them.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
INDEX_SUFFIX = ".index.json"


class Tensor(NamedTuple):
    """Where one tensor of a safetensors file is: `start` and `size` in bytes."""

    name: str
    dtype: str
    shape: list[int]
    path: Path
    start: int
    size: int


def main_file(folder: Path) -> Path:
    r"""Return the file that transformers would load: the weights, the index of their shards, or an adapter's weights.

    Raises:
        DataError: If there is none.
    """
    names = ADAPTER_FILES if is_adapter(folder) else WEIGHT_FILES
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise DataError(_no_weights(folder, names))


def is_safetensors(main: Path) -> bool:
    """Whether the weights are in safetensors files, one or several."""
    return ".safetensors" in main.name


def weight_paths(main: Path) -> list[Path]:
    r"""Return the files that hold tensors: the one given, or the shards that it is the index of, by name.

    Raises:
        DataError: If an index is none.
    """
    return _shards(main) if main.name.endswith(INDEX_SUFFIX) else [main]


def read_header(path: Path) -> list[Tensor]:
    r"""Read which tensors a safetensors file holds, and check that it ends where the last of them does.

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
            Tensor(name, entry["dtype"], entry["shape"], path, 8 + length + entry["data_offsets"][0],
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


def header_digest(path: Path) -> str:
    """Return the SHA-256 of a safetensors file up to its first tensor."""
    with open(path, "rb") as stream:
        start = stream.read(8)
        return sha256_hex(start + stream.read(int.from_bytes(start, "little")))


def _shards(index: Path) -> list[Path]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise DataError(f"{index} must hold a `weight_map` from tensors to files. Save the checkpoint again.")
    return [index.parent / name for name in sorted(set(weight_map.values()))]


def _no_weights(folder: Path, names: Sequence[str]) -> str:
    parts = sorted(path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    found = f" It has {', '.join(parts[:3])}, but no index of shards." if parts else ""
    return (
        f"{folder} holds no weights: none of {', '.join(names)} is there.{found} "
        "Was saving interrupted? Save the checkpoint again or name another one."
    )
