# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints in every form in which transformers saves and loads them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


CONFIG = {"model_type": "qwen2", "hidden_size": 32, "architectures": ["Qwen2ForCausalLM"], "rope": {"theta": 1e4}}


def make_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.embed.weight": torch.randn(7, 5, generator=generator),
        "model.layer.10.weight": torch.randn(3, 4, generator=generator).to(torch.bfloat16),
        "model.layer.2.weight": torch.randn(2, 3, 4, generator=generator).half(),
        "model.count": torch.tensor(3),
        "model.empty": torch.zeros(0, 4),
        "model.mask": torch.tensor([True, False, True]),
    }


def write_config(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def save_single(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, write_config(folder) / "model.safetensors", metadata={"format": "pt"})
    return folder


def shard(tensors: dict[str, Tensor], suffix: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Split tensors over two files, the last names first."""
    names = sorted(tensors, reverse=True)
    files = {f"model-{part + 1}-of-2.{suffix}": names[part::2] for part in range(2)}
    weight_map = {name: file for file, members in files.items() for name in members}
    return {file: {name: tensors[name] for name in members} for file, members in files.items()}, weight_map


def save_sharded(folder: Path, tensors: dict[str, Tensor]) -> Path:
    files, weight_map = shard(tensors, "safetensors")
    for file, members in files.items():
        save_file(members, write_config(folder) / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def save_bin(folder: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save(tensors, write_config(folder) / "pytorch_model.bin")
    return folder


def save_old_bin(folder: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save(tensors, write_config(folder) / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return folder


def save_sharded_bin(folder: Path, tensors: dict[str, Tensor]) -> Path:
    files, weight_map = shard(tensors, "bin")
    for file, members in files.items():
        torch.save(members, write_config(folder) / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
