# SPDX-License-Identifier: Apache-2.0
r"""The families of runs that this project ships: `yaml/` and `data/dataset_info.json` are written from here.

`python -m llamafactory_tpaw.runs.families` (`make run-files`) writes those of the files that are stale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .run_files import Family, Training, dataset_entries, run_files


SOURCES: dict[str, dict[str, Any]] = {
    "ultrachat_200k": {
        "hf_hub_url": "HuggingFaceH4/ultrachat_200k",
        "split": "train_sft",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    },
    "gsm8k": {
        "hf_hub_url": "openai/gsm8k",
        "subset": "main",
        "columns": {"prompt": "question", "response": "answer"},
    },
    "ultrafeedback": {
        "hf_hub_url": "llamafactory/ultrafeedback_binarized",
        "ranking": True,
        "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
    },
    "tiny_train": {"file_name": "demo/train.jsonl", "columns": {"prompt": "question", "response": "answer"}},
}
GPU_MODEL = {"flash_attn": "fa2"}
GPU_OUTPUT = {
    "logging_steps": 10,
    "save_steps": 500,
    "save_total_limit": 1,
    "save_only_model": False,
    "plot_loss": True,
    "report_to": "none",
}
ULTRACHAT_PROMPTS = {"tpaw_max_prompts": 50000, "tpaw_turn": "first", "tpaw_max_bad_rows": 500}
GPU_PRECISION = {"bf16": True}


def sft_training(
    learning_rate: float,
    epochs: float,
    batch: int,
    accumulation: int,
    precision: Mapping[str, Any] = GPU_PRECISION,
    **extra: Any,
) -> Training:
    """Return AdamW with cosine decay, as LlamaFactory's own examples have it."""
    return Training(learning_rate, epochs, batch, accumulation, extra={**precision, "seed": 42, **extra})


def self_play_training(
    epochs: float, batch: int, accumulation: int, precision: Mapping[str, Any] = GPU_PRECISION, **extra: Any
) -> Training:
    """Return SPIN's published setting: RMSProp, peak 5e-7, linear decay, 10 % warm-up, 64 triplets a step."""
    optimizer = {"optim": "rmsprop", "weight_decay": 0.0}
    return Training(5e-7, epochs, batch, accumulation, "linear", extra={**optimizer, **precision, "seed": 42, **extra})


def lora_training(
    epochs: float, batch: int, accumulation: int, precision: Mapping[str, Any] = GPU_PRECISION, **extra: Any
) -> Training:
    """Return what LlamaFactory's own example has for adapters trained on preferences; SPIN and TPAW say nothing."""
    return Training(5e-6, epochs, batch, accumulation, extra={**precision, "seed": 42, **extra})


