# SPDX-License-Identifier: Apache-2.0
"""Iterations in a row by one command: what one needs of memory, open files, disk and time stays the same."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from pathlib import Path

import psutil

from tests import tiny
from tests.processes import Started
from tests.runs import Project

from .ledger import Outcome


SETTINGS = {"save_strategy": "steps", "save_steps": 2, "tpaw_keep_checkpoints": "needed", "num_train_epochs": 2.0}
MORE = 1.1  # what the last third of the iterations may need, of what the second third does
MIB = 1 << 20


def look(parent: psutil.Process, highest: dict[str, float]) -> None:
    """Raise figures to what the processes hold now."""
    processes = [parent, *parent.children(recursive=True)]
    memory = sum(each.memory_info().rss for each in processes) / MIB
    files = {
        f"open files of {name}": sum(each.num_fds() for each in some)
        for name, some in (("it", [parent]), ("all", processes))
    }
    for name, figure in {
        "MiB of memory": memory,
        "MiB of the waiting one": parent.memory_info().rss / MIB,
        **files,
    }.items():
        highest[name] = max(highest.get(name, 0.0), figure)


def run(count: int, seed: int, folder: Path) -> Outcome:
    """Play so many iterations, and compare their last third with the one before."""
    project = Project(folder, tiny.save_model(folder / "theta_0"))
    files = [project.write(f"iter{t}.yaml", project.settings(t, seed=seed, **SETTINGS)) for t in range(count)]
    command = Started(project, "llamafactory-tpaw", "run", *files)
    parent, figures, spent = psutil.Process(command.process.pid), [{}], 0.0
    while command.process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            look(parent, figures[-1])
            if command.output.count(": finished after") == len(figures):
                times = parent.cpu_times()
                weights = [*folder.glob("saves/play_*/**/*.safetensors"), *folder.glob("saves/play_*/**/*.pt")]
                figures[-1]["MiB of weights"] = sum(each.stat().st_size for each in weights) / MIB
                figures[-1]["seconds of the CPU"] = times.children_user + times.children_system - spent
                spent = times.children_user + times.children_system
                print(len(figures), {name: round(figure, 2) for name, figure in figures[-1].items()}, flush=True)
                figures.append({})
        time.sleep(0.1)
    figures = figures[:count]
    outcome, third = Outcome(Counter({"iterations": command.output.count(": finished after")})), count // 3
    if command.wait() or outcome.tried["iterations"] != count:
        outcome.failures.append(f"it ends with {command.process.returncode}: {command.output[-3000:]}")
        return outcome
    for name in figures[0]:  # the command ended before all of its last iteration could be seen
        parts = [each[name] for each in figures[third : 2 * third]], [each[name] for each in figures[2 * third : -1]]
        before, after = (sum(part) / len(part) for part in parts)
        if after > MORE * before:
            outcome.failures.append(f"{name}: {before:.1f} an iteration, then {after:.1f} (seed {seed})")
    return outcome
