# SPDX-License-Identifier: Apache-2.0
"""Peak memory of LoRA with three players, against LlamaFactory's own stage `dpo` with one adapter.

Processes of their own, whose peaks the system counts. Opt-in: it takes eight launches.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.integration.adapters import save_random_adapter, settings_of
from tests.integration.pairs import add_pairs, make_pairs
from tests.runs import Project, every_launch


pytestmark = [pytest.mark.integration, every_launch]
# Weights of 90 MB and adapters of 10 MB: what an adapter costs stands out from what two processes differ by anyway.
MODEL = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6}
LORA = {"lora_rank": 64, "lora_alpha": 64, "lora_target": "all", "learning_rate": 1e-4}
WAYS: dict[str, dict[str, Any]] = {
    "cached": {"tpaw_reference": "cached"},
    "online": {"tpaw_reference": "online"},
    "online, one player": {"tpaw_reference": "online", "tpaw_team_size": 1},
    "online, all savings off": {
        "tpaw_reference": "online",
        "tpaw_logits": "full",
        "tpaw_grouping": "none",
        "tpaw_layout": "padded",
    },
}


def peak_mb(project: Project, name: str, settings: dict[str, Any]) -> float:
    """Train and return the most memory that the process had, in MB."""
    process = project.start("llamafactory-cli", "train", project.write(f"{name}.yaml", settings))
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, output
    return used.ru_maxrss / 1024


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A model, an adapter on it as SFT leaves one, and three rounds of pairs."""
    project = Project(tmp_path, tiny.save_model(tmp_path / "model", **MODEL, vocab_size=16_000))
    for index in range(3):
        add_pairs(project, f"pairs{index}", make_pairs(16, seed=index, words=(20, 40)))
    save_random_adapter(project.model, tmp_path / "saves" / "sft", r=LORA["lora_rank"], target_modules="all-linear")
    return project


def iteration_of(project: Project, iteration: int, **changes: Any) -> dict[str, Any]:
    """Settings that continue theta_t's adapter, with the adapters of all before it as players."""
    adapters = ["saves/sft", *(f"saves/play_iter{index}" for index in range(iteration))]
    return settings_of(
        project,
        iteration,
        adapters[-1],
        players=[f"{project.model}+{name}" for name in adapters[:-1]],
        dataset=",".join(f"pairs{index}" for index in range(iteration + 1)),
        per_device_train_batch_size=6,
        **dict.fromkeys(("tpaw_prompts", "temperature", "top_p", "top_k", "max_new_tokens")),
        **LORA | changes,
    )


def test_peak_is_at_most_the_adapters_above_dpo(project: Project) -> None:
    for iteration in range(2):
        result = project.train(iteration_of(project, iteration, max_steps=1))
        assert result.code == 0, result.output
    ours = iteration_of(project, 2)
    dpo = {key: value for key, value in ours.items() if not key.startswith("tpaw_")} | {"stage": "dpo"}
    dpo_peak = min(peak_mb(project, f"dpo{turn}", dpo | {"output_dir": f"saves/dpo{turn}"}) for turn in range(2))
    peaks = {
        way: peak_mb(project, way.replace(" ", "_"), ours | changes | {"output_dir": f"saves/{way}"})
        for way, changes in WAYS.items()
    }
    size = (project.root / "saves/play_iter1/adapter_model.safetensors").stat().st_size / 2**20
    said = ", ".join(f"{way} {peak - dpo_peak:+.0f} MB" for way, peak in peaks.items())
    print(f"dpo {dpo_peak:.0f} MB, an adapter {size:.0f} MB; above dpo: {said}")
    assert all(peak <= dpo_peak + 3 * size for peak in peaks.values()), said
    # What is saved elsewhere does not hide a player that is a model of its own.
    assert peaks["online"] <= peaks["online, one player"] + 3 * size, said
