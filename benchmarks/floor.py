# SPDX-License-Identifier: Apache-2.0
"""The least that training must do: the policy's forward and backward pass over each target and response once.

Players cost nothing here: their log-probs are constants. Logits are computed at the positions of responses only and
are kept for the backward pass, none is computed twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

from .naive import IGNORED, encode_row, load_theta, naive_loss, pad_rows, read_rounds, training_arguments
from .workload import Job, Workload


class FloorTrainer(Trainer):
    """Trains on prompts, each with its target and all generated responses."""

    def __init__(self, *, workload: Workload, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False
        self.workload = workload

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: Any) -> Any:
        """Compute the loss of G prompts, whose rows are: all targets, then each round of generated responses."""
        groups = inputs.pop("groups")
        labels = inputs["labels"][:, 1:]
        mask = labels != IGNORED
        with self.accelerator.autocast():
            hidden = model.model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).last_hidden_state
            logits = model.lm_head(hidden[:, :-1][mask])
        logps = -F.cross_entropy(logits.float(), labels[mask], reduction="none")
        target, *generated = torch.stack([part.sum() for part in logps.split(mask.sum(1).tolist())]).split(groups)
        policy = target.repeat(len(generated)), torch.cat(generated)
        constants = tuple(logps.detach() for logps in policy)
        setting = self.workload
        loss = naive_loss(policy, [constants], setting.reward_scale, setting.eta, setting.gamma)
        return (loss, policy) if return_outputs else loss


def run_floor(workload: Workload, job: Job, output: Path, clock: TrainerCallback) -> None:
    """Train the policy alone: read, load, train, save."""
    tokenizer = AutoTokenizer.from_pretrained(workload.theta(job.thetas[-1]))
    rows = [encode_row(tokenizer, row) for row in read_rounds(workload, job)]
    rounds = [rows[start : start + job.data.prompts] for start in range(0, len(rows), job.data.prompts)]
    groups = [
        {"prompt": same[0]["prompt"], "responses": [same[0]["target"], *(row["generated"] for row in same)]}
        for same in zip(*rounds, strict=True)
    ]

    def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
        turns = range(len(rounds) + 1)
        sequences = [(group["prompt"], group["responses"][turn]) for turn in turns for group in features]
        return pad_rows(sequences, tokenizer.pad_token_id) | {"groups": len(features)}

    per_step = workload.micro_triplets * workload.accumulation // job.players
    per_batch = max(workload.micro_triplets // job.players, 1)
    changes = {"per_device_train_batch_size": per_batch, "gradient_accumulation_steps": per_step // per_batch}
    trainer = FloorTrainer(
        model=load_theta(workload, job.thetas[-1]),
        workload=workload,
        args=TrainingArguments(**training_arguments(workload, job, output, **changes)),
        train_dataset=groups,
        data_collator=collate,
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model()
