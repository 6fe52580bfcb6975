# SPDX-License-Identifier: Apache-2.0
"""Starts a process for each contender and lets them run in turn. Imports nothing heavy, so that it takes no memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .workload import ROOT, Job, Workload


LOG_LINES = 15


class WorkerFailed(Exception):
    """A contender that ended without an answer."""


class Worker:
    """A contender's process, which waits between its turns."""

    def __init__(self, name: str, workload: Workload, number: int) -> None:
        self.name = name
        self.log = Path(workload.folder) / f"worker-{number}.log"
        self._stream = self.log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", name, str(workload_file(workload))],
            cwd=ROOT,
            env=environment(workload),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stream,
            text=True,
        )

    def wait_until_ready(self) -> None:
        """Wait for the imports."""
        self._read()

    def run(self, job: Job) -> dict[str, Any]:
        """Run one iteration: what was measured, or `error`."""
        try:
            self._process.stdin.write(json.dumps(job.to_dict()) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed() from None
        return self._read()

    def stop(self) -> None:
        """End the process, which has nothing left to do."""
        self._process.kill()
        self._process.communicate()
        self._stream.close()

    def tail(self) -> str:
        """The end of what the process printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise self._failed()
        return json.loads(line)

    def _failed(self) -> WorkerFailed:
        return WorkerFailed(f"{self.name} ended with code {self._process.wait()}:\n{self.tail()}")


def environment(workload: Workload) -> dict[str, str]:
    """Environment of a process that measures: threads, the device, nothing from a hub."""
    changes = {
        "OMP_NUM_THREADS": str(workload.threads),
        "MKL_NUM_THREADS": str(workload.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
        "HF_DATASETS_CACHE": str(Path(workload.folder) / "datasets"),
    }
    if workload.device == "cpu":
        changes["CUDA_VISIBLE_DEVICES"] = ""
    else:
        changes["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return os.environ | changes


def workload_file(workload: Workload) -> Path:
    """Where the workload is written for other processes."""
    return Path(workload.folder) / "workload.json"


@contextmanager
def start_workers(names: Sequence[str], workload: Workload) -> Iterator[list[Worker]]:
    r"""Make models and data, and start the processes; all have imported what they need when this begins.

    Raises:
        WorkerFailed: If models and data cannot be made, or a process ends at once.
    """
    Path(workload.folder).mkdir(parents=True, exist_ok=True)
    workload_file(workload).write_text(workload.to_json())
    workers = [Worker(name, workload, number) for number, name in enumerate(names)]
    try:
        make_material(workload)
        for worker in workers:
            worker.wait_until_ready()
        yield workers
    finally:
        for worker in workers:
            worker.stop()


def make_material(workload: Workload) -> None:
    """Make models and data in a process of its own.

    Raises:
        WorkerFailed: With what it printed.
    """
    command = [sys.executable, "-m", "benchmarks.material", str(workload_file(workload))]
    result = subprocess.run(command, cwd=ROOT, env=environment(workload), capture_output=True, text=True, check=False)
    if result.returncode:
        tail = "\n".join((result.stdout + result.stderr).splitlines()[-LOG_LINES:])
        raise WorkerFailed(f"Models and data could not be made ({result.returncode}):\n{tail}")


def run_in_turn(
    workers: Sequence[Worker], jobs: Sequence[Job], repeats: int, progress: Any = None
) -> dict[tuple[str, int], list[dict[str, Any]]]:
    r"""Let every worker run every job once to warm up and `repeats` times to be measured.

    Workers take turns within a repeat, in reverse order every other time, so that a change of the machine's load meets
    all of them.

    Args:
        workers: The contenders.
        jobs: The iterations.
        repeats: How often each is measured.
        progress: Called with a text before each iteration.

    Returns:
        What was measured by contender and index of the job; one entry with `error` where a contender failed.
    """
    results: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for turn in range(repeats + 1):
        for index, job in enumerate(jobs):
            for worker in workers[:: -1 if turn % 2 else 1]:
                found = results.setdefault((worker.name, index), [])
                if any("error" in result for result in found):
                    continue
                if progress is not None:
                    progress(f"{'warm-up' if turn == 0 else f'repeat {turn}'}: {worker.name}")
                try:
                    result = worker.run(job)
                except WorkerFailed as error:
                    result = {"error": str(error)}
                if turn or "error" in result:
                    found.append(result)
    return results
