# SPDX-License-Identifier: Apache-2.0
"""The layout of a batch, fixed in one place: all targets, then all generated responses, then all y_0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset


if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from .opponents import Triplet

IGNORE_INDEX = -100


class TripletDataset(Dataset):
    r"""Triplets with, for cached players, their log-probs.

    Args:
        triplets: The triplets.
        player_target_logps: Sums in nats, shape (n, J), players oldest first; None where players score online.
        player_generated_logps: The same for the generated responses.
    """

    def __init__(
        self,
        triplets: list[Triplet],
        player_target_logps: np.ndarray | None = None,
        player_generated_logps: np.ndarray | None = None,
    ) -> None:
        self.triplets = triplets
        self.player_target_logps = player_target_logps
        self.player_generated_logps = player_generated_logps

    def __len__(self) -> int:
        return len(self.triplets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {"triplet": self.triplets[index]}
        if self.player_target_logps is not None:
            item["player_target_logps"] = self.player_target_logps[index]
            item["player_generated_logps"] = self.player_generated_logps[index]
        return item


def pad_sequences(
    prompts: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    *,
    pad_token_id: int,
    padding_side: str = "right",
    pad_to_multiple_of: int = 8,
) -> dict[str, torch.Tensor]:
    r"""Join prompts and responses and pad them to one length.

    Args:
        prompts: N arrays of prompt ids.
        responses: N arrays of response ids.
        pad_token_id: Written into the padding; masked.
        padding_side: `right` or `left`.
        pad_to_multiple_of: The length T is a multiple of this.

    Returns:
        `input_ids`, `attention_mask` and `labels` (prompt and padding masked by -100), each (N, T); with left padding
        also `position_ids`.
    """
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    width = -(-max(lengths) // pad_to_multiple_of) * pad_to_multiple_of
    input_ids = torch.full((len(lengths), width), pad_token_id, dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    attention_mask = torch.zeros_like(input_ids)
    for row, (prompt, response, length) in enumerate(zip(prompts, responses, lengths, strict=True)):
        start = 0 if padding_side == "right" else width - length
        middle = start + len(prompt)
        input_ids[row, start:middle] = torch.from_numpy(prompt)
        input_ids[row, middle : start + length] = torch.from_numpy(response)
        labels[row, middle : start + length] = input_ids[row, middle : start + length]
        attention_mask[row, start : start + length] = 1
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    if padding_side == "left":
        batch["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    return batch


@dataclass
class TripletCollator:
    r"""Make a batch of B triplets.

    Attributes:
        pad_token_id: Padding id.
        padding_side: As the tokenizer has it.
        pad_to_multiple_of: See `pad_sequences`.
    """

    pad_token_id: int
    padding_side: str = "right"
    pad_to_multiple_of: int = 8

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        r"""Collate items of `TripletDataset`.

        Returns:
            The sequences of `pad_sequences` in the order of the module's first line, (2B, T) or (3B, T) with y_0;
            `truncated` and `equal`, bool (B,); `player_target_logps` and `player_generated_logps`, float32 (B, J),
            where the players are cached.
        """
        triplets = [feature["triplet"] for feature in features]
        rounds = list(zip(*(triplet.responses for triplet in triplets), strict=True))
        batch = pad_sequences(
            [triplet.prompt_ids for _ in rounds for triplet in triplets],
            [response for responses in rounds for response in responses],
            pad_token_id=self.pad_token_id,
            padding_side=self.padding_side,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        batch["truncated"] = torch.tensor([triplet.truncated for triplet in triplets])
        batch["equal"] = torch.tensor([triplet.equal for triplet in triplets])
        for key in ("player_target_logps", "player_generated_logps"):
            if key in features[0]:
                batch[key] = torch.stack([torch.from_numpy(feature[key]) for feature in features])
        return batch
