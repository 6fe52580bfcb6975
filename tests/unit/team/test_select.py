# SPDX-License-Identifier: Apache-2.0
"""Who plays beside the newest checkpoint: by age, by evaluations, by disagreement, all by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafactory_tpaw.arguments.fields import TpawArguments
from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.team.cache import LogpCache, sequence_key
from llamafactory_tpaw.team.members import Member
from llamafactory_tpaw.team.players import Player
from llamafactory_tpaw.team.select import select_team


@pytest.fixture
def members(tmp_path: Path) -> list[Member]:
    """θ_0 to θ_4."""
    for theta in range(5):
        (tmp_path / f"t{theta}").mkdir()
    return [Member(Player(theta, f"t{theta}"), tmp_path / f"t{theta}", f"fp{theta}") for theta in range(5)]


def team(members: list[Member], rule: str, size: int = 3) -> dict[int, float | None]:
    args = TpawArguments(tpaw_iteration=4, tpaw_team_size=size, tpaw_team_select=rule)
    args.tpaw_cache_dir = str(members[0].folder.parent)
    return {each.player.theta: each.score for each in select_team(members[-args.candidates :], args)}


def evaluate(member: Member, fingerprint: str = "", **values: float) -> None:
    tasks = {task: {"value": value} for task, value in values.items()}
    content = {"schema": 1, "fingerprint": fingerprint or member.fingerprint, "tasks": tasks}
    (member.folder / "eval.json").write_text(json.dumps(content))


def score(member: Member, logps: list[float]) -> None:
    """Cache log-probs of responses of 1, 2, … tokens."""
    cache = LogpCache(member.folder.parent, {"fingerprint": member.fingerprint}).load()
    keys = [sequence_key([1], range(number + 1)) for number in range(len(logps))]
    cache.add(keys, logps, [number + 1 for number in range(len(logps))])
    cache.flush()


def test_where_there_is_no_choice_no_score_is_needed(members: list[Member]) -> None:
    assert team(members, "last") == {2: None, 3: None, 4: None}
    assert team(members[2:], "best") == team(members, "last")
    assert team(members, "diverse", size=1) == team(members, "best", size=1) == {4: None}


def test_best_by_the_mean_of_the_tasks_that_all_have(members: list[Member]) -> None:
    for member, (add, sort) in zip(members, [(0.5, 0.3), (0.2, 0.8), (0.5, 0.3), (0.1, 0.2)], strict=False):
        evaluate(member, add=add, sort=sort, **({"more": 1.0} if member is members[3] else {}))
    assert team(members, "best") == {1: 0.5, 2: 0.4, 4: None}  # of equal ones the newer
    evaluate(members[1], "other weights", add=0.9)
    with pytest.raises(DataError, match=r"t0: add, sort, .*t1: none, .*t3: add, sort, more\)\. Run "):
        team(members, "best")


def test_diverse_takes_the_farthest_from_those_it_has(members: list[Member]) -> None:
    """Log-probs per token are (-1, -1), (-5, -5), (-5, -4) and θ_3's (-2, -2); the third response θ_3 has alone.

    From θ_3, which stands for θ_4, they are 1, 3 and 2.5 away: θ_1. Then θ_0 min(1, 4), θ_2 min(2.5, 0.5), θ_3 0.
    """
    with pytest.raises(DataError, match=r"`tpaw_team_select: diverse` compares log-probs in .*, which has none"):
        team(members, "diverse")
    logps = [[-1.0, -2.0], [-5.0, -10.0], [-5.0, -8.0], [-2.0, -4.0, -300.0]]
    for member, values in zip(members, logps, strict=False):
        score(member, values)
    assert team(members, "diverse") == {0: 1.0, 1: 3.0, 4: None}
    assert team(members, "diverse", size=2) == {1: 3.0, 4: None}
    assert team(members, "diverse", size=4) == {0: 1.0, 1: 3.0, 2: 0.5, 4: None}