QWEN = Family(
    name="qwen",
    note="Qwen2.5-1.5B on UltraChat, one GPU.",
    model="Qwen/Qwen2.5-1.5B",
    template="qwen",
    sft_data="ultrachat_200k",
    saves="saves/Qwen2.5-1.5B/full",
    sft=sft_training(2e-5, 1.0, 4, 32),
    self_play=dict.fromkeys(("tpaw", "spin", "tspin"), self_play_training(2.0, 4, 16)),
    iterations={"tpaw": 5, "spin": 4, "tspin": 4},
    preference_data="ultrafeedback",
    dpo=self_play_training(1.0, 4, 16),
    prompts=ULTRACHAT_PROMPTS,
    model_keys=GPU_MODEL,
    output_keys=GPU_OUTPUT,
)
QWEN_LORA = replace(
    QWEN,
    name="qwen_lora",
    note="Qwen2.5-1.5B on UltraChat with LoRA, one GPU; the settings of LoRA are ours. theta_0 is that of qwen.",
    saves="saves/Qwen2.5-1.5B/lora",
    self_play={"tpaw": lora_training(2.0, 4, 16)},
    iterations={"tpaw": 5},
    dpo=None,
    theta_0=QWEN.theta("tpaw", 0),
    lora={"lora_rank": 16, "lora_alpha": 32, "lora_target": "all"},
)
LLAMA = replace(
    QWEN,
    name="llama",
    note="Llama-3.1-8B on UltraChat, 8 GPUs.",
    launcher="FORCE_TORCHRUN=1",
    model="meta-llama/Llama-3.1-8B",
    template="llama3",
    saves="saves/Llama-3.1-8B/full",
    sft=sft_training(2e-5, 1.0, 2, 8, ddp_timeout=180000000),
    self_play={"tpaw": self_play_training(2.0, 2, 4, ddp_timeout=180000000)},
    iterations={"tpaw": 5},
    dpo=self_play_training(1.0, 2, 4, ddp_timeout=180000000),
    method_keys={"deepspeed": "yaml/deepspeed/ds_z3_config.json"},
)
QWEN_GSM8K = replace(
    QWEN,
    name="qwen_gsm8k",
    note="Qwen2.5-1.5B on GSM8K, one GPU.",
    sft_data="gsm8k",
    run_prefix="gsm8k_",
    sft=sft_training(1e-5, 3.0, 8, 8),
    self_play=dict.fromkeys(("tpaw", "spin", "tspin"), self_play_training(2.0, 8, 8)),
    dpo=None,
    cutoff_len=1024,
    max_new_tokens=512,
    prompts={"tpaw_turn": "last"},
)
TINY_TRAIN = {
    "weight_decay": 0.0,
    "adam_beta2": 0.95,
    "use_cpu": True,
    "seed": 0,
    "save_steps": 500,
    "save_total_limit": 1,
}
# The steps of three iterations of tpaw: 2 epochs of 1,000, 2,000 and 3,000 triplets; a checkpoint every 63 steps.
TINY_SFT_MORE = TINY_TRAIN | {
    "max_steps": 378,
    "save_steps": 63,
    "save_total_limit": 6,
    "save_only_model": True,
}
# A batch of 32 triplets in groups would hold 11 prompts, too few at the learning rate of this little model.
TINY_PLAY = TINY_TRAIN | {"tpaw_grouping": "none"}
# Learning rates were chosen on the demo's validation problems, each method's for itself: see docs/demo.md.
TINY_TPAW = Training(1e-3, 2.0, 32, 1, "linear", 0.1, extra=TINY_PLAY)
TINY_SPIN = Training(1e-5, 2.0, 32, 1, "linear", 0.1, extra=TINY_PLAY)
TINY = Family(
    name="tiny",
    note="The demo: a model of 0.4 M parameters on arithmetic word problems, on the CPU. `make demo` runs it.",
    model="saves/Tiny/base",
    template="default",
    sft_data="tiny_train",
    saves="saves/Tiny/full",
    sft=Training(2e-3, 20.0, 32, 1, "cosine", 0.0, extra=TINY_TRAIN),
    self_play={"tpaw": TINY_TPAW, "spin": TINY_SPIN},
    iterations={"tpaw": 3, "spin": 3},
    sft_more=Training(1e-3, 12.0, 32, 1, "linear", 0.1, extra=TINY_SFT_MORE),
    cutoff_len=128,
    max_new_tokens=64,
    prompts={"tpaw_turn": "last"},
    reward_scale=1.0,
    dataset_keys={"default_system": ""},
    output_keys={"logging_steps": 5, "plot_loss": True, "report_to": "none"},
)
FAMILIES = (QWEN, QWEN_LORA, LLAMA, QWEN_GSM8K, TINY)


def committed_files() -> dict[str, str]:
    """Return every generated file of this project, by path relative to it; the sources' entries come first."""
    entries, files = dict(SOURCES), {}
    for family in FAMILIES:
        entries |= dataset_entries(family)
        files |= run_files(family)
    return files | {"data/dataset_info.json": json.dumps(entries, indent=2, ensure_ascii=False) + "\n"}


def main() -> None:
    """Write the committed files below the working folder, those that are stale."""
    for name, text in committed_files().items():
        path = Path(name)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")


if __name__ == "__main__":
    main()
