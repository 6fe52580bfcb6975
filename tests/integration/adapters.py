# SPDX-License-Identifier: Apache-2.0
"""Runs that train adapters: their settings, and the same θ merged into whole models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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
