# SPDX-License-Identifier: Apache-2.0
"""`tpaw_guard`: whether θ_t has collapsed, by what earlier iterations recorded, before another is spent on it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments.checks import read_tpaw_args
from ..data.triplets import read_meta
from ..errors import DataError
from ..lf.logs import get_logger
from ..team.checkpoint import read_state
from ..team.manifest import path_from, read_manifest


if TYPE_CHECKING:
    from collections.abc import Callable

    from .plan import Plan

logger = get_logger(__name__)

# When a figure says that θ_t has collapsed, by what it was as the run began and the targets' length.
COLLAPSED: dict[str, Callable[[float, float, float], bool]] = {
    "target log-prob a token": lambda now, then, _: now < min(2 * then, then - 0.1),
    "margin": lambda now, then, _: now < then - 0.5,
    "tokens a response": lambda now, then, target: not min(then, target) / 2 <= now <= 2 * max(then, target),
    "share equal": lambda now, then, _: now < then / 4 and then >= 0.1,
    "share truncated": lambda now, then, _: now > then + 0.25,
}
LOGGED = ("logps/target", "length/target", "rewards/margin")
COUNTS = {"tokens a response": "generated_tokens", "share equal": "equal", "share truncated": "length"}


def guard(plan: Plan, warn: Callable[[str], object] = logger.warning_rank0) -> None:
    """Warn where θ_t has collapsed, with the figures; with `tpaw_guard: stop` raise a `DataError` instead."""
    trained = [player for player in plan.players if player.theta > 0]
    if plan.tpaw_args.tpaw_guard == "off" or not trained:
        return
    first, newest = trained[0], trained[-1]
    then, now = _began(Path(first.path)), _means(_steps(Path(newest.path))[::-1])
    if plan.opponents and plan.opponents.rounds and not plan.to_generate:
        now |= _counted(plan.opponents.rounds[-1].path)
    if plan.tpaw_args.tpaw_objective == "tspin":
        now.pop("margin", None)  # there it is no difference to a player, which would begin at 0
    beyond, within = [], []
    for name, has_collapsed in COLLAPSED.items():
        if name in now and name in then:
            broken = has_collapsed(now[name], then[name], then.get("target", then[name]))
            (beyond if broken else within).append(f"{name} {now[name]:.2f} (then {then[name]:.2f})")
    if not beyond:
        return
    text = (
        f"`tpaw_guard`: {newest.name} ({newest.path}) has collapsed since iteration {first.theta - 1} began: "
        f"{', '.join(beyond)}{'; within the limits ' if within else ''}{', '.join(within)}. Repeat iteration "
        f"{newest.theta - 1} with a lower `learning_rate` and `overwrite_output_dir: true`, or set `tpaw_guard: off`."
    )
    if plan.tpaw_args.tpaw_guard == "stop":
        raise DataError(text)
    warn(text)


def _began(folder: Path) -> dict[str, float]:
    """What θ_t was as an iteration began: its own log-probs of the last steps' targets, where rewards hold them."""
    steps, manifest = _steps(folder), None
    with contextlib.suppress(DataError):
        manifest = read_manifest(folder)
    if manifest is None:
        return _means(steps)
    scale = read_tpaw_args(manifest.settings)[0].tpaw_reward_scale
    key = f"rewards/target/theta_{manifest.iteration}"
    own = [
        row | {"logps/target": row["logps/target"] - row[key] / scale, "rewards/margin": 0.0}
        for row in reversed(steps)
        if key in row
    ]
    then = _means(own or steps)
    for source in manifest.triplets:
        if source["iteration"] == manifest.iteration and "path" in source:
            then |= _counted(Path(path_from(source["path"], folder)))
    return then


def _steps(folder: Path) -> list[dict[str, float]]:
    """What a training logged."""
    history = []
    with contextlib.suppress(DataError):
        history = read_state(folder)["log_history"]
    return [row for row in history if row.keys() >= {*LOGGED}]


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over the first tenth of some steps."""
    rows = rows[: max(len(rows) // 10, 1)]
    logp, tokens, margin = (sum(row[key] for row in rows) / max(len(rows), 1) for key in LOGGED)
    return {"target log-prob a token": logp / tokens, "margin": margin, "target": tokens} if tokens else {}


def _counted(path: Path) -> dict[str, float]:
    """Figures of a round's responses; none where an opponent model wrote them."""
    with contextlib.suppress(DataError):  # what is missing or damaged is said where the iteration needs it
        meta = read_meta(path)
        rows = 0 if meta.opponent else meta.rows
        return {name: meta.counts[key] / rows for name, key in COUNTS.items() if rows and key in meta.counts}
    return {}
