# SPDX-License-Identifier: Apache-2.0
"""One iteration by several processes over gloo, held against a single process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

from tests.runs import Project


QUICK = Path(__file__).parent / "quick"
ZERO: dict[str, Any] = {
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
}
OFFLOADED = {"device": "cpu", "pin_memory": False}
# Kind of training -> ZeRO's settings; None for DDP.
KINDS: dict[str, dict[str, Any] | None] = {
    "ddp": None,
    "zero1": {"stage": 1},
    "zero2": {"stage": 2, "overlap_comm": False},
    "zero3": {"stage": 3, "overlap_comm": False, "stage3_gather_16bit_weights_on_model_save": True},
    "zero2_offload": {"stage": 2, "overlap_comm": False, "offload_optimizer": OFFLOADED},
    "zero3_offload": {
        "stage": 3,
        "overlap_comm": False,
        "stage3_gather_16bit_weights_on_model_save": True,
        "offload_optimizer": OFFLOADED,
        "offload_param": OFFLOADED,
    },
}
# Steps of 8 triplets: 11 prompts with 3 each are trained on, so that the last step of an epoch has one triplet, and a
# process none. The checkpoint is in the second epoch.
WHOLE_BATCH, PROCESSES, CHECKPOINT = 8, 2, 7
TOLERANCE, CACHED_TOLERANCE = 1e-4, 1e-5
# Of a run that is resumed, `train_loss` is the mean over the steps since.
UNLIKE = re.compile("runtime|per_second|flos|memory|preparation|train_loss")


def settings_of(project: Project, name: str, **changes: Any) -> dict[str, Any]:
    """Settings of iteration 2 with three players and a cache of its own, in one process."""
    return project.settings(
        2,
        output_dir=f"saves/{name}",
        tpaw_cache_dir=f"saves/cache_{name}",
        per_device_train_batch_size=WHOLE_BATCH,
        num_train_epochs=2.0,
        val_size=5,
        eval_strategy="epoch",
        save_strategy="steps",
        save_steps=CHECKPOINT,
        **changes,
    )


def launch(project: Project, name: str, kind: str, **changes: Any) -> str:
    """Train the iteration in two processes and return what was printed."""
    zero = KINDS[kind]
    given = {"per_device_train_batch_size": WHOLE_BATCH // PROCESSES, **changes}
    environment = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(PROCESSES), "CUDA_VISIBLE_DEVICES": ""}
    if zero is not None:
        pytest.importorskip("deepspeed")
        # With `use_cpu` accelerate would leave DeepSpeed's start out.
        given |= {"deepspeed": f"{name}.json", "use_cpu": None}
        (project.root / f"{name}.json").write_text(json.dumps(ZERO | {"zero_optimization": zero}))
        environment |= {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(QUICK)}
    settings = {key: value for key, value in (settings_of(project, name) | given).items() if value is not None}
    result = project.train(settings, name=f"{name}.yaml", **environment)
    assert result.code == 0, result.output[-6000:]
    assert f"world size: {PROCESSES}" in result.output
    return result.output


def hold_to_reference(project: Project, name: str) -> None:
    """Assert that a run is the single process's within rounding: steps, keys, tensors and cached sequences."""
    for step, expected in zip(_history(project, name), _history(project, "alone"), strict=True):
        assert step == pytest.approx(expected, abs=TOLERANCE)
    one, other = (load_file(project.root / "saves" / run / "model.safetensors") for run in (name, "alone"))
    assert one.keys() == other.keys()
    assert max(float((one[key] - other[key]).abs().max()) for key in other) < TOLERANCE
    assert cached(project, name) == pytest.approx(cached(project, "alone"), rel=CACHED_TOLERANCE, abs=CACHED_TOLERANCE)


def cached(project: Project, name: str) -> dict[tuple[str, bytes], float]:
    """Every cached value of a run by its player and sequence."""
    found = {}
    for part in (project.root / f"saves/cache_{name}").rglob("part-*"):
        arrays = load_arrays(part)
        for key, logp in zip(arrays["keys"], arrays["logps"], strict=True):
            found[part.parent.name, key.tobytes()] = float(logp)
    return found


def _history(project: Project, name: str) -> list[dict[str, float]]:
    state = json.loads((project.root / "saves" / name / "trainer_state.json").read_text())
    return [{key: value for key, value in entry.items() if not UNLIKE.search(key)} for entry in state["log_history"]]
