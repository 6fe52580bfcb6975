# SPDX-License-Identifier: Apache-2.0
"""What is found missing in a checkpoint without reading a tensor, and from which one training goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llamafactory_tpaw.arguments.start import is_adapter
from llamafactory_tpaw.team.checkpoint import (
    check_checkpoint_complete,
    find_resume_point,
)

from .checkpoints import make_tensors, save_adapter, save_sharded, save_single


WEIGHTS = ("config.json", "model.safetensors")
WHOLE = (*WEIGHTS, "trainer_state.json")
STATES = {
    "Trainer": ("optimizer.pt", "scheduler.pt"),
    "DeepSpeed": ("global_step4/mp_rank_00_model_states.pt",),
    "FSDP": ("optimizer.bin", "scheduler.pt"),
    "FSDP in shards": ("optimizer_0/.metadata", "scheduler.pt"),
}


def test_an_index_that_does_not_fit(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "a", make_tensors())
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": whole["weight_map"] | {"model.more": "model-1-of-2.safetensors"}}))
    (problem,) = check_checkpoint_complete(folder)
    assert "names 1 tensors that no shard holds, the first `model.more`" in problem
    for damaged in ("{", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'):
        index.write_text(damaged)
        assert index.name in check_checkpoint_complete(folder)[0]


def test_every_cut_of_a_file_is_found(tmp_path: Path) -> None:
    folder = save_single(tmp_path / "a", make_tensors())
    path, content = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()
    for size in {0, 4, 8, 50, len(content) - 1}:
        path.write_bytes(content[:size])
        (problem,) = check_checkpoint_complete(folder)
        assert f"{path} is cut off or damaged: it has {size} bytes" in problem
    path.write_bytes(content + b"\0")
    assert "its header says" in check_checkpoint_complete(folder)[0]
    places = (b'{"a": {"dtype": "U8", "shape": [], "data_offsets": %s}}' % each for each in (b"[0, 0.0]", b"[-9, 0]"))
    for header in (b"[]", b'{"a": {}}', b"\xff\xff", *places):
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        assert f"{path} is cut off or damaged" in check_checkpoint_complete(folder)[0]


def test_adapters(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "a")
    assert check_checkpoint_complete(folder) == []
    (folder / "adapter_model.safetensors").unlink()
    assert "none of adapter_model.safetensors is there" in check_checkpoint_complete(folder)[0]
    assert is_adapter(folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "OFT"}, "is an adapter of kind OFT"),
        ({"bias": "all"}, "trains biases"),
        ({"init_lora_weights": "pissa_niter_16"}, "began by changing the model"),
    ],
)
def test_adapters_that_cannot_be_players(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    (problem,) = check_checkpoint_complete(save_adapter(tmp_path / "c", **config))
    assert problem.startswith(f"{tmp_path}/c {said}")
    assert "llamafactory-cli export" in problem


def save_step(folder: Path, step: int, *names: str) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    for name in names:
        path = checkpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        if path.suffix == ".safetensors":
            save_file({"weight": torch.zeros(2)}, path)
    return checkpoint


@pytest.mark.parametrize("kind", STATES)
def test_training_goes_on_from_the_newest_whole_checkpoint(tmp_path: Path, kind: str) -> None:
    save_step(tmp_path, 2, *WHOLE, *STATES[kind])
    newest = save_step(tmp_path, 10, *WHOLE, *STATES[kind])
    save_step(tmp_path, 12, *WEIGHTS, *STATES[kind])
    save_step(tmp_path, 11, *WHOLE)
    for step, name in ((13, "model.safetensors"), (14, "trainer_state.json")):
        (save_step(tmp_path, step, *WHOLE, *STATES[kind]) / name).write_text('{"epoch": 1')
    (tmp_path / "checkpoint-best").mkdir()
    assert find_resume_point(tmp_path) == newest


@pytest.mark.parametrize("name", ["scheduler.pt", "optimizer.pt", "optimizer.bin", "optimizer_0/.metadata"])
def test_half_of_the_optimizers_state_is_none(tmp_path: Path, name: str) -> None:
    save_step(tmp_path, 2, *WHOLE, name)
    assert find_resume_point(tmp_path) is find_resume_point(tmp_path / "nothing") is None
