# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's folder holds: a model or an adapter, in which files and dtypes, and whether it is all there."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from ..arguments.start import ADAPTER_CONFIG, is_adapter
from ..data.files import cannot_read, digest_file, read_json
from ..errors import DataError
from ..lf.logs import get_logger
from .manifest import read_manifest


MAX_HEADER_BYTES = 100_000_000
# As transformers and peft call them. A single file wins over an index, as in transformers.
MODEL_FILE, MODEL_INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_FILE = "adapter_model.safetensors"
# Ways to begin an adapter that change the model below it, too.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "eva", "orthogonal")
PRUNED, STATE = "tpaw_pruned.json", "trainer_state.json"


class Tensor(NamedTuple):
    """Where one tensor of a safetensors file is: `start` and `size` in bytes."""

    name: str
    dtype: str
    shape: list[int]
    path: Path
    start: int
    size: int


def check_checkpoint_complete(folder: Path) -> list[str]:
    """Say what a checkpoint lacks, without reading a tensor: files, shards, and bytes at the end of a file."""
    folder = Path(folder)
    try:
        read_tensors(folder)
        if is_adapter(folder):
            return _adapter_problems(folder)
        read_object(folder / "config.json")
    except DataError as error:
        return error.problems
    return []


def weight_paths(folder: Path) -> list[Path]:
    """Return the files that transformers would load as a checkpoint's weights: all tensors, or an index and shards."""
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {kind}. Give the folder of a saved checkpoint.")
    if is_pruned(folder):
        raise DataError(
            f"{folder} has no weights any more: they were pruned (`tpaw_keep_checkpoints: needed`). Restore them from "
            f"a copy and delete {folder / PRUNED}, or repeat its iteration with `overwrite_output_dir: true`."
        )
    names = (ADAPTER_FILE,) if is_adapter(folder) else (MODEL_FILE, MODEL_INDEX)
    main = next((folder / name for name in names if (folder / name).exists()), None)
    pickled = min(folder.glob("*_model*.bin"), default=None)
    if main is None and pickled is not None:
        raise DataError(
            f"{folder} has its weights in {pickled.name}, which is not read, because unpickling can run code. Load "
            "it with transformers and save it again, as safetensors."
        )
    if main is None:
        raise DataError(
            f"{folder} holds no weights: none of {', '.join(names)} is there. "
            "Was saving interrupted, or its iteration not played yet?"
        )
    if main.name != MODEL_INDEX:
        return [main]
    return [main, *(folder / name for name in sorted(set(_weight_map(main).values())))]


def read_tensors(folder: Path) -> list[Tensor]:
    """Read which tensors a checkpoint holds, from the headers of its files, and check that they are all there."""
    paths = weight_paths(folder)
    tensors = [tensor for path in paths if path.name != MODEL_INDEX for tensor in read_header(path)]
    if paths[0].name == MODEL_INDEX:
        absent = sorted(_weight_map(paths[0]).keys() - {tensor.name for tensor in tensors})
        if absent:
            raise DataError(
                f"{paths[0]} names {len(absent)} tensors that no shard holds, the first `{absent[0]}`. Save or "
                "download the checkpoint again."
            )
    return tensors


def read_header(path: Path) -> list[Tensor]:
    """Read which tensors a safetensors file holds, and check that it ends where the last of them does."""
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"it has {size} bytes, too few for its header")
            header = json.loads(stream.read(length))
        tensors = []
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                if not (type(begin) is type(end) is int and 0 <= begin <= end):
                    raise ValueError(f"`{name}` is from {begin} to {end}")
                tensors.append(Tensor(name, entry["dtype"], entry["shape"], path, 8 + length + begin, end - begin))
        last = max((tensor.start + tensor.size for tensor in tensors), default=8 + length)
        if last != size:
            raise ValueError(f"it has {size} bytes, its header says {last}")
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is cut off or damaged: {error}. Save or download it again.") from error
    return tensors


def weight_dtype(folder: Path) -> str:
    """Name the dtype that most of a checkpoint's bytes are in, as safetensors does (`F32`, `BF16`)."""
    sizes: Counter[str] = Counter()
    for tensor in read_tensors(folder):
        sizes[tensor.dtype] += tensor.size
    return sizes.most_common(1)[0][0]


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file of a checkpoint that holds an object; anything else is a `DataError`."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object. Save the checkpoint again.")
    return content


def read_state(folder: Path) -> dict[str, Any]:
    """Read what a training's `trainer_state.json` says of its steps, and the numbers that it logged."""
    state = read_object(folder / STATE)
    check_unchanged(folder)
    try:
        logged = [{k: row[k] for k in row if isinstance(row[k], int | float)} for row in state.get("log_history", [])]
        counts = {"global_step": int(state.get("global_step", 0)), "max_steps": int(state.get("max_steps", 2**63))}
        return state | counts | {"epoch": float(state.get("epoch") or 0), "log_history": logged}
    except (TypeError, ValueError) as error:
        raise DataError(f"{folder / STATE} is damaged: {error}. Restore it, or train again.") from error


def is_pruned(folder: Path) -> bool:
    """Whether a folder's weights were removed on purpose."""
    return (folder / PRUNED).is_file()


def find_resume_point(folder: Path) -> Path | None:
    """Return the newest `checkpoint-*` of an output folder that is whole and holds the optimizer's state."""
    numbered = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    for checkpoint in sorted(numbered, key=lambda path: int(path.name[11:]), reverse=True):
        # DeepSpeed keeps the scheduler's state in its folder, too. FSDP leaves optimizer.bin, or a folder of shards.
        states = ("optimizer.pt", "optimizer.bin", "optimizer_*/.metadata")
        has_state = any(any(checkpoint.glob(name)) for name in states) and (checkpoint / "scheduler.pt").is_file()
        try:
            read_state(checkpoint)  # which is written last
        except DataError as error:
            get_logger(__name__).warning_rank0(f"{checkpoint} is passed over: {error}")
            continue
        if (has_state or any(checkpoint.glob("global_step*"))) and not check_checkpoint_complete(checkpoint):
            return checkpoint
    return None


def check_unchanged(folder: Path) -> None:
    """Raise a `DataError` where a file of a training is not as `tpaw.json` says: of a checkpoint any, else STATE."""
    manifest = read_manifest(folder)
    recorded = (manifest.files or {STATE: manifest.result.get("files", {}).get(STATE)}) if manifest else {}
    for name, digest in recorded.items():
        if digest not in (None, digest_file(folder / name)):
            raise DataError(f"{folder / name} was changed since it was saved. Restore it, or train again.")


def _adapter_problems(folder: Path) -> list[str]:
    """Say why an adapter cannot be a player, from its config alone."""
    config = read_object(folder / ADAPTER_CONFIG)
    kind, begun = str(config.get("peft_type", "LORA")), str(config.get("init_lora_weights"))
    refused = {
        f"is an adapter of kind {kind}": kind != "LORA",
        f"trains biases of the model below it (`bias: {config.get('bias')}`)": config.get("bias", "none") != "none",
        f"began by changing the model below it (`init_lora_weights: {begun}`)": begun.startswith(CHANGES_BASE),
    }
    return [
        f"{folder} {what}, so it cannot be taken off the model that the players share. Merge it into the model "
        "(`llamafactory-cli export`) and use that."
        for what, found in refused.items()
        if found
    ]


def _weight_map(index: Path) -> dict[str, str]:
    """Which file holds each tensor."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise DataError(f"{index} must hold a `weight_map` from tensors to files. Save the checkpoint again.")
    return weight_map
