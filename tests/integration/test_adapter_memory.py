# SPDX-License-Identifier: Apache-2.0
"""Peak memory of LoRA with three players, against LlamaFactory's own stage `dpo` with one adapter.

Processes of their own, whose peaks the system counts. Opt-in: it takes six launches.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.integration.adapters import save_random_adapter, settings_of
from tests.integration.pairs import add_pairs, make_pairs
from tests.runs import Project


pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not os.environ.get("LLAMAFACTORY_TPAW_ALL_LAUNCHES"), reason="set LLAMAFACTORY_TPAW_ALL_LAUNCHES=1"
    ),
]
# Weights of 60 MB and adapters of 19 MB: what an adapter costs stands out from what two processes differ by anyway.
MODEL = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6}
LORA = {"lora_rank": 64, "lora_alpha": 64, "lora_target": "all"}
WAYS: dict[str, dict[str, Any]] = {
    "cached": {"tpaw_reference": "cached"},
    "online": {"tpaw_reference": "online"},
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
    """A model, three adapters on it, and three rounds of pairs."""
    project = Project(tmp_path, tiny.save_model(tmp_path / "model", **MODEL, vocab_size=16_000))
    for index in range(3):
        add_pairs(project, f"pairs{index}", make_pairs(16, seed=index, words=(20, 40)))
        config = {"r": LORA["lora_rank"], "target_modules": "all-linear"}
        save_random_adapter(project.model, tmp_path / f"adapter{index}", seed=index, **config)
    return project


def test_peak_is_at_most_the_adapters_above_dpo(project: Project) -> None:
    adapters = [f"adapter{index}" for index in range(3)]
    size = (project.root / adapters[0] / "adapter_model.safetensors").stat().st_size / 2**20
    players = [f"{project.model}+{name}" for name in adapters[:-1]]
    common = {
        "dataset": "pairs0,pairs1,pairs2",
        "per_device_train_batch_size": 6,
        "learning_rate": 1e-4,
        **dict.fromkeys(("tpaw_prompts", "temperature", "top_p", "top_k", "max_new_tokens")),
        **LORA,
    }
    ours = settings_of(project, 2, adapters[-1], players=players, **common)
    dpo = {key: value for key, value in ours.items() if not key.startswith("tpaw_")} | {"stage": "dpo"}
    dpo_peak = min(peak_mb(project, f"dpo{turn}", dpo | {"output_dir": f"saves/dpo{turn}"}) for turn in range(2))
    peaks = {
        way: peak_mb(project, way.replace(" ", "_"), ours | changes | {"output_dir": f"saves/{way}"})
        for way, changes in WAYS.items()
    }
    said = ", ".join(f"{way} {peak - dpo_peak:+.0f} MB" for way, peak in peaks.items())
    print(f"dpo {dpo_peak:.0f} MB, an adapter {size:.0f} MB; above dpo: {said}")
    assert all(peak <= dpo_peak + 3 * size for peak in peaks.values()), said
