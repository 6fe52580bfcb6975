# SPDX-License-Identifier: Apache-2.0
"""TPAW as one would first write it: all players in memory, scoring every batch, logits of every position.

Kept for comparison. It stands on transformers alone and shares no code with the package, so that it also says whether
the package computes the same loss.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from .workload import Job, Workload


IGNORED = -100


def naive_loss(
    policy: tuple[Tensor, Tensor], players: list[tuple[Tensor, Tensor]], scale: float, eta: float, gamma: float
) -> Tensor:
    """The mean loss of TPAW from summed log-probs of targets and generated responses, each (B,), by model."""
    rewards = [(scale * (policy[0] - target), scale * (policy[1] - generated)) for target, generated in players]
    target = torch.stack([reward[0] for reward in rewards], dim=1)
    generated = torch.stack([reward[1] for reward in rewards], dim=1)
    with torch.no_grad():
        alpha = torch.where(target <= 0, eta, 1.0)
        beta = torch.softmax(-gamma * (target - generated), dim=1)
    return (beta * F.softplus(-(alpha * target - generated))).sum(dim=1).mean()


def summed_logps(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Sum the log-probs of each row's labels: (N,)."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    labels = batch["labels"][:, 1:]
    mask = labels != IGNORED
    logps = logits[:, :-1].float().log_softmax(-1)
    return (logps.gather(-1, labels.masked_fill(~mask, 0)[..., None]).squeeze(-1) * mask).sum(-1)


class NaiveTrainer(Trainer):
    """Scores targets, then generated responses, in one batch: by the policy and by each player."""

    def __init__(self, *, players: list[PreTrainedModel], workload: Workload, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the micro-batch
        self.players = [player.to(self.args.device).requires_grad_(False).eval() for player in players]
        self.workload = workload
        self.target_logps: list[float] = []

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: Any) -> Any:
        """Compute the loss of a batch of targets and generated responses, in this order."""
        policy = summed_logps(model, inputs).chunk(2)
        with torch.no_grad(), self.accelerator.autocast():
            players = [summed_logps(player, inputs).chunk(2) for player in self.players]
        self.target_logps += policy[0].detach().tolist()
        setting = self.workload
        loss = naive_loss(policy, players, setting.reward_scale, setting.eta, setting.gamma)
        return (loss, policy) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the mean of the targets' log-probs."""
        if self.target_logps:
            logs["logps/target"] = sum(self.target_logps) / len(self.target_logps)
            self.target_logps = []
        super().log(logs, *args, **kwargs)


def read_rounds(workload: Workload, job: Job) -> list[dict[str, Any]]:
    """Read the rows of all rounds of triplets, oldest first."""
    paths = [workload.triplet_file(job.data, iteration) for iteration in job.thetas]
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def chat_of(row: dict[str, Any]) -> list[dict[str, str]]:
    """A row's prompt as messages."""
    return [
        {"role": "system", "content": row["system"]},
        *({"role": "user", "content": message["value"]} for message in row["conversations"]),
    ]


def encode_row(tokenizer: Any, row: dict[str, Any]) -> dict[str, list[int]]:
    """Token ids of a row's prompt, target and generated response."""
    prompt = tokenizer.apply_chat_template(chat_of(row), tokenize=False, add_generation_prompt=True)
    texts = {"prompt": prompt, "target": row["chosen"]["value"] + tokenizer.eos_token}
    ids = {name: tokenizer(text, add_special_tokens=False)["input_ids"] for name, text in texts.items()}
    return ids | {"generated": row["generated_ids"]}


def pad_rows(sequences: list[tuple[list[int], list[int]]], padding: int) -> dict[str, Tensor]:
    """Pad (prompt, response) pairs on the right; labels are the responses."""
    width = max(len(prompt) + len(response) for prompt, response in sequences)
    rows = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, response in sequences:
        length = len(prompt) + len(response)
        rows["input_ids"].append(prompt + response + [padding] * (width - length))
        rows["attention_mask"].append([1] * length + [0] * (width - length))
        rows["labels"].append([IGNORED] * len(prompt) + response + [IGNORED] * (width - length))
    return {name: torch.tensor(values) for name, values in rows.items()}


def training_arguments(workload: Workload, job: Job, output: Path, **changes: Any) -> dict[str, Any]:
    """What every contender's `TrainingArguments` say: optimizer, batch, precision, nothing saved on the way."""
    return {
        "output_dir": str(output),
        "per_device_train_batch_size": workload.micro_triplets,
        "gradient_accumulation_steps": workload.accumulation,
        "gradient_checkpointing": workload.checkpointing,
        "learning_rate": workload.learning_rate,
        "lr_scheduler_type": "constant",
        "optim": workload.optimizer,
        "max_grad_norm": 1.0,
        "num_train_epochs": float(job.epochs),
        "bf16": workload.precision == "bf16",
        "use_cpu": workload.device == "cpu",
        "logging_steps": workload.logging_steps,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 0,
        "remove_unused_columns": False,
        **changes,
    }


def load_theta(workload: Workload, number: int) -> PreTrainedModel:
    """Load a checkpoint in the dtype that the policy is trained in."""
    dtype = torch.bfloat16 if workload.precision == "pure_bf16" else torch.float32
    return AutoModelForCausalLM.from_pretrained(workload.theta(number), dtype=dtype)


def run_naive(workload: Workload, job: Job, output: Path, clock: TrainerCallback) -> None:
    """Run one iteration: read, load policy and players, train, save."""
    tokenizer = AutoTokenizer.from_pretrained(workload.theta(job.thetas[-1]))
    rows = [encode_row(tokenizer, row) for row in read_rounds(workload, job)]

    def collate(features: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        sequences = [(row["prompt"], row[name]) for name in ("target", "generated") for row in features]
        return pad_rows(sequences, tokenizer.pad_token_id)

    trainer = NaiveTrainer(
        model=load_theta(workload, job.thetas[-1]),
        players=[load_theta(workload, number) for number in job.thetas],
        workload=workload,
        args=TrainingArguments(**training_arguments(workload, job, output)),
        train_dataset=rows,
        data_collator=collate,
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model()
