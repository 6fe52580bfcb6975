# SPDX-License-Identifier: Apache-2.0
"""Start the probe, and start it again after a step that killed it, until every step has an answer."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


ROOT = Path(__file__).resolve().parents[2]
# The package may lie in a folder that only the command itself has on its path. -P: nothing in the working folder is
# imported by accident.
PROBE = f"import sys; sys.path.append({str(ROOT)!r}); from llamafactory_tpaw.doctor.probe import main; main()"
STEP_LIMIT_S = 300.0


class Answer(NamedTuple):
    """What a step found, or why it found nothing."""

    found: Any = None
    error: str | None = None


def examine(steps: list[str], show: Callable[[str], None], limit_s: float = STEP_LIMIT_S) -> dict[str, Answer]:
    r"""Take the probe's steps in a process of its own.

    Args:
        steps: Names of the steps, see `doctor.probe`.
        show: Is called with the name of each step when it begins.
        limit_s: Seconds that one step may take.

    Returns:
        An answer for each step; one for a step that killed or hung the process, too.
    """
    answers: dict[str, Answer] = {}
    while remaining := [step for step in steps if step not in answers]:
        current = None
        with _probe(remaining, limit_s) as (process, lines):
            for line in lines:
                if "begin" in line:
                    current = line["begin"]
                    show(current)
                else:
                    answers[line["step"]] = Answer(line["found"], line["error"])
                    current = None
            code, hung = process.wait(), lines.hung
        if unanswered := [step for step in remaining if step not in answers]:
            answers[current or unanswered[0]] = Answer(error=_death(code, hung, limit_s))
    return answers


class _Lines:
    """The JSON lines that a process writes; it is killed when the next one takes too long."""

    def __init__(self, process: subprocess.Popen[str], limit_s: float) -> None:
        self.process = process
        self.limit_s = limit_s
        self.hung = False

    def _kill(self) -> None:
        self.hung = True
        self.process.kill()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            timer = threading.Timer(self.limit_s, self._kill)
            timer.daemon = True
            timer.start()
            try:
                text = self.process.stdout.readline()
            finally:
                timer.cancel()
            if not text.endswith("\n"):
                return
            yield json.loads(text)


@contextlib.contextmanager
def _probe(steps: list[str], limit_s: float) -> Iterator[tuple[subprocess.Popen[str], _Lines]]:
    """Start the process; what it writes to stderr, warnings of imports above all, is not shown."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", PROBE, *steps],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    try:
        yield process, _Lines(process, limit_s)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _death(code: int, hung: bool, limit_s: float) -> str:
    if hung:
        return f"it did not end within {limit_s:g} s"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"it killed the interpreter ({signal.Signals(-code).name})"
    return f"it ended the interpreter (exit code {code})"
