# SPDX-License-Identifier: Apache-2.0
"""Runs that train adapters: their settings, and the same θ merged into whole models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from llamafactory_tpaw.arguments.parsed import RunArguments, parse_single_process
from tests.runs import Project


RANK = 4
# Far from the base, so that every player says something else.
LORA: dict[str, Any] = {"finetuning_type": "lora", "lora_rank": RANK, "lora_target": "all", "learning_rate": 3e-2}


def settings_of(
    project: Project, iteration: int, *adapters: str, players: list[str], **changes: Any
) -> dict[str, Any]:
    """Settings of an iteration from the model with these adapters, and the players before it."""
    policy = "+".join([str(project.model), *adapters])
    return project.settings(
        iteration,
        **LORA
        | {
            "model_name_or_path": str(project.model),
            "adapter_name_or_path": ",".join(adapters) or None,
            "tpaw_players": ",".join([*players, policy]),
        }
        | changes,
    )


def run_of(project: Project, settings: dict[str, Any]) -> RunArguments:
    """Parse settings as a command does, in the project's folder."""
    os.chdir(project.root)
    return parse_single_process(settings)


def merge(model: Path, adapters: list[Path], folder: Path) -> Path:
    """Save a model with adapters merged into it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = AutoModelForCausalLM.from_pretrained(model)
    for adapter in adapters:
        merged = PeftModel.from_pretrained(merged, adapter).merge_and_unload()
    merged.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def save_random_adapter(model: Path, folder: Path, **config: Any) -> Path:
    """Save an adapter that changes the model, and whole modules that differ from the model's."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"r": 2, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    torch.manual_seed(0)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(**settings | config))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "modules_to_save" in name:
                weight.mul_(1.5)
    adapted.save_pretrained(folder)
    return folder
