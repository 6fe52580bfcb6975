# SPDX-License-Identifier: Apache-2.0
"""`tpaw_guard` on figures that real runs recorded, and around each of its limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.arguments.checks import read_tpaw_args
from llamafactory_tpaw.data.rounds import Opponents, Round
from llamafactory_tpaw.data.source import Entry
from llamafactory_tpaw.data.triplets import TripletMeta, write_meta
from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.runs.guard import guard
from llamafactory_tpaw.runs.plan import Plan
from llamafactory_tpaw.team.manifest import write_manifest
from llamafactory_tpaw.team.players import Player
from tests.unit.team.test_manifest import make_manifest


Steps = list[tuple[float, float, float]]
LOGGED = ("logps/target", "length/target", "rewards/margin")
COUNTED = ("stop", "length", "equal", "generated_tokens")
# What iterations 0 of the demo's model logged first and last, and what theta_0 and theta_1 generated. TPAW at 1e-3 and
# SPIN at 1e-5 and 1e-4 (from rounded figures) learn or lose a little; SPIN at 5e-4 and eta 1 solve nothing then.
D_0 = (1000, 0, 534, 26399)
RUNS = {
    "TPAW": ([(-1.10, 27.03, -0.04), (-1.66, 26.73, 0.04)], (1000, 0, 327, 26427), ""),
    "SPIN 1e-5": ([(-0.83, 27.03, 0.0), (-0.81, 26.73, 0.09)], (1000, 0, 506, 26376), ""),
    "SPIN 1e-4": ([(-0.83, 27.03, 0.0), (-1.34, 26.73, 0.44)], (1000, 0, 400, 26399), ""),
    "SPIN 5e-4": (
        [(-0.96, 27.03, -0.01), (-8.84, 26.73, 0.22)],
        (1000, 0, 33, 26330),
        "target log-prob a token -0.33 (then -0.04), share equal 0.03 (then 0.53)",
    ),
    "eta 1": (
        [(-1.28, 27.03, -0.03), (-30.32, 26.73, -0.61)],
        (963, 37, 0, 31959),
        "target log-prob a token -1.13 (then -0.05), margin -0.61 (then -0.03), share equal 0.00 (then 0.53)",
    ),
}
# Targets of 20 tokens, to which theta_0 answers with 10.
FLAT, EVEN = (-20.0, 20.0, 0.0), (75, 25, 20, 1000)
LIMITS = [
    ([FLAT, (-39.9, 20.0, -0.49)], (50, 50, 5, 4000), ""),
    ([FLAT, (-40.1, 20.0, 0.0)], EVEN, "target log-prob a token -2.00 (then -1.00)"),
    ([(-1.0, 20.0, 0.0), (-2.9, 20.0, 0.0)], EVEN, ""),  # twice, but within 0.1 nats a token
    ([FLAT, (-20.0, 20.0, -0.51)], EVEN, "margin -0.51 (then 0.00)"),
    ([FLAT], (75, 25, 20, 500), ""),
    ([FLAT], (75, 25, 20, 499), "tokens a response 4.99 (then 10.00)"),
    ([FLAT], (75, 25, 20, 4001), "tokens a response 40.01 (then 10.00)"),
    ([FLAT], (75, 25, 4, 1000), "share equal 0.04 (then 0.20)"),
    ([FLAT], (49, 51, 20, 1000), "share truncated 0.51 (then 0.25)"),
    # The first 2 and the last 2 of 21 steps are compared.
    ([FLAT] * 2 + [(-90.0, 20.0, -9.0)] * 17 + [FLAT, (-30.0, 20.0, 0.0)], EVEN, ""),
]


@pytest.fixture(autouse=True)
def _in_a_project(elsewhere: Path) -> None:
    (elsewhere / "data").mkdir()


def add_round(number: int, counts: tuple[int, ...], opponent: str = "") -> Round:
    """Write D_t's files, of whose rows nothing is read."""
    path = Path(f"data/d{number}.jsonl")
    path.write_text("{}\n")
    counted = dict(zip(COUNTED, counts, strict=True))
    meta = TripletMeta(number, *["x"] * 6, {}, {}, 256, {}, counts[0] + counts[1], "x", counted, opponent=opponent)
    write_meta(path, meta)
    return Round(number, Entry(f"d{number}", {}, path))


def add_training(number: int, steps: Steps, **more: float) -> None:
    folder = Path(f"saves/iter{number}")
    source = {"entry": f"d{number}", "iteration": number, "rows": 1, "digest": "d"}
    source |= {"path": f"../../data/d{number}.jsonl"}
    write_manifest(folder, make_manifest(iteration=number, triplets=[source]))
    rows = [dict(zip(LOGGED, values, strict=True)) | more for values in steps]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows}))


def warnings(iteration: int, rounds: list[Round], **given: Any) -> list[str]:
    players = [Player(0, "saves/sft"), *(Player(theta, f"saves/iter{theta - 1}") for theta in range(1, iteration + 1))]
    args, warned = read_tpaw_args({"tpaw_iteration": iteration, **given})[0], []
    guard(Plan({}, args, players, Opponents(rounds, [], [], None)), warned.append)
    return warned


@pytest.mark.parametrize(
    ("then", "steps", "now", "beyond"),
    [*((D_0, *run) for run in RUNS.values()), *((EVEN, *limit) for limit in LIMITS)],
)
def test_recorded_runs_and_limits(then: tuple[int, ...], steps: Steps, now: tuple[int, ...], beyond: str) -> None:
    add_training(0, steps)
    rounds = [add_round(0, then), add_round(1, now)]
    if not beyond:
        assert warnings(1, rounds, tpaw_guard="stop") == []
        return
    (text,) = warnings(1, rounds)
    assert f"theta_1 (saves/iter0) has collapsed since iteration 0 began: {beyond}; within the limits " in text
    with pytest.raises(DataError, match="Repeat iteration 0 with a lower `learning_rate`"):
        warnings(1, rounds, tpaw_guard="stop")


def test_what_is_compared() -> None:
    """θ_2 with the beginning of iteration 0; an opponent's responses are not θ_t's, and T-SPIN's margin is another."""
    steps, counts, _ = RUNS["eta 1"]
    add_training(0, [(-1.28, 27.03, -0.03)])
    add_training(1, steps[1:])
    rounds = [add_round(0, D_0), add_round(1, D_0), add_round(2, counts)]
    assert "theta_2 (saves/iter1) has collapsed since iteration 0 began: target" in warnings(2, rounds)[0]
    assert "margin" not in warnings(2, rounds, tpaw_objective="tspin")[0]
    rounds[2] = add_round(2, counts, opponent="saves/weak")
    assert "share equal" not in warnings(2, rounds)[0]
    # The first logged steps had lost the targets already; by its reward of -56.8 theta_0 gave the last ones -3.2.
    add_training(0, [(-40.0, 20.0, 0.1), (-60.0, 20.0, 0.1)], **{"rewards/target/theta_0": -5.68})
    assert "log-prob a token -3.00 (then -0.16)" in warnings(1, rounds[:2])[0]
    source = {"entry": "of_a_hub", "iteration": 0, "rows": 1, "digest": ""}
    write_manifest("saves/iter0", make_manifest(iteration=0, triplets=[source]))
    assert "log-prob a token -3.00 (then -0.16)" in warnings(1, rounds[:2])[0]
    add_training(1, [])
    assert warnings(2, rounds) == warnings(2, rounds, tpaw_guard="off") == warnings(0, rounds[:1]) == []
