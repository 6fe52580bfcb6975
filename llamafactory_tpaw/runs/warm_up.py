# SPDX-License-Identifier: Apache-2.0
"""A few real training steps on a sample, in a temporary folder: what `check --model` measures for its estimates."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainerCallback

from ..data.collator import TripletDataset
from ..lf import facade
from ..train.metrics import with_tpaw_metrics
from ..train.trainer import TpawTrainer
from ..train.workflow import PLOTTED
from .estimates.hours import TrainingSample
from .estimates.passes import collator_of


if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ..arguments.parsed import RunArguments
    from ..data.opponents import Triplet
    from ..team.shortcuts import Shortcuts

STEPS = 4
# What is not part of the sample: nothing is saved, reported or evaluated, and each step is logged.
SAMPLE_ARGS: dict[str, Any] = {
    "max_steps": STEPS,
    "gradient_accumulation_steps": 1,
    "logging_steps": 1,
    "logging_strategy": "steps",
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "report_to": [],
    "resume_from_checkpoint": None,
    "disable_tqdm": True,
    "dataloader_num_workers": 0,
    "remove_unused_columns": False,
    "logging_nan_inf_filter": False,
}


def measure_training(
    run: RunArguments,
    tokenizer: Any,
    model: torch.nn.Module,
    shortcuts: Shortcuts,
    triplets: Sequence[Triplet],
    logps: tuple[np.ndarray, np.ndarray],
    names: Sequence[str],
) -> TrainingSample:
    r"""Train a few steps with the run's Trainer, optimizer and schedule; the model's weights change.

    Args:
        run: The run's arguments.
        tokenizer: The tokenizer.
        model: The policy on its device.
        shortcuts: What its forward pass does without.
        triplets: The sample.
        logps: What the players say of targets and generated responses, in nats, (n, J) each.
        names: Names of the players; empty for T-SPIN.
    """
    with tempfile.TemporaryDirectory(prefix="llamafactory-tpaw-") as folder:
        args = copy.copy(run.training)
        for name, value in (SAMPLE_ARGS | {"output_dir": folder}).items():
            setattr(args, name, value)
        clock = _Clock(args.device)
        begun = clock.now()
        trainer = TpawTrainer(
            model=model,
            shortcuts=shortcuts,
            args=args,
            finetuning_args=run.finetuning,
            player_names=names,
            processing_class=tokenizer,
            data_collator=clock.counting(collator_of(run, tokenizer, shortcuts)),
            train_dataset=TripletDataset(triplets, *(logps if names else ())),
            callbacks=[*with_tpaw_metrics([facade.LogCallback()]), clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        whole = clock.now() - begun
        begun = clock.now()
        tokenizer.save_pretrained(folder)
        trainer.save_state()
        files = clock.now() - begun
        begun = clock.now()
        if run.finetuning.plot_loss:
            with contextlib.redirect_stdout(io.StringIO()):  # which says where the picture is
                facade.plot_loss(folder, keys=PLOTTED)
        return clock.sample(whole, files, clock.now() - begun)


class _Clock(TrainerCallback):
    """Notes the time at each stage of each step, and the tokens of each batch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.begins: list[float] = []
        self.computed: list[float] = []
        self.ends: list[float] = []
        self.tokens: list[int] = []

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def counting(self, collator: Any) -> Any:
        def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            batch = collator(features)
            self.tokens.append(batch["input_ids"].numel())
            return batch

        return collate

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begins.append(self.now())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.computed.append(self.now())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(self.now())

    def sample(self, whole: float, files: float, curves: float) -> TrainingSample:
        """Means over all steps but the first."""
        later = range(1, len(self.ends))
        passes = sum(self.computed[step] - self.begins[step] for step in later)
        token = passes / sum(self.tokens[step] for step in later)
        update = sum(self.ends[step] - self.computed[step] for step in later) / len(later)
        log = sum(self.begins[step] - self.ends[step - 1] for step in later) / len(later)
        steps = len(self.ends) * (passes / len(later) + update + log)
        return TrainingSample(token, update, log, max(whole - steps, 0.0), files, curves)
