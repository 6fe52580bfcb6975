# SPDX-License-Identifier: Apache-2.0
"""Players in memory: loaded as LlamaFactory loads the policy, frozen, and given back when their turn is over."""

from __future__ import annotations

import contextlib
import copy
import gc
from typing import TYPE_CHECKING, Any

import torch

from ..plugin import facade
from .forward import freeze


if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from ..arguments.parsed import RunArguments
    from .members import Member


class PlayerLoader:
    r"""Loads players for a run.

    Args:
        run: The run's arguments.
        tokenizer: The tokenizer, already adapted to the template.
    """

    def __init__(self, run: RunArguments, tokenizer: Any) -> None:
        self.run = run
        self.tokenizer = tokenizer

    @contextlib.contextmanager
    def open(self, member: Member) -> Iterator[PreTrainedModel]:
        """Give a player for some time: frozen, in evaluation mode, on the run's device."""
        model = self.load(member)
        try:
            yield model
        finally:
            del model
            release_memory()

    def load(self, member: Member) -> PreTrainedModel:
        """Load a player exactly as LlamaFactory loads the policy, then freeze it; it stays with the caller."""
        model_args = copy.copy(self.run.model)
        model_args.model_name_or_path = str(member.folder)
        model = facade.load_model(self.tokenizer, model_args, self.run.finetuning, True)
        return freeze(model).to(self.run.training.device)


def release_memory() -> None:
    """Give a player's memory back before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
