# SPDX-License-Identifier: Apache-2.0
"""SIGTERM while an iteration trains: the step is finished, a checkpoint saved, and the same command goes on there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from ..lf.logs import get_logger
from ..lf.signals import Terminated, Termination, termination_deferred


if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState

logger = get_logger(__name__)


class StopBetweenSteps(TrainerCallback):
    r"""Ends training with a checkpoint after the step in which SIGTERM reached any of the processes.

    Must be the last of the callbacks, so that what the others asked for at the end of a step is known.

    Args:
        trainer: The trainer, which knows the other processes.
        termination: Whether SIGTERM reached this process.
    """

    def __init__(self, trainer: Trainer, termination: Termination) -> None:
        self.trainer = trainer
        self.termination = termination
        self.asked = False
        self.stopped = False

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop here, unless an epoch ends with the step: then what is due at its end comes first."""
        self.asked = self.asked or self._reached_any(args)
        if self.asked and not float(state.epoch or 0.0).is_integer():
            self._stop(args, state, control)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop here; an epoch that was left early has no end at which anything would be due."""
        if self.stopped:
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.asked:
            self._stop(args, state, control)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the trainer from loading the best checkpoint and deleting others; this one knows the best, too."""
        if self.stopped:
            state.best_model_checkpoint = None

    def _reached_any(self, args: Any) -> bool:
        """Whether SIGTERM reached one of the processes, the same answer in all of them."""
        flag = torch.tensor(int(self.termination.asked), device=args.device)
        return bool(self.trainer.accelerator.reduce(flag, reduction="sum"))

    def _stop(self, args: Any, state: TrainerState, control: TrainerControl) -> None:
        if control.should_evaluate and args.save_strategy == "best":
            return  # whether a checkpoint is saved depends on the evaluation: one step later none does
        logger.warning_rank0(
            f"SIGTERM: {Path(args.output_dir) / f'checkpoint-{state.global_step}'} is saved, from which the same "
            "command continues. A second signal ends this at once."
        )
        args.save_only_model = False  # training continues from it
        control.should_save = control.should_training_stop = self.stopped = True


@contextlib.contextmanager
def stop_between_steps(trainer: Trainer) -> Iterator[None]:
    r"""Let SIGTERM end training between two steps, and not at all what comes after: it would be for nothing.

    Raises:
        Terminated: At the end, if there was one.
    """
    with termination_deferred() as termination:
        trainer.add_callback(StopBetweenSteps(trainer, termination))
        yield
        if termination.asked:
            raise Terminated


def end_if_stopped(trainer: Trainer) -> None:
    r"""End where training was stopped, so that its result is not taken for θ_{t+1}.

    Raises:
        Terminated: Then, in every process.
    """
    callbacks = trainer.callback_handler.callbacks
    if any(callback.stopped for callback in callbacks if isinstance(callback, StopBetweenSteps)):
        trainer.accelerator.wait_for_everyone()  # torchrun ends all processes when the first one ends
        raise Terminated
