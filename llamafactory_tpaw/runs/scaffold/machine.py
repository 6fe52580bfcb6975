# SPDX-License-Identifier: Apache-2.0
"""What this machine can train with: device, precision, attention kernel and the sizes of batches."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


GIB = 1024**3
CPU_BATCH_TOKENS, DEVICE_BATCH_TOKENS = 4096, 16384
MAX_BATCH = 16
STEP_TRIPLETS, STEP_ROWS = 64, 128  # SPIN's and its SFT's
MIN_STEPS = 50  # an epoch: with fewer, a smaller step trains better
# Bytes a parameter of full fine-tuning: bf16 weights, gradients and AdamW's states, with a float32 copy or without.
TRAINING_BYTES = 16
# Bytes of activations a token, in units of the hidden size: one layer whole, and the inputs of the others.
LAYER_UNITS, CHECKPOINT_UNITS = 100, 2


@dataclass(frozen=True)
class Machine:
    r"""Devices in sight.

    Attributes:
        devices: How many accelerators.
        name: What they are; `CPU` without one.
        memory: Bytes of one of them; 0 where that is not known.
        bf16: Whether it computes in bfloat16.
        flash_attention: Whether flash-attention 2 is installed for it.
    """

    devices: int
    name: str
    memory: int
    bf16: bool
    flash_attention: bool

    def precision(self) -> dict[str, Any]:
        """Keys of device and precision."""
        if not self.devices:
            return {"use_cpu": True}
        return {"bf16": True} if self.bf16 else {}

    def attention(self) -> dict[str, Any]:
        """Keys of the attention kernel; LlamaFactory chooses where there are none."""
        return {"flash_attn": "fa2"} if self.flash_attention else {}


def look_at_machine() -> Machine:
    """Ask torch."""
    import torch

    if not torch.cuda.is_available():
        if torch.accelerator.is_available():
            kind = torch.accelerator.current_accelerator()
            return Machine(torch.accelerator.device_count(), kind.type.upper(), 0, False, False)
        return Machine(0, "CPU", 0, False, False)
    properties = torch.cuda.get_device_properties(0)
    recent = properties.major >= 8
    flash = recent and importlib.util.find_spec("flash_attn") is not None
    return Machine(torch.cuda.device_count(), properties.name, properties.total_memory, recent, flash)


def batch_sizes(
    machine: Machine, keys: Mapping[str, Any], text_config: Any, parameters: int | None, rows: int, sequences: int
) -> tuple[int, int]:
    r"""Choose the batch of a device and how many make a step.

    Args:
        machine: What trains.
        keys: `cutoff_len`.
        text_config: Of the model.
        parameters: Of the model.
        rows: Of the training set in iteration 0.
        sequences: How many a row has: 2 in a triplet, 1 in SFT.

    Returns:
        `per_device_train_batch_size` and `gradient_accumulation_steps`, powers of two, for a process on each device.
    """
    step = STEP_TRIPLETS if sequences == 2 else STEP_ROWS
    step = _power_of_two(min(step, max(rows // MIN_STEPS, 8)))
    step = max(step // _power_of_two(machine.devices), 1)  # each device has its share of a step
    tokens = CPU_BATCH_TOKENS
    if machine.memory:
        layers, hidden = (getattr(text_config, name, 1) for name in ("num_hidden_layers", "hidden_size"))
        free = 0.8 * machine.memory - TRAINING_BYTES * (parameters or 0)
        fitting = int(free / (hidden * (LAYER_UNITS + CHECKPOINT_UNITS * layers)))
        tokens = min(fitting, DEVICE_BATCH_TOKENS)
    batch = _power_of_two(min(max(tokens // (sequences * keys["cutoff_len"]), 1), MAX_BATCH, step))
    return batch, step // batch


def _power_of_two(number: int) -> int:
    return 1 << (max(number, 1).bit_length() - 1)
