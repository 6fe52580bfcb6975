# SPDX-License-Identifier: Apache-2.0
"""Plays run files one after the other, each in a process of its own, so that the device's memory is free again."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.files import read_json
from ..data.progress import PLAYING, Report
from ..errors import DataError, TpawError
from ..lf.signals import SAVING_S, run_child
from ..team.manifest import read_manifest
from .playlist import Item, Progress, find_progress


Status = Literal["skipped", "finished", "continued", "failed", "interrupted", "waiting"]
STDERR = 2  # the descriptor: what a child can write to
DONE = ("skipped", "finished", "continued")


@dataclass
class Outcome:
    r"""What became of a run file.

    Attributes:
        item: The run file.
        status: `skipped` was finished before, `continued` finished after an interruption; `waiting` was not begun.
        seconds: How long it took now.
        exit_code: Of its process; 0 where none was needed.
        reason: Why it failed, where its process did not say so itself.
    """

    item: Item
    status: Status = "waiting"
    seconds: float = 0.0
    exit_code: int = 0
    reason: str = ""

    @property
    def is_done(self) -> bool:
        """Whether the output folder holds the result."""
        return self.status in DONE


@dataclass
class Play:
    r"""The whole of a `run`, so far.

    Attributes:
        outcomes: One a run file, in order.
        tell: Called with the outcome's index and what happens to it now, in words.
        to_stderr: Whether the children's output goes to stderr, so that stdout stays free.
    """

    items: Sequence[Item]
    tell: Callable[[int, str], None]
    to_stderr: bool = False
    outcomes: list[Outcome] = field(init=False)

    def __post_init__(self) -> None:
        self.outcomes = [Outcome(item) for item in self.items]

    @property
    def exit_code(self) -> int:
        """That of the run that failed; 0 where none did."""
        return next((outcome.exit_code for outcome in self.outcomes if outcome.exit_code), 0)

    def play(self) -> None:
        r"""Play what is not finished; stop at the first failure.

        Raises:
            KeyboardInterrupt: If this process is interrupted; its child is ended before.
        """
        for index, outcome in enumerate(self.outcomes):
            self._play_one(index, outcome)
            if not outcome.is_done:
                return

    def _play_one(self, index: int, outcome: Outcome) -> None:
        started = time.monotonic()
        Report("preparing", outcome.item.produces, playing=index)
        try:
            progress = find_progress(outcome.item)
            if progress.state == "finished":
                outcome.status = "skipped"
                self.tell(index, f"skipped: {progress.detail}.")
                return
            self.tell(index, f"{progress.detail}.")
            outcome.exit_code = self._run(index, outcome.item, progress)
            if outcome.exit_code == 0:
                _require_finished(outcome.item)
        except TpawError as error:
            outcome.exit_code, outcome.reason = error.exit_code, " ".join(error.problems)
        except KeyboardInterrupt:
            outcome.status = "interrupted"
            raise
        finally:
            outcome.seconds = time.monotonic() - started
        if outcome.exit_code:
            outcome.status = "failed"
            return
        outcome.status = "continued" if progress.state == "begun" else "finished"
        self.tell(index, f"{outcome.status}: {outcome.item.folder} holds {outcome.item.produces}.")

    def _run(self, index: int, item: Item, progress: Progress) -> int:
        command = [sys.executable, "-m", "llamafactory_tpaw", "train", item.file, *item.overrides]
        streams = {"stdout": STDERR} if self.to_stderr else {}
        environment = {**os.environ, PLAYING: str(index)}
        return run_child([*command, *_resume(item, progress)], environment, SAVING_S, **streams)


def _resume(item: Item, progress: Progress) -> list[str]:
    """Where stage sft continues: LlamaFactory itself would take the newest checkpoint, whole or not."""
    if item.is_iteration or progress.state != "begun" or item.given.get("resume_from_checkpoint"):
        return []
    checkpoint = progress.resume and progress.resume.checkpoint
    return [f"resume_from_checkpoint={checkpoint}"] if checkpoint else ["overwrite_output_dir=true"]


def _require_finished(item: Item) -> None:
    """A process that ends well without a result was stopped from outside, or overwrote a result as it was asked to."""
    again = Item(item.file, item.overrides, item.given | {"overwrite_output_dir": False})
    if find_progress(again).state != "finished":
        raise DataError(
            f"Its process ended without an error, but {item.folder} holds no finished result. Start the same command "
            "again: it continues."
        )


def summarize(outcome: Outcome) -> dict[str, Any]:
    r"""Return what a finished run says of itself, as the summary and `--json` show it.

    Returns:
        `file`, `stage`, `output_dir`, `status`, `wall_seconds`; of a finished one also `result`, `seconds` by part,
        `counts` (iterations only), and of the last logged step `loss`, `target_reward` and `margin` as far as they
        exist.
    """
    item = outcome.item
    row: dict[str, Any] = {
        "file": item.file,
        "stage": item.given["stage"],
        "output_dir": str(item.folder),
        "status": outcome.status,
        "wall_seconds": round(outcome.seconds, 1),
    }
    if outcome.exit_code:
        row |= {"exit_code": outcome.exit_code, "reason": outcome.reason}
    return row | (_result(item.folder) if outcome.is_done else {})


def _result(folder: Path) -> dict[str, Any]:
    state = folder / "trainer_state.json"
    logged = read_json(state).get("log_history", []) if state.is_file() else []
    last: dict[str, Any] = next((entry for entry in reversed(logged) if "loss" in entry), {})
    total: dict[str, Any] = next((entry for entry in reversed(logged) if "train_runtime" in entry), {})
    metrics = {"loss": "loss", "target_reward": "rewards/target", "margin": "rewards/margin"}
    result = {name: last[key] for name, key in metrics.items() if key in last}
    manifest = read_manifest(folder)
    if manifest is None:
        return {"seconds": {"train": total.get("train_runtime", 0.0)}, **result}
    parts = {"result": f"theta_{manifest.produces}", "seconds": manifest.seconds, "counts": manifest.counts}
    return parts | result
