# SPDX-License-Identifier: Apache-2.0
"""Log-probs of responses from a model's logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .checks import check_shape, check_tokens


IGNORED_LABEL = -100
CHUNK_POSITIONS = 256


class SequenceLogps(NamedTuple):
    """What `sequence_logps` returns."""

    sums: Tensor  # of the log-probs of each row's unmasked labels in nats, shape (B,), float32
    token_counts: Tensor  # number of labels in each sum, shape (B,), int64


class _TokenLogps(torch.autograd.Function):
    """Log-probs of single tokens, whose backward computes the softmax again instead of keeping it.

    Nothing of the size of positions x vocabulary is kept between forward and backward but the logits themselves,
    and only one chunk of positions at a time is held in float32.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        logps = torch.empty(len(tokens), dtype=torch.float32, device=logits.device)
        normalizers = torch.empty_like(logps)
        for start in range(0, len(tokens), CHUNK_POSITIONS):
            chunk = slice(start, start + CHUNK_POSITIONS)
            scores = logits[rows[chunk], positions[chunk]].float()
            normalizers[chunk] = scores.logsumexp(-1)
            logps[chunk] = scores.gather(1, tokens[chunk, None]).squeeze(1) - normalizers[chunk]
        ctx.save_for_backward(logits, rows, positions, tokens, normalizers)
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        logits, rows, positions, tokens, normalizers = ctx.saved_tensors
        grad_logits = torch.zeros_like(logits)
        for start in range(0, len(tokens), CHUNK_POSITIONS):
            chunk = slice(start, start + CHUNK_POSITIONS)
            # d logp / d logits = onehot(token) - softmax(logits)
            scores = logits[rows[chunk], positions[chunk]].float()
            slope = scores.sub_(normalizers[chunk, None]).exp_().neg_()
            slope.scatter_add_(1, tokens[chunk, None], torch.ones_like(slope[:, :1]))
            # Added, because one position predicts the first tokens of all responses that share a prompt.
            slope = slope.mul_(grad[chunk, None]).to(logits.dtype)
            grad_logits.index_put_((rows[chunk], positions[chunk]), slope, accumulate=True)
        return grad_logits, None, None, None


def sequence_logps(logits: Tensor, labels: Tensor) -> SequenceLogps:
    r"""Sum the log-probs of each row's response under a causal model.

    Logits at position t predict the label at t + 1: this function does the shift, so a label in the first column
    is predicted by nothing and does not count. The work is done in float32 whatever the logits' dtype, over the
    unmasked positions only, and each row's sum runs over its own tokens only, so that padding changes no bit of it.

    Args:
        logits: Scores of a model, shape (B, T, V). Carries grad. Left unchanged, and must not be changed in place
            before the backward.
        labels: Token ids, shape (B, T); -100 masks a position (prompt, padding).

    Returns:
        Sums, shape (B,), float32, and token counts, shape (B,). A row without an unmasked label has 0 and 0.

    Raises:
        ValueError: If the shapes differ or a label is neither -100 nor an id of the vocabulary.
    """
    check_shape("logits", logits, ("B", "T", "V"))
    if labels.shape != logits.shape[:2] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"`labels` must be integers of shape {tuple(logits.shape[:2])}, as `logits` has, got {labels.dtype} of "
            f"{tuple(labels.shape)}."
        )
    check_tokens("labels", labels[labels != IGNORED_LABEL], logits.shape[-1])
    targets = labels[:, 1:].to(logits.device)
    mask = targets != IGNORED_LABEL
    token_counts = mask.sum(1)
    rows, positions = mask.nonzero(as_tuple=True)
    token_logps = _TokenLogps.apply(logits, rows, positions, targets[mask].long())
    sums = torch.stack([part.sum() for part in token_logps.split(token_counts.tolist())])
    return SequenceLogps(sums, token_counts)


def logits_at(logits: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
    r"""Compute the log-probs of single tokens, int64 (M,), in nats, float32 (M,), from a model's logits, (N, T, V).

    `places`, int64 (M,), are where in the flattened (N, T) each token is predicted. The logits must not be changed in
    place before the backward. A token that is no id of the vocabulary is a ValueError.
    """
    check_tokens("tokens", tokens, logits.shape[-1])
    return _TokenLogps.apply(logits, places // logits.shape[1], places % logits.shape[1], tokens)
