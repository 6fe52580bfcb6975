# SPDX-License-Identifier: Apache-2.0
"""How much an optimizer keeps for each weight."""

from __future__ import annotations


# Numbers kept for each weight, in its dtype, by the beginning of the name of `optim`.
STATES = {"adamw": 2, "adam": 2, "stable_adamw": 2, "ademamix": 3, "lion": 1, "rmsprop": 1, "adagrad": 1, "sgd": 0}
# Rows and columns of a matrix instead of its cells.
FACTORED_SHARE = 0.02


def optimizer_bytes(optim: str, parameters: int, weight_bytes: int) -> tuple[int, str]:
    r"""Estimate the state that an optimizer keeps on the device.

    Args:
        optim: LlamaFactory's key `optim`.
        parameters: Number of weights.
        weight_bytes: Bytes of the weights in training.

    Returns:
        Bytes, and how they were estimated.
    """
    if "adafactor" in optim:
        return round(FACTORED_SHARE * weight_bytes), f"`optim: {optim}`: 2 % of the weights, rows and columns of each"
    name = optim.removeprefix("paged_")
    kind = next((kind for kind in sorted(STATES, key=len, reverse=True) if name.startswith(kind)), None)
    states = STATES[kind or "adamw"]
    known = f"`optim: {optim}`" if kind else f"`optim: {optim}` is not known here and counted as AdamW"
    if optim.startswith("paged_"):
        return 0, f"{known}: in the host's memory"
    size = 1 if "8bit" in name else 0.5 if "4bit" in name else None
    if size is not None:
        return round(states * size * parameters), f"{known}: {states} numbers of {size:g} bytes for each weight"
    return states * weight_bytes, f"{known}: {states} numbers for each weight, in its dtype"


def step_bytes(optim: str, weight_bytes: int, device: str) -> int:
    """What an update needs for a moment: a copy of all weights where they are updated together, unfused."""
    together = device == "cuda" and optim.startswith(("adam", "rmsprop", "adagrad")) and "fused" not in optim
    return weight_bytes if together and "bit" not in optim else 0
