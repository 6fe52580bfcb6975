# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints: whole, in shards, and adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


CONFIG = {"model_type": "qwen2", "hidden_size": 32, "architectures": ["Qwen2ForCausalLM"], "rope": {"theta": 1e4}}
MODULE = "model.layers.0.up_proj"


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


def write_config(folder: Path, config: dict[str, Any] = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_single(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, write_config(folder) / "model.safetensors", metadata={"format": "pt"})
    return folder


def shard(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Split tensors over two files, the last names first."""
    names = sorted(tensors, reverse=True)
    return {
        f"model-{part + 1}-of-2.safetensors": {name: tensors[name] for name in names[part::2]} for part in range(2)
    }


def save_sharded(folder: Path, tensors: dict[str, Tensor]) -> Path:
    files = shard(tensors)
    for file, members in files.items():
        save_file(members, write_config(folder) / file)
    weight_map = {name: file for file, members in files.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def save_adapter(folder: Path, fill: float = 1.0, **config: Any) -> Path:
    folder.mkdir(parents=True)
    tensors = {"lora_A": torch.full((2, 4), fill), "lora_B": torch.full((6, 2), fill)}
    named = {f"base_model.model.{MODULE}.{half}.weight": tensor for half, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj", "q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


def flip(path: Path, position: int) -> None:
    """Change one byte; a negative position counts from the end."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    with open(path, "r+b") as stream:  # the inode stays
        stream.write(content)
