# SPDX-License-Identifier: Apache-2.0
"""`tpaw_team_select`: which past checkpoints play beside θ_t, by score or by disagreement instead of by age."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.files import read_json
from ..errors import DataError
from ..lf.logs import get_logger
from .cache import NUMERICS, LogpCache


if TYPE_CHECKING:
    from .members import Member

SAMPLE = 4096


def select_team(members: list[Member], tpaw_args: Any) -> list[Member]:
    """Choose players, oldest first: always the newest; where there is a choice, others by a score, which they keep."""
    *others, newest = members
    wanted, rule = tpaw_args.rounds_played - 1, tpaw_args.tpaw_team_select
    if not 0 < wanted < len(others):
        return members[-1 - wanted :]
    scores = _evaluated(others) if rule == "best" else _apart(others, wanted, tpaw_args.tpaw_cache_dir)
    ranked = sorted(range(len(others)), key=lambda place: (scores[place], place), reverse=True)
    team = [replace(others[place], score=round(scores[place], 6)) for place in sorted(ranked[:wanted])]
    listed = ", ".join(f"{other.player.name} {score:.4g}" for other, score in zip(others, scores, strict=True))
    get_logger(__name__).info_rank0(f"`tpaw_team_select: {rule}`, by scores: {listed}.")
    return [*team, newest]


def _evaluated(members: list[Member]) -> list[float]:
    """Each checkpoint's mean score over the tasks on which all of them were evaluated."""
    found = []
    for member in members:
        path = member.home / "eval.json"
        content = read_json(path) if path.is_file() else {}
        is_own = content.get("fingerprint") == member.fingerprint
        found.append({name: task["value"] for name, task in content["tasks"].items()} if is_own else {})
    tasks = set.intersection(*map(set, found))
    if not tasks:
        have = ", ".join(f"{members[i].home}: {', '.join(scores) or 'none'}" for i, scores in enumerate(found))
        raise DataError(
            f"`tpaw_team_select: best` needs a task on which each of these was evaluated ({have}). Run "
            "`llamafactory-tpaw eval` on them."
        )
    return [sum(scores[task] for task in tasks) / len(tasks) for scores in found]


def _apart(members: list[Member], wanted: int, root: str) -> list[float]:
    """Mean absolute difference of log-probs per token to the nearest of those chosen before, the farthest first."""
    known = [read_json(path) for path in Path(root).glob(f"logps/*/*/{NUMERICS}")]
    means = []
    for member in members:
        caches = [LogpCache(root, each).load() for each in known if each.get("fingerprint") == member.fingerprint]
        means.append(max(caches, key=len).means() if caches else {})
    keys = sorted(set.intersection(*map(set, means)))[:SAMPLE]  # digests, so that these are a sample
    if not keys:
        raise DataError(
            f"`tpaw_team_select: diverse` compares log-probs in {root}, which has none that all of `tpaw_players` but "
            "the last scored. Set `tpaw_team_select: last`, or score them (`tpaw_reference: cached`)."
        )
    logps = np.array([[each[key] for key in keys] for each in means])
    # θ_t has scored nothing yet, and θ_{t-1} stands for it.
    nearest, scores = np.abs(logps - logps[-1]).mean(1), {}
    for _ in range(wanted):
        place = max((place for place in range(len(members)) if place not in scores), key=lambda one: nearest[one])
        scores[place] = float(nearest[place])
        nearest = np.minimum(nearest, np.abs(logps - logps[place]).mean(1))
    return [scores.get(place, float(nearest[place])) for place in range(len(members))]
