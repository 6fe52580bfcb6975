# SPDX-License-Identifier: Apache-2.0
"""What an adapter's folder says: its kind and scaling, the model it was trained on, and whether it fits a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..arguments.start import ADAPTER_CONFIG
from ..data.files import digest_json, read_json
from ..errors import DataError
from .weight_files import Tensor, is_safetensors, main_file, read_header, weight_paths


if TYPE_CHECKING:
    from collections.abc import Iterator

# What decides, beside the tensors, which model an adapter makes. Values that say nothing are left out, so that another
# version of peft, which writes more keys, changes no fingerprint.
DECISIVE_KEYS = (
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out",
    "bias", "lora_bias", "target_modules", "target_parameters", "modules_to_save", "layer_replication",
    "trainable_token_indices", "use_qalora",
)  # fmt: skip
# Ways to begin an adapter that change the model below it, too.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "eva", "orthogonal")
PREFIX = "base_model.model."
HALVES = ("lora_A", "lora_B")
FLOATS = ("F64", "F32", "F16", "BF16")


class Piece(NamedTuple):
    """What a tensor of an adapter asks of the model: sizes of the weight's sides, None where any will do."""

    module: str
    rows: int | None
    columns: int | None


def read_adapter(folder: Path) -> dict[str, Any]:
    r"""Read an adapter's config.

    Raises:
        DataError: If it is not JSON or no object.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    if not isinstance(config, dict):
        raise DataError(f"{folder / ADAPTER_CONFIG} must hold a JSON object. Save the adapter again.")
    return config


def adapter_digest(folder: Path, tensors: str) -> str:
    r"""Digest an adapter: its tensors, and what its config says of their use.

    Args:
        folder: The adapter's.
        tensors: Digest of names, dtypes, shapes and bytes.
    """
    config = read_adapter(folder)
    said = {
        key: _in_order(config[key]) for key in DECISIVE_KEYS if config.get(key) not in (None, False, [], {}, "none")
    }
    return digest_json({"tensors": tensors, "config": said})


def adapter_problems(folder: Path) -> list[str]:
    """Say why an adapter cannot be a player, from its config alone; empty where it can."""
    try:
        config = read_adapter(folder)
    except DataError as error:
        return [str(error)]
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


def fit_problems(name: str, model: Path, adapter: Path) -> list[str]:
    r"""Compare the shapes of an adapter's tensors with a model's weights, by the headers of their files.

    Args:
        name: Of the player, for messages.
        model: The model's folder.
        adapter: The adapter's folder.

    Returns:
        One message where they do not fit; none where the files tell nothing: `.bin`, or weights that are packed.
    """
    weights, pieces = _shapes(model), list(_pieces(adapter))
    if not weights or not pieces:
        return []
    known = [piece for piece in pieces if f"{piece.module}.weight" in weights]
    advice = "Name the model that the adapter was trained on, or train the adapter anew."
    if not known:
        return [
            f"{name}: {adapter} is an adapter of another kind of model than {model}: it changes `{pieces[0].module}`, "
            f"for example, and the model has none of its {len({piece.module for piece in pieces})} modules. {advice}"
        ]
    for piece in known:
        shape = weights[f"{piece.module}.weight"]
        asked = (piece.rows, piece.columns)
        if len(shape) == 2 and any(wanted not in (None, side) for wanted, side in zip(asked, shape, strict=True)):
            sides = " x ".join("any" if side is None else str(side) for side in asked)
            return [
                f"{name}: {adapter} does not fit {model}: `{piece.module}` is {shape[0]} x {shape[1]} there, and the "
                f"adapter is for {sides}. {advice}"
            ]
    return []


def recorded_base(adapter: Path) -> Path | None:
    """The model that an adapter's config names, where that is a folder here."""
    recorded = str(read_adapter(adapter).get("base_model_name_or_path") or "")
    return Path(recorded) if recorded and Path(recorded).is_dir() else None


def _shapes(model: Path) -> dict[str, list[int]]:
    """Shape of each tensor of a model, empty where they cannot be compared."""
    main = main_file(model)
    if not is_safetensors(main):
        return {}
    tensors = [tensor for shard in weight_paths(main) for tensor in read_header(shard)]
    packed = any(tensor.dtype not in FLOATS for tensor in tensors)
    return {} if packed else {tensor.name: tensor.shape for tensor in tensors}


def _pieces(adapter: Path) -> Iterator[Piece]:
    main = main_file(adapter)
    if not is_safetensors(main) or read_adapter(adapter).get("fan_in_fan_out"):
        return
    for tensor in read_header(main):
        yield from _piece(tensor)


def _piece(tensor: Tensor) -> Iterator[Piece]:
    module, _, last = tensor.name.removeprefix(PREFIX).rpartition(".")
    if last != "weight" or len(tensor.shape) != 2:
        return
    module, _, half = module.rpartition(".") if module.endswith(HALVES) else (module, "", "")
    if not half:  # a whole module that was trained beside the adapter
        yield Piece(module, *tensor.shape)
    elif half == "lora_A":
        yield Piece(module, None, tensor.shape[1])
    else:
        yield Piece(module, tensor.shape[0], None)


def _in_order(value: Any) -> Any:
    """Lists of names come from sets, in any order."""
    return sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
