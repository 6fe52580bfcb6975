# SPDX-License-Identifier: Apache-2.0
"""LlamaFactory's log file with this stage's metrics: its own callback writes a fixed list of keys.

It also reports each step to whoever watches from outside, see `data.progress.Report`.
"""

from __future__ import annotations

import os
import re
from collections import deque
from typing import TYPE_CHECKING, Any

from ..lf import facade


if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

METRIC = re.compile(r"(eval_(\S*_)?)?(rewards|weights|logps|length|generated)/")


def with_tpaw_metrics(callbacks: list[TrainerCallback]) -> list[TrainerCallback]:
    """Let LlamaFactory's log callback write the metrics of stage `tpaw` into `trainer_log.jsonl`, too."""
    from ..data.progress import Report

    class TpawLogCallback(facade.LogCallback):
        """Adds the metrics of each entry; lines are written one after the other by a thread of its own."""

        def on_train_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            super().on_train_begin(args, state, control, **kwargs)
            name = os.path.basename(os.path.normpath(args.output_dir))
            self.tpaw_report = Report("training", name, state.max_steps, "step", done=state.global_step)

        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            super().on_step_end(args, state, control, **kwargs)
            self.tpaw_report.show(state.global_step)

        def on_train_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            super().on_train_end(args, state, control, **kwargs)
            self.tpaw_report.show(state.global_step, ended=True)

        def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
            if args.should_save and self.thread_pool is not None:
                entry = state.log_history[-1]
                self.tpaw_metrics.append({key: entry[key] for key in entry if METRIC.match(key)})
            super().on_log(args, state, control, **kwargs)

        def _write_log(self, output_dir: str, logs: dict[str, Any]) -> None:
            # An evaluation without training writes its progress without having logged.
            super()._write_log(output_dir, logs | (self.tpaw_metrics.popleft() if self.tpaw_metrics else {}))

    for callback in callbacks:
        if type(callback) is facade.LogCallback:
            # The object stays the same one: LlamaBoard's abort signal is bound to it.
            callback.__class__ = TpawLogCallback
            callback.tpaw_metrics = deque()
    return callbacks
