# SPDX-License-Identifier: Apache-2.0
"""What the iterations of a run logged: series for Gradio's plots, and the table with the accuracy per θ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..runs.run_files import split_numbered
from ..team.manifest import MANIFEST
from .settings import status_of
from .words import escaped, say


if TYPE_CHECKING:
    import pandas as pd

TRAINER_LOG = "trainer_log.jsonl"
WEIGHT = "weights/player/"
# A plot of so many points a line is drawn at once.
MOST_POINTS = 400
# Panel -> the metrics in it, each with the message that names its line; None names the lines by iteration.
PANELS: dict[str, dict[str, str] | None] = {
    "loss": None,
    "rewards": {"rewards/target": "column_target", "rewards/generated": "column_generated"},
    "rewards/margin": None,
    "rewards/accuracy": None,
    "weights/player": {},
}
TABLE = {
    "column_reward_accuracy": "rewards/accuracy",
    "column_held_out_accuracy": "eval_rewards/accuracy",
    "column_loss": "loss",
    "column_target_reward": "rewards/target",
    "column_generated_reward": "rewards/generated",
    "column_margin": "rewards/margin",
}
STATUS = {"finished": "status_finished", "training": "status_training", None: "status_waiting"}
NONE = "—"


class Iteration(NamedTuple):
    """An iteration on disk: its number t, its status in `tpaw.json`, and what it logged by optimizer step."""

    number: int
    status: str | None
    log: dict[int, dict[str, Any]]


def _outputs(saves: Path) -> list[tuple[str, int, Path]]:
    """The output folders `<run>_iter<t>` whose iteration has begun to train, in order."""
    folders = [path.parent for path in saves.glob(f"*_iter*/{MANIFEST}")]
    return sorted((run, t, path) for path in folders for run, t in [split_numbered(path.name)] if t is not None)


def run_names(saves: Path) -> list[str]:
    """Return the names of the runs that have begun."""
    return list(dict.fromkeys(run for run, _, _ in _outputs(saves)))


def read_iterations(saves: Path, run: str | None) -> list[Iteration]:
    """Read the logs of a run's iterations, in order."""
    folders = {t: path for name, t, path in _outputs(saves) if name == run}
    return [Iteration(t, status_of(path), read_log(path / TRAINER_LOG)) for t, path in folders.items()]


def read_log(path: Path) -> dict[int, dict[str, Any]]:
    """Read a log by optimizer step; the step of an attempt that was continued replaces the one before it."""
    steps: dict[int, dict[str, Any]] = {}
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the last line may be half written
        if isinstance(entry, dict) and isinstance(entry.get("current_steps"), int):
            steps.setdefault(entry["current_steps"], {}).update(entry)
    return dict(sorted(steps.items()))


def frames(iterations: list[Iteration], lang: str | None) -> dict[str, pd.DataFrame]:
    """Return what each panel draws of a run: `step`, counted from the first iteration on, `value` and `line`."""
    import pandas as pd

    rows: dict[str, list[tuple[int, float, str]]] = {panel: [] for panel in PANELS}
    before = 0
    for iteration in iterations:
        every = max(1, len(iteration.log) // MOST_POINTS)
        for place, (step, entry) in enumerate(iteration.log.items()):
            if place % every == 0 or place == len(iteration.log) - 1:
                for panel, names in PANELS.items():
                    points = _points(panel, names, entry, iteration.number, lang)
                    rows[panel] += [(before + step, value, line) for line, value in points.items()]
        before += max(iteration.log, default=0)
    # The page takes the types of the columns from the first table that it is given.
    types = {"step": "int64", "value": "float64"}
    return {
        panel: pd.DataFrame(found, columns=["step", "value", "line"]).astype(types) for panel, found in rows.items()
    }


def _points(
    panel: str, names: Mapping[str, str] | None, entry: Mapping[str, Any], number: int, lang: str | None
) -> dict[str, float]:
    """What one logged step adds to a panel, by line."""
    if names is None:
        lines = {panel: f"θ_{number + 1}"}
    elif names:
        lines = {key: say(message, lang) for key, message in names.items()}
    else:
        lines = {key: key.removeprefix(WEIGHT).replace("theta_", "θ_") for key in entry if key.startswith(WEIGHT)}
    return {line: float(entry[key]) for key, line in lines.items() if isinstance(entry.get(key), int | float)}


def accuracy_table(iterations: list[Iteration], lang: str | None) -> str:
    """Return the table of a run's iterations as HTML: accuracy, loss and rewards as each logged them last."""
    if not iterations:
        return ""
    heads = ["column_theta", "column_iteration", "column_status", *TABLE]
    rows = []
    for iteration in iterations:
        last = {key: value for entry in iteration.log.values() for key, value in entry.items()}
        status = say(STATUS.get(iteration.status, "status_training"), lang)
        cells = [f"θ_{iteration.number + 1}", iteration.number, status]
        for key in TABLE.values():
            value, text = last.get(key), "{:.1%}" if key.endswith("accuracy") else "{:.4f}"
            number = isinstance(value, int | float)
            cells.append(text.format(value).replace("-", "−").replace("%", " %") if number else NONE)
        rows.append("".join(f"<td>{escaped(cell)}</td>" for cell in cells))
    head = "".join(f"<th>{escaped(say(name, lang))}</th>" for name in heads)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="prose"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
