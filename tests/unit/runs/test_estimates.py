# SPDX-License-Identifier: Apache-2.0
"""Estimates by hand: known models, and what a run's keys change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, TrainingArguments

from llamafactory_tpaw.errors import ConfigError, Findings
from llamafactory_tpaw.runs import estimates
from llamafactory_tpaw.runs.checks import Sample
from llamafactory_tpaw.runs.estimates import Weights, weight_shapes, weights_of
from llamafactory_tpaw.runs.plan import make_plan, with_defaults
from tests import encoders
from tests.runs import Project


QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
PROMPT, RESPONSE, BATCH = 256, 768, 4


def counted(config: dict[str, Any] = QWEN, **keys: Any) -> Weights:
    shapes = weight_shapes("some/hub-model", AutoConfig.for_model(**config))
    return weights_of(with_defaults({"finetuning_type": "full", **keys}), shapes)


def test_a_known_model_has_its_known_size() -> None:
    weights = counted()
    assert weights.count / 1e9 == pytest.approx(1.54, rel=0.01)
    assert counted(QWEN | {"tie_word_embeddings": False}).count == weights.count + 151936 * 1536
    # LlamaFactory trains float32 weights unless told otherwise, and AdamW keeps two numbers for each.
    assert (weights.held, weights.state) == (4 * weights.count, 8 * weights.count)
    assert counted(pure_bf16=True).held == 2 * weights.count
    assert counted(optim="adamw_8bit").state == 2 * weights.count
    assert counted(optim="sgd").state == 0


def test_an_adapter_is_small_beside_its_model() -> None:
    """By hand: rank 8 on the seven matrices of each of Qwen2.5-1.5B's 28 layers are 9.23 million weights."""
    weights = counted(finetuning_type="lora", lora_rank=8, lora_target="all", bf16=True)
    hidden, keys, inner = 1536, 256, 8960
    layer = 2 * (hidden + hidden) + 2 * (hidden + keys) + 3 * (hidden + inner)
    assert weights.gradients / 4 == 8 * 28 * layer == 9_232_384
    assert weights.held == 2 * weights.count + weights.gradients
    quantized = counted(finetuning_type="lora", lora_rank=8, bf16=True, quantization_bit=4)
    assert quantized.held < weights.held / 2
    assert counted(finetuning_type="lora", lora_target="q_proj").gradients / 4 == 8 * 28 * 2 * hidden


def test_memory_is_what_a_calculation_gives(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, "theta_0")
    Path("theta_0/config.json").write_text(json.dumps(QWEN))
    shapes = weight_shapes("some/hub-model", AutoConfig.for_model(**QWEN))
    monkeypatch.setattr(estimates, "weight_shapes", lambda *_: shapes)
    project, length, count = Project(tmp_path, Path("theta_0")), PROMPT + RESPONSE, counted().count
    changes = {"cutoff_len": length, "per_device_train_batch_size": BATCH, "bf16": True}
    changes |= {"tpaw_generate_batch_tokens": 16 * length}
    run, plan = encoders.parse(project, **changes), make_plan(project.settings(0, **changes))
    figures = estimates.estimate_memory(run, plan, Sample([], 1000, 1, 1, 2, (PROMPT, RESPONSE)))
    training, generation = figures["training"], figures["generation"]
    assert training["weights"] == pytest.approx(4 * count)
    assert training["optimizer"] == pytest.approx(8 * count)
    # Gradients, each layer's input, float32 as the embeddings are, and autocast's bfloat16 copy of each matrix.
    kept = 4 * count + 28 * 2 * BATCH * length * 1536 * 4
    assert kept < training["gradients and activations"] < kept + 2 * count + 4e9
    assert training["peak"] == pytest.approx(sum(training.values()) - training["peak"])
    # Keys and values of two heads of 128 numbers, in each layer for each token.
    cache = 16 * length * 28 * 2 * 2 * 128 * 2
    assert generation["weights"] == pytest.approx(2 * count)
    assert cache < generation["cache and activations"] < cache + 4e9


@pytest.mark.parametrize(
    ("changes", "steps", "warned"),
    [
        ({}, 1, False),
        ({"warmup_steps": 0.1}, 1, True),
        ({"warmup_steps": 0.1}, 2, False),
        ({"warmup_steps": 9, "lr_scheduler_type": "constant_with_warmup"}, 1, True),
        ({"warmup_steps": 1, "lr_scheduler_type": "constant"}, 1, False),
        ({"learning_rate": 0.0}, 9, True),
    ],
)
def test_learning_rates_of_0(changes: dict[str, Any], steps: int, warned: bool) -> None:
    findings = Findings()
    estimates.check_schedule(TrainingArguments(use_cpu=True, **changes), steps, findings)
    assert [text.startswith("The training would change no weight: ") for text in findings.warnings] == [True] * warned


def test_a_schedule_that_cannot_be_made() -> None:
    arguments = TrainingArguments(use_cpu=True, lr_scheduler_type="polynomial", learning_rate=1e-9)
    with pytest.raises(ConfigError, match=r"^`lr_scheduler_type: polynomial`, `learning_rate: 1e-09`: lr_end "):
        estimates.check_schedule(arguments, 9, Findings())
