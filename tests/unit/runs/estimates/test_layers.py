# SPDX-License-Identifier: Apache-2.0
"""A deep model traced by two shallow ones, and the head's blocks by two of them: the same as all of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llamafactory_tpaw.data.opponents import Triplet
from llamafactory_tpaw.objectives import head
from llamafactory_tpaw.objectives.head import head_logps
from llamafactory_tpaw.runs.estimates import layers
from llamafactory_tpaw.runs.estimates.head_blocks import head_on
from llamafactory_tpaw.runs.estimates.layers import size_in_training, trace_deep_training
from llamafactory_tpaw.runs.estimates.passes import (
    Pass,
    model_without_data,
    see_shortcuts,
    trace_training,
    whole_pass,
)
from llamafactory_tpaw.runs.estimates.tracing import ByteTracer, Step, trace_step
from llamafactory_tpaw.team.members import load_encoder
from tests import encoders
from tests.runs import Project


ROWS, WIDTH, VOCABULARY = 2048, 64, 1 << 17


def triplets() -> list[Triplet]:
    ids = np.zeros(24, dtype=np.int32)
    return [Triplet(f"{row}-0", 0, np.full(8, row, dtype=np.int32), ids, ids + 1, False) for row in range(4)]


def both_ways(
    folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], **changes: Any
) -> tuple[Pass, Pass | None]:
    """Trace a model in full and by shallow ones."""
    shutil.copytree(tiny_model, folder / "theta_0")
    path = folder / "theta_0" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    project = Project(folder, folder / "theta_0")
    run = encoders.parse(project, **changes)
    monkeypatch.chdir(folder)
    tokenizer = load_encoder(run)[0]
    tracer = ByteTracer()
    model = model_without_data(run, tokenizer, tracer, trainable=True)
    size = size_in_training(model)
    shortcuts = see_shortcuts(run, tracer, model)
    full = whole_pass(trace_training(run, tokenizer, tracer, model, shortcuts, triplets()))
    deep = trace_deep_training(run, tokenizer, size, triplets())
    return full, deep and deep[0]


@pytest.mark.parametrize("changes", [{}, {"bf16": True}, {"disable_gradient_checkpointing": True}])
def test_a_deep_model_is_its_few_layers_extended(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    config = {"num_hidden_layers": 10, "layer_types": ["full_attention"] * 10}
    full, extended = both_ways(tmp_path, tiny_model, monkeypatch, config, **changes)
    assert extended is not None
    assert extended.step.gradients == full.step.gradients
    assert extended.step == pytest.approx(full.step, rel=0.01)
    assert (extended.flops, extended.tokens) == (full.flops, full.tokens)
    assert extended.calls == pytest.approx(full.calls, rel=0.01)


def test_layers_that_differ_are_traced_one_by_one(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["full_attention"] * 9 + ["sliding_attention"]
    assert layers._depths({"num_hidden_layers": 10, "layer_types": kinds}) is None
    assert layers._depths({"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}) is None
    assert layers._depths({"num_hidden_layers": 16, "mlp_only_layers": [0] * 16}) is None
    assert layers._depths({"num_hidden_layers": 16, "layer_types": ["a", "b"] * 8}) == (4, 8)
    assert layers._depths({"num_hidden_layers": 32}) == (2, 4)
    config = {"num_hidden_layers": 10, "layer_types": ["full_attention"] * 10}
    # A layer that is wider than the others is not said by the config, but shows in the number of weights.
    measure = layers._extended
    monkeypatch.setattr(layers, "_extended", lambda *args: measure(*args) + 1)
    assert both_ways(tmp_path, tiny_model, monkeypatch, config)[1] is None


def trace_head(device: str | None) -> tuple[Step, int, int]:
    tracer = ByteTracer()
    with tracer:
        model = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
        hidden = torch.empty(ROWS, WIDTH, requires_grad=True)
    tracer.watch_gradients(model)

    def forward() -> torch.Tensor:
        return head_logps(hidden, model.weight, torch.zeros(ROWS, dtype=torch.long))

    if device is None:
        step = trace_step(tracer, model, forward)
    else:
        with head_on(device, tracer):
            step = trace_step(tracer, model, forward)
    return step, tracer.flops, tracer.calls


def test_two_blocks_stand_for_all() -> None:
    (step, flops, calls), (all_step, all_flops, all_calls) = trace_head("cpu"), trace_head(None)
    assert step == all_step
    assert flops == pytest.approx(all_flops, rel=0.001)
    assert calls == pytest.approx(all_calls, rel=0.05)


def test_a_device_has_larger_blocks() -> None:
    here, there = trace_head("cpu")[0], trace_head("cuda")[0]
    more = 4 * (head.BLOCK_SCORES_ELSEWHERE - head.BLOCK_SCORES["cpu"])
    assert more <= there.activations - here.activations <= 3 * more
    assert trace_head("cpu")[0] == here
