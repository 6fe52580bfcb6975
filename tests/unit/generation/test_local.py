# SPDX-License-Identifier: Apache-2.0
"""A round of a real run: in one process, and in one for each device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.data.source import find_entry
from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.generation.local import generate_round
from llamafactory_tpaw.lf import facade
from llamafactory_tpaw.team.loading import load_generator
from tests import encoders, tiny
from tests.runs import Project


def test_several_devices_give_the_bytes_of_one(tmp_path: Path, tiny_model: Path) -> None:
    output = tmp_path / "saves" / "out"
    output.mkdir(parents=True)
    (output / "model.safetensors").touch()  # LlamaFactory would refuse to train into this folder
    settings = {"tpaw_generate_batch_tokens": 32, "tpaw_samples_per_prompt": 2, "max_new_tokens": 8}
    run = encoders.parse(Project(tmp_path, tiny_model), **settings, deepspeed="of/the/processes/that/train.json")
    round_ = Round(0, find_entry(run.data.dataset[0], run.data.dataset_dir))
    contents = []
    for devices in ([], ["2", "1"]):
        meta = generate_round(run, round_, devices)
        assert (meta.rows, meta.hardware["processes"]) == (32, max(len(devices), 1))
        contents.append(round_.path.read_bytes())
        for path in round_.path.parent.glob(f"{round_.path.stem}*"):
            path.unlink()
    assert contents[0] == contents[1]


def generated(project: Project, **settings: Any) -> Any:
    run = encoders.parse(project, **settings)
    return generate_round(run, Round(0, find_entry(run.data.dataset[0], run.data.dataset_dir)))


def test_the_meta_says_what_the_weights_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights are computed in the run's dtype, quantized ones stay what they are; that most were cut is said."""
    model, load_model = tiny.save_model(tmp_path / "theta_0", dtype=torch.bfloat16), facade.load_model

    def quantized(*args: Any) -> Any:
        loaded = load_model(*args)
        loaded.quantization_method = "bnb"
        loaded.packed = torch.nn.Parameter(torch.zeros(1, dtype=torch.uint8), requires_grad=False)
        return loaded

    assert generated(Project(tmp_path / "plain", model), max_new_tokens=1).engine["dtype"] == "float32"
    monkeypatch.setattr(facade, "load_model", quantized)
    assert generated(Project(tmp_path / "bits", model), max_new_tokens=1).engine["dtype"] == "bfloat16, uint8, bnb"
    said = next(record for record in caplog.records if "16 triplets of theta_0, 0 ended, 16 ran" in record.message)
    assert said.levelname == "WARNING"
    assert "Raise `max_new_tokens` or `cutoff_len`" in said.message


def test_an_adapter_is_not_rounded_away_in_bf16(tmp_path: Path) -> None:
    theta, adapter, ids = tiny.save_model(tmp_path / "m", dtype=torch.bfloat16), tmp_path / "a", torch.arange(9)
    model = hf.AutoModelForCausalLM.from_pretrained(theta, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1e-4)
    adapted.save_pretrained(adapter)
    named = {"adapter_name_or_path": str(adapter), "tpaw_players": f"{theta}+{adapter}"}
    run = encoders.parse(Project(tmp_path, theta), finetuning_type="lora", **named)
    loaded = load_generator(run, tiny.build_tokenizer(), theta, (adapter,))
    found, wanted = loaded(ids[None]).logits, adapted.eval()(ids[None]).logits
    with adapted.disable_adapter():
        assert (found - wanted).norm() < 0.01 * (wanted - adapted(ids[None]).logits).norm()


class Bidirectional(hf.Qwen2ForCausalLM):
    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        seen = torch.zeros(len(input_ids), 1, *2 * input_ids.shape[1:], dtype=self.dtype)
        return super().forward(input_ids, **kwargs | {"attention_mask": seen})


def test_what_training_would_refuse_is_refused_before_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path, tiny.save_model(tmp_path / "theta_0", dtype=torch.bfloat16))
    load_model = facade.load_model

    def load(*args: Any) -> Any:
        loaded = load_model(*args)
        loaded.__class__ = Bidirectional
        return loaded

    monkeypatch.setattr(facade, "load_model", load)
    with pytest.raises(ConfigError, match=r"Bidirectional gives .* nats with"):
        generated(project, bf16=True)
    assert not any(path.stat().st_size for path in (tmp_path / "data" / "tpaw").iterdir())
