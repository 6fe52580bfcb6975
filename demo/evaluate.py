# SPDX-License-Identifier: Apache-2.0
"""Greedy exact-answer accuracy of checkpoints on a file of problems: `python -m demo.evaluate CHECKPOINT`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .problems import parse_answer


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


MAX_NEW_TOKENS = 64
Z95 = 1.959964


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    r"""Compute the 95 % Wilson score interval of a proportion.

    Args:
        correct: Number of successes.
        total: Number of trials, at least 1.

    Returns:
        Lower and upper bound, as fractions.
    """
    share = correct / total
    shrink = 1 + Z95**2 / total
    centre = (share + Z95**2 / (2 * total)) / shrink
    half = Z95 * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2)) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)


def read_problems(path: Path) -> list[dict[str, str]]:
    """Read a file of problems with the columns `question` and `answer`, one JSON object a line."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Token ids of a prompt as LlamaFactory's template `default` writes it, without a system text."""
    ids = tokenizer.encode(f"Human: {question}", add_special_tokens=False)
    return [*ids, tokenizer.eos_token_id, *tokenizer.encode("\nAssistant:", add_special_tokens=False)]


def answer_questions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], batch_size: int
) -> list[str]:
    r"""Answer every question greedily.

    Args:
        model: In evaluation mode; on the CPU or one device.
        tokenizer: Its tokenizer, with end and pad tokens.
        questions: What is asked.
        batch_size: Questions at a time.

    Returns:
        The responses without the end-of-turn token, in the order of the questions.
    """
    import torch

    prompts = [encode_prompt(tokenizer, question) for question in questions]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    responses = [""] * len(prompts)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        width = max(len(prompts[row]) for row in rows)
        gaps = [width - len(prompts[row]) for row in rows]
        ids = [[tokenizer.pad_token_id] * gap + prompts[row] for row, gap in zip(rows, gaps, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
        with torch.inference_mode():
            out = model.generate(
                input_ids=torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        for row, sequence in zip(rows, out[:, width:].tolist(), strict=True):
            ends = sequence.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in sequence else len(sequence)
            responses[row] = tokenizer.decode(sequence[:ends])
    return responses


def is_correct(response: str, answer: str) -> bool:
    """Say whether both end in the same number."""
    given = parse_answer(response)
    return given is not None and given == parse_answer(answer)


def evaluate_checkpoint(checkpoint: Path, problems: Sequence[dict[str, str]], batch_size: int = 250) -> dict[str, Any]:
    r"""Measure one checkpoint.

    Args:
        checkpoint: A folder with weights and tokenizer.
        problems: Rows with `question` and `answer`.
        batch_size: Questions at a time.

    Returns:
        `checkpoint`, `n`, `correct`, `accuracy`, `interval` (95 %, Wilson) and `hits`, one 0 or 1 a problem.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    responses = answer_questions(model, tokenizer, [row["question"] for row in problems], batch_size)
    hits = [int(is_correct(given, row["answer"])) for given, row in zip(responses, problems, strict=True)]
    correct = sum(hits)
    return {
        "checkpoint": str(checkpoint),
        "n": len(hits),
        "correct": correct,
        "accuracy": correct / len(hits),
        "interval": list(wilson_interval(correct, len(hits))),
        "hits": "".join(map(str, hits)),
    }


def main() -> None:
    """Print one JSON object a checkpoint, without the hits of single problems."""
    parser = argparse.ArgumentParser(prog="python -m demo.evaluate", description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--data", type=Path, default=Path("data/demo/test.jsonl"), help="problems (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=250, help="questions at a time (%(default)s)")
    arguments = parser.parse_args()
    problems = read_problems(arguments.data)
    for checkpoint in arguments.checkpoints:
        result = evaluate_checkpoint(checkpoint, problems, arguments.batch_size)
        print(json.dumps({key: value for key, value in result.items() if key != "hits"}), flush=True)


if __name__ == "__main__":
    main()
