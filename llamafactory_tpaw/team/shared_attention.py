# SPDX-License-Identifier: Apache-2.0
r"""Attention over rows in which responses share their prompt, without the pairs that no token compares.

A mask over all pairs of a row says who sees whom, and any attention that takes one computes the right thing from it.
Most of its pairs are hidden, though: responses do not see each other. Under `sdpa` on a CPU each part of a row is
therefore attended by itself: the prompt causally, every response to the keys of the prompt and its own. On
accelerators many small steps would cost more than the hidden pairs, which are few beside the layers' products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


ATTENTION = "sdpa"
# Where a mask carries the parts of its rows. Where something on the way drops it, the mask itself is used.
PARTS = "llamafactory_tpaw_parts"


class RowParts(NamedTuple):
    """Tokens of a row's prompt, of each of its responses, and of its padding; and the masks of the responses.

    A response of R tokens has a mask of (1, 1, R, prompt + R): its own tokens up to each, and the whole prompt.
    """

    prompt: int
    responses: list[int]
    padding: int
    masks: list[Tensor]


def describe_parts(segments: Tensor) -> list[RowParts]:
    """Read the parts of each row off its `segments`, (N, T): 0 in the prompt, k in the k-th response, else -1."""
    parts = []
    for row in segments.tolist():
        prompt, padding = row.count(0), row.count(-1)
        responses = [row.count(number) for number in range(1, max(row) + 1)]
        masks = [
            torch.ones(size, prompt + size, dtype=torch.bool, device=segments.device).tril(prompt)[None, None]
            for size in responses
        ]
        parts.append(RowParts(prompt, responses, padding, masks))
    return parts


def attends_by_parts(device: torch.device, attention: str) -> bool:
    """Whether shared rows are attended part by part."""
    return attention == ATTENTION and device.type == "cpu"


def use_parts() -> None:
    """Let transformers' `sdpa` look at the parts that a mask carries; other masks take the way they always took."""
    plain = ALL_ATTENTION_FUNCTIONS[ATTENTION]
    if not hasattr(plain, PARTS):
        ALL_ATTENTION_FUNCTIONS[ATTENTION] = _by_parts(plain)


def _by_parts(plain: Callable[..., tuple[Tensor, None]]) -> Callable[..., tuple[Tensor, None]]:
    def attend(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *rest: Any,
        **settings: Any,
    ) -> tuple[Tensor, None]:
        rows = getattr(attention_mask, PARTS, None)
        if rows is None:
            return plain(module, query, key, value, attention_mask, *rest, **settings)

        def attend_part(*states: Tensor, mask: Tensor | None) -> Tensor:
            return plain(module, *states, mask, *rest, **settings)[0]

        outputs = [
            _attend_row(attend_part, row, states)
            for row, *states in zip(rows, query.split(1), key.split(1), value.split(1), strict=True)
        ]
        return torch.cat(outputs), None

    setattr(attend, PARTS, True)
    return attend


def _attend_row(attend_part: Callable[..., Tensor], row: RowParts, states: list[Tensor]) -> Tensor:
    """Attend one row, (1, heads, T, D) each, and return (1, T, heads, D) with zeros in the padding."""
    sizes = [row.prompt, *row.responses, row.padding]
    queries, keys, values = (state.split(sizes, dim=2) for state in states)
    outputs = [attend_part(queries[0], keys[0], values[0], mask=None)]
    for number, (size, mask) in enumerate(zip(row.responses, row.masks, strict=True), start=1):
        if size:
            own_keys = torch.cat([keys[0], keys[number]], dim=2)
            own_values = torch.cat([values[0], values[number]], dim=2)
            outputs.append(attend_part(queries[number], own_keys, own_values, mask=mask))
    outputs.append(outputs[0].new_zeros(1, row.padding, *outputs[0].shape[2:]))
    return torch.cat(outputs, dim=1)
