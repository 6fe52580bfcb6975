# SPDX-License-Identifier: Apache-2.0
r"""Attention over rows in which responses share their prompt.

A mask over all pairs of a row says who sees whom, and any attention that takes one computes the right thing from it.
Most of its pairs are hidden, though: responses do not see each other. Under `sdpa` on a CPU each part of a row is
therefore attended by itself: the prompt causally, every response to the keys of the prompt and its own. On
accelerators many small steps would cost more than the hidden pairs, which are few beside the layers' products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


# Where a mask carries the segments of its rows. Where something on the way drops them, the mask itself is used.
SEGMENTS = "llamafactory_tpaw_segments"


def segment_mask(segments: Tensor, attention: str, dtype: torch.dtype) -> Tensor:
    r"""Let every token see the prompt and its own response up to itself; padding sees itself alone.

    Args:
        segments: (N, T): 0 in the prompt, k in the k-th response, -1 in the padding.
        attention: The model's implementation. `eager` adds the mask to its scores; others take booleans.
        dtype: Of the model.

    Returns:
        (N, 1, T, T).
    """
    asking, asked = segments[:, :, None], segments[:, None, :]
    seen = ((asked == 0) | (asked == asking)) & (asking >= 0)
    seen = seen.tril() | torch.eye(segments.shape[1], dtype=torch.bool, device=segments.device)
    seen = seen[:, None]
    if attention == "eager":
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)
    if attention == "sdpa" and segments.device.type == "cpu":
        plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
        if not hasattr(plain, SEGMENTS):
            ALL_ATTENTION_FUNCTIONS["sdpa"] = _by_parts(plain)
        setattr(seen, SEGMENTS, segments.tolist())
    return seen


def _by_parts(plain: Callable[..., tuple[Tensor, None]]) -> Callable[..., tuple[Tensor, None]]:
    """Let transformers' `sdpa` look at the segments that a mask carries; other masks take the way they always took."""

    def attend(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *rest: Any,
        **settings: Any,
    ) -> tuple[Tensor, None]:
        rows = getattr(attention_mask, SEGMENTS, None)
        if rows is None:
            return plain(module, query, key, value, attention_mask, *rest, **settings)

        def attend_part(*states: Tensor, mask: Tensor | None) -> Tensor:
            return plain(module, *states, mask, *rest, **settings)[0]

        outputs = [
            _attend_row(attend_part, row, states)
            for row, *states in zip(rows, query.split(1), key.split(1), value.split(1), strict=True)
        ]
        return torch.cat(outputs), None

    setattr(attend, SEGMENTS, True)
    return attend


def _attend_row(attend_part: Callable[..., Tensor], segments: list[int], states: list[Tensor]) -> Tensor:
    """Attend one row, (1, heads, T, D) each, and return (1, T, heads, D) with zeros in the padding."""
    prompt, padding = segments.count(0), segments.count(-1)
    sizes = [segments.count(number) for number in range(1, max(segments) + 1)]
    queries, keys, values = (state.split([prompt, *sizes, padding], dim=2) for state in states)
    outputs = [attend_part(queries[0], keys[0], values[0], mask=None)]
    for number, size in enumerate(sizes, start=1):
        if size:
            mask = torch.ones(size, prompt + size, dtype=torch.bool).tril(prompt)[None, None]
            own = (torch.cat([states[0], states[number]], dim=2) for states in (keys, values))
            outputs.append(attend_part(queries[number], *own, mask=mask))
    outputs.append(outputs[0].new_zeros(1, padding, *outputs[0].shape[2:]))
    return torch.cat(outputs, dim=1)
