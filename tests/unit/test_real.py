# SPDX-License-Identifier: Apache-2.0
"""What `make real` does without a network: vLLM's metadata, what a server sends, rows that are kept and compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from llamafactory_tpaw.arguments.parsed import parse_single_process
from llamafactory_tpaw.team.loading import load_generator
from tests.tiny import build_tokenizer, save_model


def test_an_adapter_is_not_rounded_away_in_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(save_model(tmp_path / "m", dtype=torch.bfloat16), dtype=torch.float32)
    adapted, ids = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")), torch.arange(9)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1e-4)
    given = {"stage": "tpaw", "do_train": True, "finetuning_type": "lora", "dataset": "d", "template": "qwen"}
    given |= {"model_name_or_path": "m", "adapter_name_or_path": "a", "tpaw_players": "m+a", "output_dir": "out"}
    run = adapted.save_pretrained("a") or parse_single_process(given | {"use_cpu": True, "tpaw_iteration": 0})
    loaded = load_generator(run, build_tokenizer(), Path("m"), (Path("a"),))
    found, wanted = loaded(ids[None]).logits, adapted.eval()(ids[None]).logits
    with adapted.disable_adapter():
        assert (found - wanted).norm() < 0.01 * (wanted - adapted(ids[None]).logits).norm()
