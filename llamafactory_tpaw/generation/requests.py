# SPDX-License-Identifier: Apache-2.0
"""The requests of a round, made one by one from prompts that need not be in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import Request


if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..data.prompts import PromptSet


class PromptRequests:
    r"""One request for each prompt and sample number: request `i` is sample `i % samples` of prompt `i // samples`.

    Args:
        prompts: The prompts.
        iteration: Which θ answers.
        samples: Responses a prompt.
        max_new_tokens: Most tokens of a response.
        cutoff_len: Most tokens of prompt and response together; what a prompt leaves of it bounds its responses.

    Attributes:
        prompt_tokens: Tokens of each request's prompt, (N,) int32.
        new_tokens: Most new tokens of each request, (N,) int32.
    """

    def __init__(self, prompts: PromptSet, iteration: int, samples: int, max_new_tokens: int, cutoff_len: int) -> None:
        self.prompts = prompts
        self.iteration = iteration
        self.samples = samples
        once = samples == 1
        self.prompt_tokens = prompts.prompt_tokens if once else np.repeat(prompts.prompt_tokens, samples)
        self.new_tokens = np.minimum(cutoff_len - self.prompt_tokens, max_new_tokens, dtype=np.int32)

    def __len__(self) -> int:
        """Prompts times samples."""
        return len(self.prompt_tokens)

    def __getitem__(self, index: int) -> Request:
        """Make one request.

        Raises:
            IndexError: If there is none of this number.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"no request {index} among {len(self)}")
        prompt, sample = divmod(index, self.samples)
        prompts = self.prompts.prompts
        return Request(
            prompts.id(prompt), prompts.prompt_ids(prompt), int(self.new_tokens[index]), self.iteration, sample
        )

    def __iter__(self) -> Iterator[Request]:
        """Make them one after another."""
        return (self[index] for index in range(len(self)))
