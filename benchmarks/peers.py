# SPDX-License-Identifier: Apache-2.0
"""What a user would run otherwise on the same pairs: LlamaFactory's `dpo` stage and TRL's `DPOTrainer`."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainerCallback

from .naive import chat_of, load_theta, read_rounds, training_arguments
from .ours import common_settings
from .workload import Job, Workload


def run_dpo_stage(workload: Workload, job: Job, output: Path, clock: TrainerCallback) -> None:
    """Run LlamaFactory's `dpo` stage with one reference model, θ_t, on the same files."""
    from llamafactory.train.tuner import run_exp

    settings = common_settings(workload, job, output) | {
        "stage": "dpo",
        "pref_loss": "sigmoid",
        "pref_beta": workload.reward_scale,
        "ref_model": str(workload.theta(job.thetas[-1])),
        "overwrite_cache": True,  # an iteration's pairs are new
    }
    run_exp(settings, callbacks=[clock])


def run_trl(workload: Workload, job: Job, output: Path, clock: TrainerCallback, *, precompute: bool = False) -> None:
    """Run TRL's `DPOTrainer` with one reference model, θ_t, online or computed beforehand."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(workload.theta(job.thetas[-1]))
    rows = [
        {
            "prompt": tokenizer.apply_chat_template(chat_of(row), tokenize=False, add_generation_prompt=True),
            "chosen": row["chosen"]["value"],
            "rejected": row["rejected"]["value"],
        }
        for row in read_rounds(workload, job)
    ]
    arguments = DPOConfig(
        **training_arguments(workload, job, output),
        beta=workload.reward_scale,
        loss_type="sigmoid",
        max_length=None,
        max_prompt_length=None,
        precompute_ref_log_probs=precompute,
    )
    model = load_theta(workload, job.thetas[-1])
    model.warnings_issued = {}  # TRL 0.24 expects it, transformers 5 no longer has it
    trainer = DPOTrainer(
        model=model,
        ref_model=load_theta(workload, job.thetas[-1]),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model()
