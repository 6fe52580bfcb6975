# SPDX-License-Identifier: Apache-2.0
"""The process of one contender: imports what it needs, then runs an iteration for each line it reads.

`python -m benchmarks.worker NAME FILE` with a `Workload` as JSON in the file. Lines come on standard input and are
jobs as JSON; one line of JSON goes back for each. What libraries print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

from .contenders import Contender, contenders
from .workload import Job, Workload


def main() -> int:
    """Answer `ready`, then each job until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    name, path = sys.argv[1:]
    contender, workload = contenders()[name], Workload.from_json(Path(path).read_text())
    for module in contender.modules:
        importlib.import_module(module)

    from .clock import peak_bytes

    base = peak_bytes()
    _answer(answers, {"ready": True})
    for line in sys.stdin:
        try:
            _answer(answers, _measure(contender, workload, Job.from_dict(json.loads(line)), base))
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            _answer(answers, {"error": f"{type(error).__name__}: {error}"})
    return 0


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def _measure(contender: Contender, workload: Workload, job: Job, base: int) -> dict[str, Any]:
    r"""Run one iteration and say what it took; all it wrote is removed.

    Args:
        contender: Who runs.
        workload: What all share.
        job: The iteration.
        base: Peak size of the process after its imports, in bytes.
    """
    import torch

    from .clock import MEBIBYTE, StepClock, device_peak_mib, now, peak_bytes, reset_peaks

    torch.set_num_threads(workload.threads)
    output = Path(workload.folder) / f"worker-{os.getpid()}" / "output"
    output.parent.mkdir(exist_ok=True)
    if contender.prepare is not None:
        contender.prepare(workload, job, output)
    _reset_state()
    reset_peaks()
    clock = StepClock()
    begin = now()
    try:
        contender.run(workload, job, output, clock)
        end = now()
        return {
            "seconds": end - begin,
            "before_training_seconds": clock.begin - begin,
            "training_seconds": clock.end - clock.begin,
            "step_seconds": clock.step_seconds,
            "step_ends": [end - clock.begin for end in clock.step_ends],
            "peak_mib": (peak_bytes() - base) / MEBIBYTE,
            "device_peak_mib": device_peak_mib(),
            "logged": clock.logged,
        }
    finally:
        shutil.rmtree(output, ignore_errors=True)
        reset_peaks()


def _reset_state() -> None:
    """Let accelerate begin again, and keep LlamaFactory from raising the amount of what is logged."""
    import transformers
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    transformers.utils.logging.set_verbosity_warning()
    logging.getLogger("llamafactory").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
