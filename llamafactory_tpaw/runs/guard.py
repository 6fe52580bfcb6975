# SPDX-License-Identifier: Apache-2.0
"""`tpaw_guard`: whether θ_t has collapsed, told by what earlier iterations recorded before another is spent on it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.triplets import read_meta
from ..errors import DataError, Findings
from ..lf.logs import get_logger
from ..report.collect import read_run
from ..team.manifest import path_from, read_manifest


if TYPE_CHECKING:
    from collections.abc import Callable

    from .plan import Plan

TARGET, MARGIN, LENGTH = "target log-prob a token", "margin", "tokens a response"
TARGET_LENGTH = "tokens a target"
# Shares and means of a round's responses, by the counts of its meta file.
GENERATED = {LENGTH: "generated_tokens", "share equal": "equal", "share truncated": "length"}
# What a figure may not be now, by what it was when the run began and the length of targets; docs/guide.md says why.
COLLAPSED: dict[str, Callable[[float, float, float], bool]] = {
    TARGET: lambda now, then, _: now < min(2 * then, then - 0.1),
    MARGIN: lambda now, then, _: now < then - 0.5,
    LENGTH: lambda now, then, target: not min(then, target) / 2 <= now <= 2 * max(then, target),
    "share equal": lambda now, then, _: now < then / 4 and then >= 0.1,
    "share truncated": lambda now, then, _: now > then + 0.25,
}
# The first and the last of so many parts of the logged steps are an iteration's beginning and its end.
PARTS = 10

logger = get_logger(__name__)


def guard(plan: Plan) -> bool:
    r"""Say how θ_t is; return whether that was a warning.

    Raises:
        DataError: If it has collapsed and `tpaw_guard` is `stop`.
    """
    with Findings() as findings:
        check_guard(plan, findings)
    for text in findings.remarks:
        logger.info_rank0(text)
    for text in findings.warnings:
        logger.warning_rank0(text)
    return bool(findings.warnings)


def check_guard(plan: Plan, findings: Findings) -> None:
    """Hold θ_t to how the run began, by the figures that are recorded of both."""
    trained = [player for player in plan.players if player.theta > 0]
    if plan.tpaw_args.tpaw_guard == "off" or not trained:
        return
    first, newest = trained[0], trained[-1]
    then, now = logged(Path(first.path), at_end=False), logged(Path(newest.path), at_end=True)
    with contextlib.suppress(DataError):  # what is missing or damaged is said where the iteration needs it
        manifest = read_manifest(first.path)
        for source in manifest.triplets if manifest else []:
            if source["iteration"] == manifest.iteration:
                then |= generated(Path(path_from(source["path"], first.path)))
        if plan.opponents and plan.opponents.rounds and not plan.to_generate:
            now |= generated(plan.opponents.rounds[-1].path)
    if plan.tpaw_args.tpaw_objective == "tspin":
        then.pop(MARGIN, None)  # it is no difference to players, which begins at 0
    within, beyond = [], []
    for name, has_collapsed in COLLAPSED.items():
        if name in now and name in then:
            figure = f"{name} {now[name]:.2f} (then {then[name]:.2f})"
            broken = has_collapsed(now[name], then[name], then.get(TARGET_LENGTH, then[name]))
            (beyond if broken else within).append(figure)
    since, kept = f"since iteration {first.theta - 1} began", ", ".join(within)
    if not beyond:
        findings.remarks += [f"`tpaw_guard`: {newest.name} has not collapsed {since}: {kept}."] if within else []
        return
    text = (
        f"`tpaw_guard`: {newest.name} ({newest.path}) has collapsed {since}: {', '.join(beyond)}"
        f"{f'; within the limits {kept}' if within else ''}. Repeat iteration {newest.theta - 1} with a lower "
        "`learning_rate` and `overwrite_output_dir: true`, or set `tpaw_guard: off` to go on from here."
    )
    if plan.tpaw_args.tpaw_guard == "stop":
        findings.refuse(DataError, [text])
    else:
        findings.warnings.append(text)


def logged(folder: Path, *, at_end: bool) -> dict[str, float]:
    """What a training logged at its beginning or at its end; empty where it logged no step."""
    try:
        rows = [row for row in read_run(folder).logs if "logps/target" in row]
    except DataError:
        rows = []
    if not rows:
        return {}
    count = max(len(rows) // PARTS, 1)
    part = rows[-count:] if at_end else rows[:count]
    keys = ("logps/target", "length/target", "rewards/margin")
    target, tokens, margin = (sum(row[key] for row in part) / count for key in keys)
    return {TARGET: target / tokens, MARGIN: margin, TARGET_LENGTH: tokens}


def generated(path: Path) -> dict[str, float]:
    """What a round's meta file says of its responses; empty where an opponent model wrote them."""
    meta = read_meta(path)
    rows = 0 if meta.opponent else meta.rows
    return {name: meta.counts[key] / rows for name, key in GENERATED.items() if rows and key in meta.counts}
