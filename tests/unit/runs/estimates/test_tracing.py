# SPDX-License-Identifier: Apache-2.0
"""Bytes and operations of code that runs without data."""

from __future__ import annotations

import pytest
import torch

from llamafactory_tpaw.runs.estimates.tracing import ByteTracer, trace_peak, trace_step


ROWS, WIDTH = 1000, 512


def linear(tracer: ByteTracer, layers: int = 2) -> torch.nn.Module:
    with tracer:
        return torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)])


def test_a_model_far_larger_than_this_machine() -> None:
    tracer = ByteTracer()
    with tracer:
        model = torch.nn.Linear(1 << 20, 1 << 20, bias=False)
    assert tracer.live == 4 << 40
    del model
    assert tracer.live == 0


def test_a_step_is_counted_byte_by_byte() -> None:
    tracer = ByteTracer()
    model = linear(tracer)
    tracer.watch_gradients(model)
    with tracer:
        inputs = torch.empty(ROWS, WIDTH)
    step = trace_step(tracer, model, lambda: model(inputs))
    weight, activation = 4 * WIDTH * WIDTH, 4 * ROWS * WIDTH
    assert step.gradients == 2 * weight
    # The first layer's output, its gradient, and the second layer's gradient before the weight has it.
    assert 0 <= step.activations - (2 * activation + weight) <= 64
    assert step.activations <= step.peak <= step.activations + step.gradients
    assert tracer.gradients == 0
    assert tracer.live == 2 * weight + activation


def test_operations_are_those_of_the_products() -> None:
    tracer = ByteTracer()
    model = linear(tracer, layers=1)
    with tracer:
        inputs = torch.empty(ROWS, WIDTH)
    tracer.reset_work()
    trace_peak(tracer, lambda: model(inputs))
    assert tracer.flops == 2 * ROWS * WIDTH * WIDTH
    tracer.reset_work()
    with tracer, torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(inputs)
    assert tracer.flops == 2 * ROWS * WIDTH * WIDTH


def test_autocast_keeps_copies_of_the_weights() -> None:
    tracer = ByteTracer()
    model = linear(tracer)
    with tracer:
        inputs = torch.empty(8, WIDTH)

    def half() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(inputs)

    plain = trace_step(tracer, model, lambda: model(inputs)).activations
    assert trace_step(tracer, model, half).activations - plain > 0.9 * 2 * WIDTH * WIDTH


def test_ids_and_masks_are_real() -> None:
    with ByteTracer():
        scores = torch.zeros(4, 8)
        labels = torch.tensor([[1, -100], [2, 3]])
        rows, columns = (labels != -100).nonzero(as_tuple=True)
        assert rows.tolist() == [0, 1, 1]
        assert scores[rows, labels[rows, columns]].shape == (3,)
        assert torch.arange(3).tolist() == [0, 1, 2]
        assert torch.full((2,), 5).tolist() == [5, 5]


def test_questions_about_data_are_answered_with_yes_and_numbers_with_no() -> None:
    with ByteTracer():
        scores = torch.zeros(4)
        assert torch.isfinite(scores).all()
        with pytest.raises(NotImplementedError, match="asked for a number"):
            float(scores.sum())
