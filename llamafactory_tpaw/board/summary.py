# SPDX-License-Identifier: Apache-2.0
"""What came of a run: accuracy, rewards, time and tokens of each θ, as a table and as a page of its own."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.files import digest_file, read_json, write_atomic
from ..errors import DataError, EnvironmentProblem, TpawError
from ..report.collect import Accuracy, Method, Point, read_accuracies, read_run
from ..report.render import Page, draw_pictures, render_page
from ..team.manifest import MANIFEST, Manifest, read_manifest
from .locales import say
from .training_log import TrainingLog


REPORT = "tpaw_report.html"
ACCURACY_FILES = "accuracy_*.json"
WEIGHTS = "model.safetensors"
# Weights up to this size are compared themselves; of larger ones it is asked whether they are older than the number.
HASHED_BYTES = 256 * 1024**2
PARTS = ("generate", "score", "train")
NONE = "–"
UNUSUAL = re.compile(r"[^\w.-]+")  # in a file's name: nothing of Markdown or HTML


@dataclass(frozen=True)
class Result:
    r"""One θ and how it came about.

    Attributes:
        number: k of θ_k.
        folder: Where it is.
        iteration: The iteration that makes it; None for the first one, which was there.
        status: Of its `tpaw.json`: `finished` or `training`; `waiting` without one.
        reward_accuracy: Share of triplets with a margin above 0, at the last logged step.
        held_out: The same of the held-out prompts, where there are some.
        task: Accuracy on a task, where it was measured.
        last: The last logged `loss`, `rewards/target` and `rewards/margin`.
        seconds: By part: generate, score, train.
        counts: Triplets, tokens and so on, as in `tpaw.json`.
    """

    number: int
    folder: Path
    iteration: int | None = None
    status: str = "waiting"
    reward_accuracy: float | None = None
    held_out: float | None = None
    task: Accuracy | None = None
    last: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """The θ of a run in order, and the name of the task on which they were measured."""

    results: tuple[Result, ...]
    task: str = ""

    def markdown(self, lang: str | None) -> str:
        """The summary as a Markdown table in a language of the page; what no θ has gets no column."""
        columns = [(heading, [cell(result) for result in self.results]) for heading, cell in self._columns(lang)]
        kept = [(heading, cells) for heading, cells in columns if any(cell != NONE for cell in cells)]
        rows = [[heading for heading, _ in kept], [":--", *["--:"] * (len(kept) - 1)]]
        rows += [list(row) for row in zip(*(cells for _, cells in kept), strict=True)]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"

    def _columns(self, lang: str | None) -> list[tuple[str, Callable[[Result], str]]]:
        task = say("column_task_accuracy", lang) + (f" ({UNUSUAL.sub(' ', self.task)})" if self.task else "")
        return [
            (say("column_theta", lang), lambda result: f"θ_{result.number}"),
            (say("column_status", lang), lambda result: _status(result, lang)),
            (task, lambda result: _percent(result.task and result.task.share)),
            (say("column_reward_accuracy", lang), lambda result: _percent(result.reward_accuracy)),
            (say("column_held_out_accuracy", lang), lambda result: _percent(result.held_out)),
            (say("column_loss", lang), lambda result: _number(result.last.get("loss"))),
            (say("column_target_reward", lang), lambda result: _number(result.last.get("rewards/target"))),
            (say("column_margin", lang), lambda result: _number(result.last.get("rewards/margin"))),
            (say("column_seconds", lang), _seconds),
            (say("column_triplets", lang), lambda result: _count(result.counts.get("train_triplets"))),
            (say("column_tokens", lang), lambda result: _count(result.counts.get("generated_tokens"))),
        ]


def earlier_iterations(model: str | Path) -> dict[int, Path]:
    r"""Return the output folders of the iterations that led to a model, by iteration, the oldest first.

    Args:
        model: A folder, or an adapter behind a `+`. One that self-play did not make has none.
    """
    found: dict[int, Path] = {}
    place = _folder_of(model, Path())
    while place is not None:
        manifest = _manifest(place)
        if manifest is None or manifest.iteration in found:
            break
        found = {manifest.iteration: place, **found}
        place = _folder_of(str(manifest.policy.get("path", "")), place)
    return found


def summarize(folders: Sequence[str | Path]) -> Summary:
    r"""Collect what is on disk about a run; what is missing or damaged is left out.

    Args:
        folders: Output folders in order; the iterations before the first of them are found and added.
    """
    outputs = _outputs(folders)
    manifests = {folder: _manifest(folder) for folder in outputs}
    first = next((manifest for manifest in manifests.values() if manifest is not None), None)
    results = []
    if first is not None:
        start = _folder_of(str(first.policy.get("path", "")), outputs[0]) or outputs[0] / first.policy.get("path", "")
        results.append(Result(first.iteration, start, status="finished"))
    for index, folder in enumerate(outputs):
        number = (first.iteration if first is not None else 0) + index
        results.append(_result(folder, manifests[folder], number))
    task, measured = _task_accuracies([result.folder for result in results])
    return Summary(
        tuple(Result(**{**vars(result), "task": measured.get(result.folder.resolve())}) for result in results), task
    )


def write_run_report(folders: Sequence[str | Path]) -> Path | None:
    r"""Write the report of a run into the folder of its newest finished iteration, as one HTML file.

    Args:
        folders: As for `summarize`.

    Returns:
        The file; None where no iteration is finished.

    Raises:
        TpawError: If a run's log is missing or damaged, or the file cannot be written.
    """
    summary = summarize(folders)
    finished = [result for result in summary.results if result.iteration is not None and result.status == "finished"]
    if not finished:
        return None
    page = _page(summary, finished)
    path = finished[-1].folder / REPORT
    try:
        write_atomic(path, render_page(page, draw_pictures(page)))
    except OSError as error:
        raise EnvironmentProblem(f"{path} cannot be written ({error.strerror}). Free or open it.") from error
    return path


def _page(summary: Summary, finished: Sequence[Result]) -> Page:
    runs = tuple(read_run(result.folder) for result in finished)
    start = summary.results[0]
    points, steps = [], 0
    for result, run in zip(finished, runs, strict=True):
        steps += run.steps
        if result.task is not None:
            points.append(Point(f"theta_{result.number}", steps, result.task))
    if start.task is None:  # accuracies are shown from where all started
        points = []
    else:
        points.insert(0, Point(f"theta_{start.number}", 0, start.task))
    settings = read_manifest(finished[-1].folder).settings
    shown = [f"{key} {value}" for key, value in sorted(settings.items()) if _is_worth_saying(key, value)]
    introduction = (
        f"Iterations {finished[0].iteration} to {finished[-1].iteration}, from θ_{start.number} "
        f"({start.folder.name}) to θ_{finished[-1].number} ({finished[-1].folder.name}).",
        f"Settings of the last one: {', '.join(shown)}.",
    )
    noise = ("The intervals hold the noise of drawing the problems, not that of the training seed.",)
    method = Method(str(settings.get("tpaw_objective", "tpaw")), "self-play", runs, tuple(points))
    title = f"Self-play: {finished[-1].folder.name}"
    return Page(title, introduction, f"accuracy ({summary.task})", noise if points else (), (method,))


def _is_worth_saying(key: str, value: Any) -> bool:
    names = ("learning_rate", "num_train_epochs", "temperature", "top_p", "top_k", "max_new_tokens", "template")
    return (key.startswith("tpaw_") or key in names) and isinstance(value, int | float | str) and "/" not in str(value)


def _outputs(folders: Sequence[str | Path]) -> list[Path]:
    """The folders with those of the iterations before them."""
    given = [Path(folder) for folder in folders]
    manifest = next((found for folder in given if (found := _manifest(folder)) is not None), None)
    policy = _folder_of(str(manifest.policy.get("path", "")), given[0]) if manifest is not None else None
    seen = {folder.resolve() for folder in given}
    earlier = earlier_iterations(policy).values() if policy is not None else []
    before = [folder for folder in earlier if folder.resolve() not in seen]
    return [*before, *given]


def _result(folder: Path, manifest: Manifest | None, number: int) -> Result:
    if manifest is None:
        return Result(number + 1, folder, number)
    last = _log_of(folder.resolve()).last_values()
    return Result(
        number=manifest.produces,
        folder=folder,
        iteration=manifest.iteration,
        status=manifest.status,
        reward_accuracy=last.get("rewards/accuracy"),
        held_out=last.get("eval_rewards/accuracy"),
        last=last,
        seconds=manifest.seconds,
        counts=manifest.counts,
    )


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except TpawError:
        return None


def _folder_of(name: str | Path, base: Path) -> Path | None:
    """The folder that a path or, of `base+adapter`, the adapter names."""
    for text in (str(name), str(name).rpartition("+")[2]):
        place = base / text
        if text and place.is_dir():
            return Path(*place.parts) if not base.parts else _tidy(place)
    return None


def _tidy(path: Path) -> Path:
    """Without `..` where it lies below the working folder."""
    resolved = path.resolve()
    return resolved.relative_to(Path.cwd()) if resolved.is_relative_to(Path.cwd()) else resolved


def _task_accuracies(folders: Sequence[Path]) -> tuple[str, dict[Path, Accuracy]]:
    """The accuracies of the first file beside the runs that knows one of the folders, and what it measured."""
    places = list(dict.fromkeys(place for folder in folders for place in folder.resolve().parents[:2]))
    files = [file for place in places for file in sorted(place.glob(ACCURACY_FILES))]
    for file in sorted(files, key=lambda file: file.stem != "accuracy_test"):
        with contextlib.suppress(DataError, OSError):
            known = {
                folder.resolve(): accuracy for folder in folders if (accuracy := _measured(file, folder)) is not None
            }
            if known:
                return file.stem.removeprefix("accuracy_"), known
    return "", {}


def _measured(file: Path, folder: Path) -> Accuracy | None:
    """What a file says about a folder, if that still holds the weights that were measured."""
    accuracy, weights = read_accuracies(file).get(folder.resolve()), folder / WEIGHTS
    if accuracy is None or not accuracy.n:
        return None
    recorded = {Path(row["checkpoint"]).resolve(): row.get("weights") for row in read_json(file)}[folder.resolve()]
    status = weights.stat() if weights.is_file() else None
    if recorded and status is not None and status.st_size <= HASHED_BYTES:
        return accuracy if _digest(weights.resolve(), status.st_size, status.st_mtime_ns) == recorded else None
    made = weights if weights.is_file() else folder / MANIFEST
    return accuracy if not made.is_file() or made.stat().st_mtime <= file.stat().st_mtime else None


# The table is made anew every few seconds while a run plays.
@functools.lru_cache(maxsize=64)
def _log_of(folder: Path) -> TrainingLog:
    return TrainingLog(folder)


@functools.lru_cache(maxsize=256)
def _digest(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file that has this size since that time."""
    return digest_file(path)


def _status(result: Result, lang: str | None) -> str:
    if result.iteration is None:
        return NONE
    return say(
        {"finished": "status_finished", "training": "status_training"}.get(result.status, "status_waiting"), lang
    )


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}".replace("-", "−")


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _seconds(result: Result) -> str:
    values = [result.seconds.get(part) for part in PARTS]
    return NONE if not any(values) else " / ".join(NONE if value is None else f"{value:,.0f}" for value in values)
