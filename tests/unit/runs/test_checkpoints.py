# SPDX-License-Identifier: Apache-2.0
"""From which checkpoint training goes on: the newest whole one with an optimizer's state, whoever wrote that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llamafactory_tpaw.runs.checkpoints import find_resume_point


WEIGHTS = ("config.json", "model.safetensors")
WHOLE = (*WEIGHTS, "trainer_state.json")
KINDS = {
    "Trainer": ("optimizer.pt", "scheduler.pt"),
    "DeepSpeed": ("global_step4/mp_rank_00_model_states.pt",),
    "FSDP": ("optimizer.bin", "scheduler.pt"),
    "FSDP in shards": ("optimizer_0/.metadata", "scheduler.pt"),
}


def save(folder: Path, step: int, *names: str) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    for name in names:
        path = checkpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        if path.suffix == ".safetensors":
            save_file({"weight": torch.zeros(2)}, path)
    return checkpoint


@pytest.mark.parametrize("kind", KINDS)
def test_the_newest_whole_one(tmp_path: Path, kind: str) -> None:
    save(tmp_path, 2, *WHOLE, *KINDS[kind])
    newest = save(tmp_path, 10, *WHOLE, *KINDS[kind])
    torn = save(tmp_path, 12, *WEIGHTS, *KINDS[kind])
    save(tmp_path, 11, *WHOLE)
    point = find_resume_point(tmp_path)
    assert (point.checkpoint, point.torn) == (newest, (torn,))


@pytest.mark.parametrize(
    "names", [("scheduler.pt",), ("optimizer.pt",), ("optimizer.bin",), ("optimizer_0/.metadata",)]
)
def test_half_of_the_optimizers_state_is_none(tmp_path: Path, names: tuple[str, ...]) -> None:
    save(tmp_path, 2, *WHOLE, *names)
    assert find_resume_point(tmp_path).checkpoint is None
    assert find_resume_point(tmp_path / "nothing").checkpoint is None
