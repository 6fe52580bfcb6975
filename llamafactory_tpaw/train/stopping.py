# SPDX-License-Identifier: Apache-2.0
"""SIGTERM while an iteration trains: the step is finished, a checkpoint saved, and the same command goes on there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from ..lf.logs import get_logger
from ..lf.signals import Terminated


if TYPE_CHECKING:
    from threading import Event

    from transformers import Trainer

logger = get_logger(__name__)


class StopBetweenSteps(TrainerCallback):
    """Ends training with the next checkpoint after the step in which SIGTERM reached any of the processes.

    Must be the last of the callbacks, so that the others have done what they do when a checkpoint is saved.
    """

    def __init__(self, trainer: Trainer, termination: Event) -> None:
        self.trainer = trainer
        self.termination = termination
        self.asked = self.stopping = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop here, unless an epoch ends with the step: then what is due at its end comes first."""
        flag = torch.tensor(int(self.asked or self.termination.is_set()), device=args.device)
        # The same answer in all processes, although the signal may have reached one of them only.
        self.asked = bool(self.trainer.accelerator.reduce(flag, reduction="sum"))
        if not float(state.epoch or 0.0).is_integer():
            self.on_epoch_end(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop here, but after the last step, when the result is saved instead."""
        if self.asked and state.global_step < state.max_steps:
            args.save_only_model = False  # training continues from it
            control.should_save = self.stopping = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End training once the checkpoint is whole; with `save_strategy: best` an evaluation may have left it out."""
        if self.stopping:
            logger.warning_rank0(
                f"SIGTERM: {args.output_dir}/checkpoint-{state.global_step} is saved, from which the same command "
                "continues."
            )
            self.trainer.accelerator.wait_for_everyone()  # torchrun ends all processes when the first one ends
            raise Terminated
