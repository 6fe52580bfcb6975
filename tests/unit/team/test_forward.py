# SPDX-License-Identifier: Apache-2.0
"""A training pass without anything random in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from llamafactory_tpaw.team.forward import disable_dropout


SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "build",
    [
        lambda: OPTForCausalLM(
            OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=32, dropout=0.5, attention_dropout=0.5, layerdrop=0.5)
        ),
        lambda: MixtralForCausalLM(
            MixtralConfig(
                **SIZES,
                intermediate_size=32,
                num_key_value_heads=1,
                num_local_experts=4,
                attention_dropout=0.5,
                router_jitter_noise=0.5,
            )
        ),
    ],
    ids=["dropped layers", "noise before the router"],
)
def test_training_passes_are_those_of_evaluation(build: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(0)
    model, ids = build(), torch.arange(40)[None]
    expected = model.eval()(input_ids=ids).logits
    model.train()
    assert not torch.equal(model(input_ids=ids).logits, expected)
    disable_dropout(model)
    for _ in range(3):
        assert torch.equal(model(input_ids=ids).logits, expected)
