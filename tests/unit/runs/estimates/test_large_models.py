# SPDX-License-Identifier: Apache-2.0
"""Estimates for models that this machine could not hold, against a calculation by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamafactory_tpaw.data.opponents import Triplet
from llamafactory_tpaw.runs.estimates.memory import memory_figures, trace_run
from llamafactory_tpaw.runs.estimates.workload import Workload
from llamafactory_tpaw.runs.preflight import make_plan
from llamafactory_tpaw.team.members import load_encoder
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
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
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
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}
PROMPT, RESPONSE, BATCH = 256, 768, 4
LENGTH = PROMPT + RESPONSE


def parameters(config: dict[str, Any]) -> int:
    """Embeddings, and in each layer attention (with Qwen's biases of q, k, v), three MLP matrices and two norms."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    key_value = hidden // heads * config["num_key_value_heads"]
    attention = 2 * hidden * hidden + 2 * hidden * key_value
    attention += hidden + 2 * key_value if config["model_type"] == "qwen2" else 0
    layer = attention + 3 * hidden * config["intermediate_size"] + 2 * hidden
    embeddings = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    return config["num_hidden_layers"] * layer + hidden + embeddings


def workload() -> Workload:
    ids = np.zeros(RESPONSE, dtype=np.int32)
    triplet = Triplet("a-0", 0, np.zeros(PROMPT, dtype=np.int32), ids, ids + 1, False)
    return Workload(1000, 1, 1, True, [triplet], 1000.0, "a calculation")


@pytest.mark.parametrize("config", [QWEN, LLAMA], ids=["Qwen2.5-1.5B", "Llama-3.1-8B"])
def test_memory_is_what_a_calculation_gives(
    tiny_model: Path, tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "theta_0")
    # The config alone is read.
    (tmp_path / "theta_0" / "config.json").write_text(json.dumps(config))
    project = Project(tmp_path, tmp_path / "theta_0")
    changes = {"bf16": True, "cutoff_len": LENGTH, "max_new_tokens": RESPONSE, "per_device_train_batch_size": BATCH}
    run = encoders.parse(project, **changes, tpaw_generate_batch_tokens=16 * LENGTH)
    monkeypatch.chdir(tmp_path)
    plan = make_plan(project.settings(0, **changes))
    tokenizer = load_encoder(run)[0]
    traced = trace_run(run, plan, tokenizer, workload())
    figures = {
        part: {figure.name: figure.amount for figure in parts}
        for part, parts in memory_figures(run, traced, config["vocab_size"]).items()
    }
    count = parameters(config)
    assert traced.parameters == count
    training = figures["training"]
    # LlamaFactory trains float32 weights under autocast; AdamW keeps two numbers for each.
    assert training["weights"] == pytest.approx(4 * count, rel=1e-4)
    assert training["gradients"] == 4 * count
    assert training["optimizer"] == pytest.approx(8 * count, rel=1e-4)
    # At the end of the forward pass: with checkpointing each layer keeps its input, float32 as the embeddings are, and
    # autocast has a bfloat16 copy of each matrix of the layers; the head casts a block at a time.
    hidden, tokens, layers = config["hidden_size"], traced.training.tokens, config["num_hidden_layers"]
    assert tokens <= 2 * BATCH * LENGTH
    embeddings = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    kept = layers * tokens * hidden * 4
    assert training["activations"] == pytest.approx(kept + 2 * (count - embeddings), rel=0.2)
    assert training["peak"] >= 16 * count * 0.99
    # Generation: weights in bfloat16; keys and values of 16 rows, two numbers for each head's dimensions and layer.
    generation = figures["generation"]
    assert generation["weights"] == pytest.approx(2 * count, rel=1e-3)
    key_value = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    cache = 16 * LENGTH * layers * 2 * key_value * 2
    used = generation["keys, values and activations"]
    assert used > cache
    # The first step computes the prompts of all rows; the MLP's two halves are its largest tensors.
    assert used < 2 * cache + 16 * PROMPT * (4 * config["intermediate_size"] + 8 * hidden) * 2
    # Two operations a weight and token forward, twice that backward, and forward again with checkpointing.
    dense = count - config["vocab_size"] * hidden * (0 if config["tie_word_embeddings"] else 1)
    attention = 4 * LENGTH * hidden * layers
    operations = traced.training.flops / traced.training.tokens
    assert 6 * dense < operations < 8.5 * dense + 5 * attention


@pytest.mark.parametrize(("config", "billions"), [(QWEN, 1.54), (LLAMA, 8.03)])
def test_the_calculation_gives_the_known_sizes(config: dict[str, Any], billions: float) -> None:
    assert parameters(config) / 1e9 == pytest.approx(billions, abs=0.005)
