# SPDX-License-Identifier: Apache-2.0
"""Estimates by hand: known models, and what a run's keys change."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from llamafactory_tpaw.runs.estimates import Sample, estimate_memory, readable_bytes, weight_shapes, weights_of
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
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
PROMPT, RESPONSE, BATCH = 256, 768, 4


def counted(config: dict[str, Any], **keys: Any) -> Any:
    found = AutoConfig.for_model(**config)
    return weights_of(with_defaults({"finetuning_type": "full", **keys}), weight_shapes("some/hub-model", found))


def memory(tiny_model: Path, root: Path, config: dict[str, Any], **changes: Any) -> dict[str, dict[str, float]]:
    """Figures of a model of which the config and the header of its weights are there, before a hole in the file."""
    shutil.copytree(tiny_model, root / "theta_0")
    (root / "theta_0" / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in weight_shapes("some/hub-model", AutoConfig.for_model(**config)).items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (root / "theta_0" / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    project = Project(root, root / "theta_0")
    changes = {"cutoff_len": PROMPT + RESPONSE, "per_device_train_batch_size": BATCH, **changes}
    run, plan = encoders.parse(project, **changes), make_plan(project.settings(0, **changes))
    return estimate_memory(run, plan, Sample([], [], "", [], 1000, 1, 1, 2, (PROMPT, RESPONSE)))


@pytest.mark.parametrize(("config", "billions"), [(QWEN, 1.54), (LLAMA, 8.03)], ids=["Qwen2.5-1.5B", "Llama-3.1-8B"])
def test_known_models_have_their_known_sizes(config: dict[str, Any], billions: float) -> None:
    weights = counted(config)
    assert weights.count / 1e9 == pytest.approx(billions, rel=0.01)
    # LlamaFactory trains float32 weights unless told otherwise, and AdamW keeps two numbers for each.
    assert (weights.held, weights.state) == (4 * weights.count, 8 * weights.count)
    assert counted(config, pure_bf16=True).held == 2 * weights.count
    assert counted(config, optim="adamw_8bit").state == 2 * weights.count
    assert counted(config, optim="sgd").state == 0


def test_an_adapter_is_small_beside_its_model() -> None:
    """By hand: rank 8 on the seven matrices of each of Qwen2.5-1.5B's 28 layers are 9.23 million weights."""
    weights = counted(QWEN, finetuning_type="lora", lora_rank=8, lora_target="all", bf16=True)
    hidden, keys, inner = 1536, 256, 8960
    layer = 2 * (hidden + hidden) + 2 * (hidden + keys) + 3 * (hidden + inner)
    assert weights.gradients / 4 == 8 * 28 * layer == 9_232_384
    assert weights.held == 2 * weights.count + weights.gradients
    quantized = counted(QWEN, finetuning_type="lora", lora_rank=8, bf16=True, quantization_bit=4)
    assert quantized.held < weights.held / 2
    assert counted(QWEN, finetuning_type="lora", lora_target="q_proj").gradients / 4 == 8 * 28 * 2 * hidden


@pytest.mark.parametrize("config", [QWEN, LLAMA], ids=["Qwen2.5-1.5B", "Llama-3.1-8B"])
def test_memory_is_what_a_calculation_gives(
    tiny_model: Path, tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    length, layers, hidden = PROMPT + RESPONSE, config["num_hidden_layers"], config["hidden_size"]
    figures = memory(tiny_model, tmp_path, config, bf16=True, tpaw_generate_batch_tokens=16 * length)
    count, training = counted(config).count, figures["training"]
    assert training["weights"] == pytest.approx(4 * count)
    assert training["optimizer"] == pytest.approx(8 * count)
    # Gradients come while each layer's input, float32 as the embeddings are, goes; a layer is computed again, or
    # autocast still has its bfloat16 copy of each matrix.
    kept = layers * 2 * BATCH * length * hidden * 4
    assert max(4 * count, kept) < training["gradients and activations"] < max(4 * count, kept) + 2 * count + 4e9
    assert training["peak"] == pytest.approx(sum(training.values()) - training["peak"])
    # Two numbers for each dimension of the keys' heads, token and layer.
    generation = figures["generation"]
    cache = 16 * length * layers * 2 * hidden // config["num_attention_heads"] * config["num_key_value_heads"] * 2
    assert generation["weights"] == pytest.approx(2 * count)
    assert cache < generation["cache and activations"] < cache + 4e9


def test_bytes_are_readable() -> None:
    assert list(map(readable_bytes, (12, 3 << 20, 5 << 40, 5 << 50))) == ["12 B", "3.0 MiB", "5.0 TiB", "5120.0 TiB"]
