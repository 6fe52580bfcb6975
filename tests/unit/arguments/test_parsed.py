# SPDX-License-Identifier: Apache-2.0
"""LlamaFactory's own parser for work in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests import encoders
from tests.runs import Project


if TYPE_CHECKING:
    from pathlib import Path


def test_training_keys_of_other_processes_do_not_stand_in_the_way(tmp_path: Path) -> None:
    output = tmp_path / "saves" / "out"
    output.mkdir(parents=True)
    (output / "model.safetensors").touch()  # LlamaFactory would refuse to train into this folder
    run = encoders.parse(Project(tmp_path, tmp_path), deepspeed="no/such/file.json", tpaw_eta="3")
    assert run.training.deepspeed is run.training.resume_from_checkpoint is None
    assert (run.finetuning.stage, run.finetuning.tpaw_eta, run.training.output_dir) == ("tpaw", 3.0, str(output))
