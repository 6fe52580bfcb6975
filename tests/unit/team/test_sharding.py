# SPDX-License-Identifier: Apache-2.0
"""In which dtypes the policy computes under DeepSpeed, FSDP and without, and what a player's engine is told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llamafactory_tpaw.arguments.parsed import RunArguments
from llamafactory_tpaw.team.sharding import Precision, deepspeed_config, player_config, precision_of, sharding_of


BF16, FP16 = torch.bfloat16, torch.float16


def run_with(engine: dict[str, Any] | None = None, **training: Any) -> RunArguments:
    defaults = {"bf16": False, "fp16": False, "world_size": 2, "device": torch.device("cuda"), "fsdp": ""}
    return RunArguments(None, None, SimpleNamespace(**defaults | training), None, None, engine or {})


def deepspeed(stage: int, **config: Any) -> SimpleNamespace:
    whole = {"zero_optimization": {"stage": stage}, **config}
    return SimpleNamespace(config=whole, is_zero3=lambda: stage == 3)


@pytest.mark.parametrize(
    ("engine", "training", "expected"),
    [
        ({}, {}, Precision(None, None)),
        ({}, {"bf16": True}, Precision(None, BF16)),
        ({}, {"bf16": True, "fsdp": ["full_shard"]}, Precision(BF16, BF16)),
        ({"fsdp": "full_shard"}, {"bf16": True}, Precision(BF16, BF16)),
        ({"deepspeed": {"bf16": {"enabled": "auto"}}}, {"bf16": True}, Precision(BF16, None)),
        ({"deepspeed": {"fp16": {"enabled": True}}}, {}, Precision(FP16, None)),
        ({"deepspeed": {}}, {"bf16": True}, Precision(None, None)),
        ({}, {"hf_deepspeed_config": deepspeed(2, bf16={"enabled": True}), "bf16": True}, Precision(BF16, None)),
    ],
)
def test_the_policys_dtypes(engine: dict[str, Any], training: dict[str, Any], expected: Precision) -> None:
    assert precision_of(run_with(engine, **training)) == expected


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({}, None),
        ({"hf_deepspeed_config": deepspeed(2)}, None),
        ({"hf_deepspeed_config": deepspeed(3)}, "zero3"),
        ({"fsdp": ["full_shard"]}, "fsdp"),
        ({"fsdp": ["full_shard"], "device": torch.device("cpu")}, None),
    ],
)
def test_who_cuts_weights_into_shards(training: dict[str, Any], expected: str | None) -> None:
    assert sharding_of(run_with(**training).training) == expected


def test_a_players_engine_has_nothing_of_training(tmp_path: Path) -> None:
    config = {
        "zero_optimization": {
            "stage": 3,
            "offload_param": {"device": "cpu"},
            "offload_optimizer": {"device": "cpu"},
            "stage3_param_persistence_threshold": "auto",
        },
        "optimizer": {"type": "AdamW"},
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
    }
    (tmp_path / "ds.json").write_text(json.dumps(config))
    assert deepspeed_config(run_with({"deepspeed": str(tmp_path / "ds.json")})) == config, "it scores for a training"
    assert player_config(config) == {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}},
        "bf16": {"enabled": True},
    }
