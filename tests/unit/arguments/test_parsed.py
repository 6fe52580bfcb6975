# SPDX-License-Identifier: Apache-2.0
"""LlamaFactory's own parser for work in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory_tpaw.arguments.parsed import DISTRIBUTED_KEYS, parse_single_process


def test_training_keys_of_other_processes_do_not_stand_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").touch()  # LlamaFactory would refuse to train into this folder
    given = {
        "stage": "tpaw",
        "do_train": True,
        "model_name_or_path": "some/model",
        "finetuning_type": "full",
        "dataset": "play_iter0",
        "template": "qwen",
        "output_dir": "out",
        "tpaw_players": ["a", "b"],
        "tpaw_eta": "3",
        "seed": 7,
        "use_cpu": True,
        "deepspeed": "no/such/file.json",
    }
    before = dict(given)
    run = parse_single_process(given)
    assert given == before
    assert "deepspeed" in DISTRIBUTED_KEYS
    assert run.training.deepspeed is None
    assert run.training.resume_from_checkpoint is None
    assert (run.finetuning.stage, run.finetuning.tpaw_eta, run.finetuning.tpaw_players) == ("tpaw", 3.0, ["a", "b"])
    assert (run.training.seed, run.data.template, run.model.model_name_or_path) == (7, "qwen", "some/model")
