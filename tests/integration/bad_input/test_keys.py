# SPDX-License-Identifier: Apache-2.0
"""Keys that are unknown, out of range or missing: all of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import Project

from .conftest import Refuse
from .spoiling import anew, cut, without_triplets


pytestmark = pytest.mark.integration


def test_all_at_once(project: Project, refuse: Refuse) -> None:
    message = refuse(
        anew(
            project,
            2,
            tpaw_eta=0.5,
            tpaw_gamma=-1,
            tpaw_team_size=0,
            tpaw_reward_scale=0.0,
            tpaw_gama=1.0,
            learning_rat=1.0,
            finetuning_type="lora",
            template="qwenn",
            temperature=None,
            top_p=2.0,
            top_k="many",
        )
    )
    problems = message.split("\n")
    assert len(problems) == 11
    for part in (
        "`tpaw_gama` is not a key of `train`. Did you mean `tpaw_gamma`?",
        "`learning_rat` is not a key of `train`. Did you mean `learning_rate`?",
        "`tpaw_eta` is 0.5, but must be >= 1.",
        "`tpaw_gamma` is -1, but must be >= 0.",
        "`tpaw_team_size` is 0, but must be >= 1.",
        "`tpaw_reward_scale` is 0.0, but must be > 0.",
        "`finetuning_type` is lora, but this version of stage `tpaw` trains all weights.",
        "`template: qwenn` is not a template of LlamaFactory. Did you mean `qwen`?",
        "`temperature` must be given where `tpaw_prompts` is set",
        "`top_p` is 2.0, but must be > 0 and <= 1.",
        "`top_k` is 'many', but must be a whole number.",
    ):
        assert sum(problem.startswith(part) for problem in problems) == 1, part


def test_keys_and_checkpoints_at_once(project: Project, refuse: Refuse) -> None:
    cut(Path("saves/sft/model.safetensors"))
    message = refuse(anew(project, 1, tpaw_eta=0.5, dataset="play_iter0,none", eval_dataset="nowhere"))
    assert len(message.split("\n")) == 4
    for part in ("`tpaw_eta` is 0.5", "saves/sft/model.safetensors is cut off", "`none` is not an entry"):
        assert part in message
    assert "`eval_dataset: nowhere` is not an entry of data/dataset_info.json" in message


def test_sampling_keys_absent(project: Project, refuse: Refuse) -> None:
    message = refuse(without_triplets(project, 0, temperature=None, top_p=None, top_k=None))
    assert "`temperature`, `top_p`, `top_k` must be given" in message
    assert "LlamaFactory's defaults (0.95, 0.7, 50)" in message


def test_required_keys_absent(refuse: Refuse) -> None:
    message = refuse({"stage": "tpaw", "do_train": True, "finetuning_type": "full"})
    assert [line.split("`")[1] for line in message.split("\n")] == [
        "model_name_or_path",
        "template",
        "dataset",
        "output_dir",
    ]


def test_lora_by_default(project: Project, refuse: Refuse) -> None:
    message = refuse(anew(project, 0, finetuning_type=None))
    assert "`finetuning_type` is lora (LlamaFactory's default)" in message
    assert "Set `finetuning_type: full`" in message


def test_several_processes(project: Project, refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    message = refuse(without_triplets(project, 0))
    assert "would start 1 x 2 training processes" in message
    assert "`CUDA_VISIBLE_DEVICES=0`" in message
