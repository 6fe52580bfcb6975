# SPDX-License-Identifier: Apache-2.0
"""Reads what runs left on disk: their logs, their `tpaw.json` and a file of accuracies."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..data.files import read_json
from ..errors import DataError
from ..team.manifest import read_manifest


Z95 = 1.959964


@dataclass(frozen=True)
class Accuracy:
    """How many of `n` problems a checkpoint solved, with a 95 % interval; `hits` says which ones, as `0` and `1`."""

    n: int
    correct: int
    interval: tuple[float, float]
    hits: str = ""

    @property
    def share(self) -> float:
        """Solved problems as a fraction."""
        return self.correct / self.n


class Difference(NamedTuple):
    """How much more of the same problems one checkpoint solves than another, as fractions."""

    share: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Run:
    """One training run; where its folder has no `tpaw.json`, `produces` is the folder's name instead of `theta_k`."""

    folder: Path
    produces: str
    steps: int
    triplets: int | None
    seconds: Mapping[str, float]
    players: tuple[str, ...]
    logs: tuple[Mapping[str, float], ...]


class Point(NamedTuple):
    """A measured checkpoint, `steps` optimizer steps after the method's start: `theta_k`, `step n`, or `end`."""

    label: str
    steps: int
    accuracy: Accuracy


@dataclass(frozen=True)
class Method:
    """A method's runs in order and every checkpoint of theirs that was measured; `note` says what it is."""

    label: str
    note: str
    runs: tuple[Run, ...]
    points: tuple[Point, ...] = ()

    @property
    def steps(self) -> int:
        """Optimizer steps of all runs."""
        return sum(run.steps for run in self.runs)

    @property
    def last(self) -> Point | None:
        """The measured checkpoint after the most steps."""
        return self.points[-1] if self.points else None

    def series(self, key: str) -> list[list[tuple[int, float]]]:
        """Return one metric as a list of points a run, over the steps of all; empty where none logged it."""
        lines, before = [], 0
        for run in self.runs:
            lines.append([(before + int(row["step"]), float(row[key])) for row in run.logs if key in row])
            before += run.steps
        return lines if any(lines) else []


def collect_method(
    label: str, note: str, start: Path, folders: Sequence[Path], accuracies: Mapping[Path, Accuracy]
) -> Method:
    r"""Read a method's runs, in the order in which they ran, and line up its measured checkpoints.

    Raises:
        DataError: If a run is missing or unfinished, or its start was not measured.
    """
    runs = tuple(read_run(folder) for folder in folders)
    if start.resolve() not in accuracies:
        raise DataError(f"No accuracy of {start}, from which {label} started. Measure it and try again.")
    points, before = [Point("theta_0", 0, accuracies[start.resolve()])], 0
    for run in runs:
        for folder, accuracy in accuracies.items():
            if folder.parent == run.folder.resolve() and folder.name.startswith("checkpoint-"):
                step = int(folder.name.removeprefix("checkpoint-"))
                if step < run.steps:
                    points.append(Point(f"step {before + step}", before + step, accuracy))
        before += run.steps
        if (accuracy := accuracies.get(run.folder.resolve())) is not None:
            is_end = run is runs[-1] and not run.produces.startswith("theta_")
            points.append(Point("end" if is_end else run.produces, before, accuracy))
    return Method(label, note, runs, tuple(sorted(points, key=lambda point: point.steps)))


def read_run(folder: Path) -> Run:
    r"""Read `trainer_state.json` and, where present, `tpaw.json` of a finished run.

    Raises:
        DataError: If the folder has no `trainer_state.json` or one without steps.
    """
    path = folder / "trainer_state.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist. Give the `output_dir` of a finished run.")
    state = read_json(path)
    history = [row for row in state.get("log_history", []) if "step" in row]
    if not history:
        raise DataError(f"{path} has no logged step. Set `logging_steps` below the number of steps and train again.")
    totals: dict[str, Any] = next((row for row in reversed(history) if "train_runtime" in row), {})
    runtime = totals.get("train_runtime", 0.0)
    manifest = read_manifest(folder)
    return Run(
        folder=folder,
        produces=f"theta_{manifest.produces}" if manifest else folder.name,
        steps=int(state["global_step"]),
        triplets=manifest.counts.get("train_triplets") if manifest else None,
        seconds=(manifest and manifest.seconds) or ({"train": runtime} if runtime else {}),
        players=tuple(player["name"] for player in manifest.players) if manifest else (),
        logs=tuple(row for row in history if "loss" in row),
    )


def read_accuracies(path: Path) -> dict[Path, Accuracy]:
    r"""Read a JSON list with `checkpoint`, `n`, `correct`, `interval` and, if known, `hits`, by resolved folder.

    Raises:
        DataError: If the file cannot be read, or a row lacks a field.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {
            Path(row["checkpoint"]).resolve(): Accuracy(
                int(row["n"]), int(row["correct"]), (row["interval"][0], row["interval"][1]), row.get("hits", "")
            )
            for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path} is no file of accuracies ({error!r}). Measure the checkpoints again.") from error


def compare(first: Accuracy, second: Accuracy) -> Difference | None:
    """Return first minus second, problem by problem, with a 95 % interval; None where `hits` are unknown or differ.

    The interval holds the noise of which problems were drawn, not that of the training seed.
    """
    if not first.hits or len(first.hits) != len(second.hits):
        return None
    pairs = list(zip(first.hits, second.hits, strict=True))
    gained, lost, total = pairs.count(("1", "0")), pairs.count(("0", "1")), len(pairs)
    share = (gained - lost) / total
    half = Z95 * math.sqrt(max(0.0, (gained + lost) / total - share**2) / total)
    return Difference(share, (share - half, share + half))
