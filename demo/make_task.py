# SPDX-License-Identifier: Apache-2.0
"""Write the demo's problems and its untrained base model: `python -m demo.make_task`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from .problems import DEMO, Problem, Task, make_splits
from .tokenizer import build_tokenizer


SIZES = {"train": 3000, "validation": 1000, "test": 2000}
PLAYED = 750
HIDDEN, LAYERS = 32, 2
MODEL = {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.03,
}


def write_problems(
    folder: Path, seed: int, task: Task = DEMO, sizes: Mapping[str, int] = SIZES, played: int = PLAYED
) -> dict[str, Path]:
    r"""Write train.jsonl, validation.jsonl, test.jsonl and play.jsonl with the columns `question` and `answer`.

    Args:
        folder: Where the files go; made if missing.
        seed: Of the draw; the same seed gives the same bytes.
        task: What the problems are like.
        sizes: How many problems each split gets.
        played: The first of the training problems, which are in play.jsonl, too.

    Returns:
        The path of each split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, splits = {}, make_splits(seed, dict(sizes), task)
    splits["play"] = splits["train"][:played]
    for name, problems in splits.items():
        paths[name] = folder / f"{name}.jsonl"
        _write_lines(paths[name], problems)
    return paths


def write_base_model(folder: Path, seed: int, hidden: int = HIDDEN, layers: int = LAYERS) -> Path:
    r"""Write a Qwen2-architecture checkpoint with random weights, and the demo's tokenizer beside it.

    Args:
        folder: Where the checkpoint goes; made if missing.
        seed: Of the weights.
        hidden: Width of the model.
        layers: Its layers.

    Returns:
        `folder`.
    """
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    tokenizer = build_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(seed)
    size = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **MODEL | size, **ends))
    model.generation_config = GenerationConfig(**ends)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _write_lines(path: Path, problems: Iterable[Problem]) -> None:
    rows = ({"question": problem.question, "answer": problem.answer} for problem in problems)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def main() -> None:
    """Write the problems and the base model."""
    parser = argparse.ArgumentParser(prog="python -m demo.make_task", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="folder of the problems (%(default)s)")
    parser.add_argument("--model", type=Path, default=Path("saves/Tiny/base"), help="base checkpoint (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of problems and weights (%(default)s)")
    arguments = parser.parse_args()
    write_problems(arguments.data, arguments.seed)
    write_base_model(arguments.model, arguments.seed)


if __name__ == "__main__":
    main()
