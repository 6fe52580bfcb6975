# SPDX-License-Identifier: Apache-2.0
"""Checks of what a caller hands to the objectives. Each raises a `ValueError` that names the argument."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


ROWS_SHOWN = 5


def check_shape(name: str, value: Tensor, expected: tuple[int | str, ...]) -> None:
    """Check the shape of a float tensor against sizes, or letters where any size of 1 or more will do."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        given = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"`{name}` must be a tensor of floats, got {given}. Convert it with `.float()`.")
    sizes = tuple(value.shape)
    fits = len(sizes) == len(expected) and all(
        given >= 1 if isinstance(want, str) else given == want for given, want in zip(sizes, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(size) for size in expected) + ("," if len(expected) == 1 else "")
        letters = [size for size in expected if isinstance(size, str)]
        note = f" with {' and '.join(letters)} at least 1" if letters else ""
        raise ValueError(f"`{name}` must have shape ({wanted}){note}, got {sizes}.")


def check_finite(**tensors: Tensor) -> None:
    """Check that no tensor, batch first, holds NaN or inf; each argument at fault is named with its first rows."""
    wrong = {name: ~torch.isfinite(tensor).reshape(len(tensor), -1).all(1) for name, tensor in tensors.items()}
    # One flag for all of them: on a GPU each read waits for the device.
    if not bool(torch.stack([*wrong.values()]).any()):
        return
    problems = []
    for name, rows in ((name, each.nonzero().flatten().tolist()) for name, each in wrong.items() if each.any()):
        more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
        problems.append(
            f"`{name}` holds NaN or inf in rows {rows[:ROWS_SHOWN]}{more} of {len(tensors[name])} (row {rows[0]}: "
            f"{tensors[name][rows[0]].tolist()}). Log-probs must be finite: look at the model that gave them."
        )
    raise ValueError(" ".join(problems))


def check_number(name: str, value: float, minimum: float, *, exclusive: bool = False) -> None:
    """Check that a setting is finite and not below `minimum` (above it where `exclusive`)."""
    too_low = value <= minimum if exclusive else value < minimum
    if not math.isfinite(value) or too_low:
        raise ValueError(f"`{name}` must be a finite number {'>' if exclusive else '>='} {minimum:g}, got {value}.")


def check_logps(
    policy: Mapping[str, Tensor], players: Mapping[str, Tensor], players_count: int | str = "J"
) -> list[Tensor]:
    r"""Check that log-probs are finite and fit together, (B,) of the policy and (B, J) of the players.

    All are returned in order, float64 where any of them is, else float32: bf16 is not subtracted in bf16.
    """
    shape, dtype, logps = ("B", players_count), torch.float32, {**policy, **players}
    for name, value in logps.items():
        check_shape(name, value, shape if name in players else shape[:1])
        shape = (*value.shape, *shape[value.ndim :])
        dtype = torch.promote_types(dtype, value.dtype)
    check_finite(**logps)
    return [value.to(dtype) for value in logps.values()]


def check_tokens(name: str, tokens: Tensor, vocabulary: int) -> None:
    """Check that token ids, (M,), are those of a vocabulary."""
    smallest, largest = torch.stack(tokens.aminmax()).tolist() if len(tokens) else (0, 0)
    if smallest < 0 or largest >= vocabulary:
        raise ValueError(
            f"`{name}` holds ids from {smallest} to {largest}, but the vocabulary has the ids 0 to {vocabulary - 1}. "
            "Use the tokenizer that belongs to the model."
        )
