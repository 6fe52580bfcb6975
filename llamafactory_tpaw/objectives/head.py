# SPDX-License-Identifier: Apache-2.0
r"""Log-probs of tokens from hidden states, without a tensor of tokens x vocabulary.

The language-model head is applied to one block of the vocabulary at a time, and once more in the backward. Blocks of
the vocabulary, rather than of the tokens, let every row of the weight's gradient be written once, in the precision of
one matrix product, instead of being summed over chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .checks import check_tokens


# Scores that are held at a time: 16 MiB in float32 stay near a processor's cache, 256 MiB keep an accelerator busy.
BLOCK_SCORES = {"cpu": 1 << 22}
BLOCK_SCORES_ELSEWHERE = 1 << 26
SMALLEST_BLOCK = 256

# First token, weight and scores of each.
Blocks = Iterator[tuple[int, Tensor, Tensor]]


class _HeadLogps(torch.autograd.Function):
    """Keeps hidden states, weight and one number a token between forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, *settings: Any
    ) -> Tensor:
        head = _Head(hidden, weight, bias, *settings)
        largest = torch.full((len(tokens),), -torch.inf, dtype=torch.float32, device=hidden.device)
        total, picked = torch.zeros_like(largest), torch.zeros_like(largest)
        for start, _, scores in head.blocks():
            at, inside = _within(tokens, start, scores.shape[1])
            picked += scores.gather(1, at).squeeze(1) * inside
            maximum = torch.maximum(largest, scores.amax(1))
            total.mul_((largest - maximum).exp_()).add_(scores.sub_(maximum[:, None]).exp_().sum(1))
            largest = maximum
        normalizers = largest + total.log()
        ctx.save_for_backward(hidden, weight, bias, tokens, normalizers)
        ctx.settings = settings
        return picked - normalizers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, normalizers = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        head = _Head(hidden, weight, bias, *ctx.settings)
        # The factor of each token is taken out of the matrix products, where it would cost a pass over all scores.
        factor = (-head.scale * grad)[:, None]
        weighted = (factor * head.hidden).to(head.dtype) if needs_weight else None
        grad_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device) if needs_hidden else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_bias = torch.empty_like(bias) if needs_bias else None
        for start, block, scores in head.blocks():
            end = start + len(block)
            # - d logp / d score = softmax - onehot(token)
            slope = head.slope(scores, normalizers, tokens, start)
            narrow = slope.to(head.dtype)
            if needs_hidden:
                grad_hidden += narrow @ block
            if needs_weight:
                grad_weight[start:end] = narrow.t() @ weighted
            if needs_bias:
                grad_bias[start:end] = (slope * factor).sum(0)
        if needs_hidden:
            grad_hidden = grad_hidden.mul_(factor).to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


class _Head:
    """The head applied block by block into one buffer."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        softcap: float | None,
        dtype: torch.dtype,
    ) -> None:
        self.hidden, self.weight, self.dtype = hidden.detach().to(dtype), weight.detach(), dtype
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.scale, self.softcap = scale, softcap

    def blocks(self) -> Blocks:
        """Give each block's first token, weight (block, H) and scores, float32 (M, block), to be overwritten."""
        rows, vocabulary = len(self.hidden), len(self.weight)
        budget = BLOCK_SCORES.get(self.hidden.device.type, BLOCK_SCORES_ELSEWHERE)
        size = min(vocabulary, max(SMALLEST_BLOCK, budget // max(rows, 1)))
        buffer = torch.empty(rows * size, dtype=torch.float32, device=self.hidden.device)
        for start in range(0, vocabulary, size):
            weight = self.weight[start : start + size].to(self.dtype)
            scores = buffer[: rows * len(weight)].view(rows, len(weight))
            if self.dtype != torch.float32:
                product = torch.nn.functional.linear(
                    self.hidden, weight, None if self.bias is None else self.bias[start : start + size]
                )
                scores.copy_(product)
            else:
                torch.mm(self.hidden, weight.t(), out=scores)
                if self.bias is not None:
                    scores += self.bias[start : start + size]
            if self.scale != 1.0:
                scores.mul_(self.scale)
            if self.softcap is not None:
                scores.div_(self.softcap).tanh_().mul_(self.softcap)
            yield start, weight, scores

    def slope(self, scores: Tensor, normalizers: Tensor, tokens: Tensor, start: int) -> Tensor:
        """Turn the scores of a block into the softmax less the tokens' one-hot rows, through the soft cap."""
        capped = scores.clone() if self.softcap is not None else None
        softmax = scores.sub_(normalizers[:, None]).exp_()
        at, inside = _within(tokens, start, scores.shape[1])
        softmax.scatter_add_(1, at, -inside[:, None])
        return softmax if capped is None else softmax.mul_(1.0 - (capped / self.softcap).square_())


def head_logps(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    r"""Compute the log-probs of single tokens under a linear head, in nats, float32 (M,).

    The product is taken in autocast's dtype where autocast is on, else in that of `weight`; everything after it in
    float32. Scores are multiplied by `scale`, and become c * tanh(score / c) by a `softcap` c.

    Args:
        hidden: Hidden states that predict the tokens, (M, H). Carries grad.
        weight: Rows of the head, (V, H). Carries grad.
        tokens: Token ids, int64 (M,); one that is no id of the vocabulary is a ValueError.
        bias: Bias of the head, (V,), or None.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    check_tokens("tokens", tokens, len(weight))
    with torch.autocast(device, enabled=False):
        return _HeadLogps.apply(hidden, weight, bias, tokens, scale, softcap, dtype)


def _within(tokens: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Return each token's place in a block, (M, 1), and whether it is there, float32 (M,); 0 and 0 where not."""
    place = tokens - start
    inside = (place >= 0) & (place < size)
    return (place * inside)[:, None], inside.float()
