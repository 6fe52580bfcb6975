# SPDX-License-Identifier: Apache-2.0
"""Evaluates checkpoints on tasks of lm-evaluation-harness; keeps what came out in `eval.json` beside each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..data.files import key_problems, read_json, write_json_atomic
from ..errors import DataError


EVALUATIONS = "eval.json"
SCHEMA = 1


@dataclass(frozen=True)
class Evaluation:
    """What one task said of a checkpoint, and how it was asked.

    Attributes:
        metric: The task's first metric and filter, `acc_norm` before `acc`, as lm-eval names it: `exact_match,none`.
        value: Its value.
        stderr: Standard error over the items, None where lm-eval has none.
        n: Number of items.
        items: The metric of each item in the order of the task's documents: a text of `0` and `1`, or a list of
            numbers; empty of a group of tasks, and of a metric that no single item has.
        metrics: Every metric of the task, and its `..._stderr`.
        version: Of the task.
        num_fewshot: Examples in front of each question.
        limit: The first so many items alone, None for all.
        backend: `hf` or `vllm`.
        dtype: Of the weights while evaluated.
        chat_template: SHA-256 of the chat template, None where none was applied.
        lm_eval: Version of lm-eval.
        seconds: How long it took.
    """

    metric: str
    value: float
    stderr: float | None
    n: int
    items: str | list[float]
    metrics: dict[str, float]
    version: str
    num_fewshot: int
    limit: int | None
    backend: str
    dtype: str
    chat_template: str | None
    lm_eval: str
    seconds: float


def read_evaluations(folder: Path, fingerprint: str | None = None) -> dict[str, Evaluation]:
    r"""Read a checkpoint's `eval.json`, by task; empty where it has none.

    Args:
        folder: Checkpoint.
        fingerprint: Of the checkpoint; evaluations of other weights that were in this folder are left out. None takes
            what is there.

    Raises:
        DataError: If the file is damaged or of another version.
    """
    path = Path(folder) / EVALUATIONS
    if not path.is_file():
        return {}
    content = read_json(path)
    tasks = content.get("tasks") if isinstance(content, dict) and content.get("schema") == SCHEMA else None
    if not isinstance(tasks, dict) or any(key_problems(Evaluation, entry) for entry in tasks.values()):
        raise DataError(f"{path} is damaged, or of another version. Delete it and evaluate the checkpoint again.")
    if fingerprint not in (None, content.get("fingerprint")):
        return {}
    return {name: Evaluation(**entry) for name, entry in tasks.items()}


def write_evaluations(folder: Path, fingerprint: str, evaluations: Mapping[str, Evaluation]) -> None:
    """Write a checkpoint's `eval.json`, whole or not at all."""
    tasks = {name: asdict(evaluation) for name, evaluation in evaluations.items()}
    write_json_atomic(Path(folder) / EVALUATIONS, {"schema": SCHEMA, "fingerprint": fingerprint, "tasks": tasks})
