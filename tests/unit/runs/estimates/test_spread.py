# SPDX-License-Identifier: Apache-2.0
"""How many processes a command starts, and what each holds of the whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llamafactory_tpaw.arguments.parsed import RunArguments
from llamafactory_tpaw.runs.estimates.spread import Spread, count_processes, spread_of


@pytest.mark.parametrize(
    ("devices", "environment", "expected"),
    [
        (0, {}, 1),
        (1, {}, 1),
        (8, {}, 8),
        (8, {"NPROC_PER_NODE": "4"}, 4),
        (8, {"NNODES": "2"}, 16),
        (1, {"FORCE_TORCHRUN": "1", "NNODES": "4"}, 4),
        (0, {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}, 2),
        (8, {"USE_RAY": "1"}, 3),
    ],
)
def test_processes_are_counted_as_they_would_be_started(
    monkeypatch: pytest.MonkeyPatch, devices: int, environment: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert count_processes(3) == expected


@pytest.mark.parametrize(
    ("engine", "stage"),
    [
        ({}, 0),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, 2),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, 3),
        ({"deepspeed": {}}, 0),
        ({"fsdp": "full_shard"}, 3),
    ],
)
def test_the_stage_is_that_of_the_training(
    monkeypatch: pytest.MonkeyPatch, engine: dict[str, Any], stage: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    training = SimpleNamespace(bf16=True, fp16=False, device=torch.device("cuda"), fsdp="")
    assert spread_of(RunArguments(None, None, training, None, None, engine)) == Spread(4, stage)


def test_what_is_shared_out_is_a_share() -> None:
    spread = Spread(4, 2)
    assert [spread.share(100, stage) for stage in (1, 2, 3)] == [25, 25, 100]
    assert [bool(spread.describe(stage)) for stage in (1, 2, 3)] == [True, True, False]
    assert Spread().describe(0) == ""
