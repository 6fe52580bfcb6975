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
from llamafactory_tpaw.errors import DataError, Findings
from llamafactory_tpaw.runs.guard import check_guard, guard
from llamafactory_tpaw.runs.plan import Plan
from llamafactory_tpaw.team.manifest import write_manifest
from llamafactory_tpaw.team.players import Player
from tests.unit.team.test_manifest import make_manifest


# What iterations 0 of the demo's model logged (the target's log-prob and tokens, and the margin; first and last steps,
# two between) and what theta_1 then generated. TPAW at its learning rate dips and recovers, SPIN at a hundredth of it
# loses a little; SPIN at half of it, and TPAW without target weighting, leave a model that solves nothing.
D_0 = {"stop": 1000, "length": 0, "equal": 534, "generated_tokens": 26399}
RUNS = {
    "TPAW": (
        [(-1.10, 27.03, -0.04), (-3.78, 27.01, -0.05), (-1.97, 27.59, 0.18), (-1.66, 26.73, 0.04)],
        {"stop": 1000, "length": 0, "equal": 327, "generated_tokens": 26427},
        [],
    ),
    "SPIN, slow": (
        [(-0.83, 27.03, 0.0), (-0.82, 27.01, 0.0), (-0.95, 27.59, 0.11), (-0.81, 26.73, 0.09)],
        {"stop": 1000, "length": 0, "equal": 506, "generated_tokens": 26376},
        [],
    ),
    "SPIN": (
        [(-0.96, 27.03, -0.01), (-3.76, 27.01, -0.50), (-9.60, 27.59, 0.75), (-8.84, 26.73, 0.22)],
        {"stop": 1000, "length": 0, "equal": 33, "generated_tokens": 26330},
        ["target log-prob a token -0.33 (then -0.04)", "share equal 0.03 (then 0.53)"],
    ),
    "w/o TRW": (
        [(-1.28, 27.03, -0.03), (-11.33, 27.01, -0.52), (-30.78, 27.59, -0.39), (-30.32, 26.73, -0.61)],
        {"stop": 963, "length": 37, "equal": 0, "generated_tokens": 31959},
        ["target log-prob a token -1.13 (then -0.05)", "margin -0.61 (then -0.03)", "share equal 0.00 (then 0.53)"],
    ),
}


@pytest.fixture(autouse=True)
def _in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)


def add_round(number: int, counts: dict[str, int], **changes: Any) -> Round:
    """Write D_t's files, of whose rows nothing is read."""
    path = Path(f"data/d{number}.jsonl")
    path.write_text("{}\n")
    rows = counts["stop"] + counts["length"]
    chosen = {"prompts_digest": "d", "selection": {}, "sampling": {}, "cutoff_len": 256, "engine": {}}
    meta = {"iteration": number, "generator": "g", "generator_path": "p", "tokenizer": "t", "template": "t"}
    meta |= {"prompts_entry": "sft", "rows": rows, "rows_digest": "r", "counts": counts, **chosen}
    write_meta(path, TripletMeta(**meta | changes))
    return Round(number, Entry(f"d{number}", {}, path))


def add_training(number: int, steps: list[tuple[float, float, float]]) -> None:
    """Write what training of iteration t left."""
    folder = Path(f"saves/iter{number}")
    source = {"entry": f"d{number}", "iteration": number, "path": f"../../data/d{number}.jsonl"}
    write_manifest(folder, make_manifest(iteration=number, triplets=[source]))
    keys = ("logps/target", "length/target", "rewards/margin")
    rows = [{"step": step, "loss": 1.0, **dict(zip(keys, values, strict=True))} for step, values in enumerate(steps)]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": len(rows), "log_history": rows}))


def plan_of(iteration: int, rounds: list[Round], **given: Any) -> Plan:
    players = [Player(0, "saves/sft"), *(Player(theta, f"saves/iter{theta - 1}") for theta in range(1, iteration + 1))]
    args = read_tpaw_args({"tpaw_iteration": iteration, **given})[0]
    return Plan({}, args, players, Opponents(rounds, [], [], None))


def look(plan: Plan) -> tuple[list[str], list[str]]:
    """Return the remarks and the warnings."""
    findings = Findings()
    check_guard(plan, findings)
    findings.raise_noted()
    return findings.remarks, findings.warnings


@pytest.mark.parametrize("run", RUNS)
def test_runs_that_were_recorded(run: str) -> None:
    steps, counts, beyond = RUNS[run]
    add_training(0, steps)
    remarks, warnings = look(plan_of(1, [add_round(0, D_0), add_round(1, counts)]))
    if not beyond:
        assert warnings == []
        assert remarks[0].startswith(
            "`tpaw_guard`: theta_1 has not collapsed since iteration 0 began: target log-prob"
        )
        assert remarks[0].count("(then ") == 5
        return
    told, what_to_do = warnings[0].split(". Repeat iteration 0 with a lower `learning_rate`")
    beginning = "`tpaw_guard`: theta_1 (saves/iter0) has collapsed since iteration 0 began: "
    assert told.startswith(f"{beginning}{', '.join(beyond)}; within the limits ")
    assert told.count("(then ") == 5
    assert what_to_do.endswith("or set `tpaw_guard: off` to go on from here.")


FLAT = [(-20.0, 20.0, 0.0)]
EVEN = {"stop": 75, "length": 25, "equal": 20, "generated_tokens": 1000}


@pytest.mark.parametrize(
    ("step", "counts", "beyond"),
    [
        ((-39.9, 20.0, 0.0), {}, ""),
        ((-40.1, 20.0, 0.0), {}, "target log-prob a token -2.00 (then -1.00)"),
        ((-20.0, 20.0, -0.49), {}, ""),
        ((-20.0, 20.0, -0.51), {}, "margin -0.51 (then 0.00)"),
        # Responses began with 10 tokens, where targets have 20.
        (FLAT[0], {"generated_tokens": 500}, ""),
        (FLAT[0], {"generated_tokens": 499}, "tokens a response 4.99 (then 10.00)"),
        (FLAT[0], {"generated_tokens": 4000}, ""),
        (FLAT[0], {"generated_tokens": 4001}, "tokens a response 40.01 (then 10.00)"),
        (FLAT[0], {"equal": 5}, ""),
        (FLAT[0], {"equal": 4}, "share equal 0.04 (then 0.20)"),
        (FLAT[0], {"stop": 50, "length": 50}, ""),
        (FLAT[0], {"stop": 49, "length": 51}, "share truncated 0.51 (then 0.25)"),
    ],
)
def test_limits(step: tuple[float, float, float], counts: dict[str, int], beyond: str) -> None:
    add_training(0, [*FLAT, step])
    remarks, warnings = look(plan_of(1, [add_round(0, EVEN), add_round(1, EVEN | counts)]))
    assert (len(remarks), len(warnings)) == ((0, 1) if beyond else (1, 0))
    assert not beyond or f"began: {beyond}; within" in warnings[0]


def test_the_run_s_beginning_is_compared_with_its_end() -> None:
    """Of 21 steps the first and the last 2, of iterations 0 and 1; what doubles may be small, up to 0.1 nats."""
    add_training(0, [(-1.0, 20.0, 0.0)] * 2 + [(-90.0, 20.0, -9.0)] * 19)
    add_training(1, [(-90.0, 20.0, -9.0)] * 19 + [(-3.1, 20.0, 0.1), (-2.88, 20.0, 0.3)])
    rounds = [add_round(number, EVEN) for number in range(2)]
    remarks, _ = look(plan_of(2, [*rounds, Round(2, Entry("d2", {}, Path("data/d2.jsonl")))]))
    assert remarks == [
        "`tpaw_guard`: theta_2 has not collapsed since iteration 0 began: target log-prob a token -0.15 (then -0.05), "
        "margin 0.20 (then 0.00)."
    ]
    add_training(1, [(-3.01, 20.0, 0.0)])
    assert look(plan_of(2, rounds))[1][0].count("target log-prob a token -0.15 (then -0.05); within") == 1


def test_nothing_is_said_without_figures() -> None:
    """At iteration 0, switched off, where no step was logged; an opponent's responses are not theta_t's."""
    collapsed = RUNS["w/o TRW"]
    rounds = [add_round(0, D_0), add_round(1, collapsed[1], opponent="saves/weak")]
    assert look(plan_of(1, rounds)) == ([], [])
    add_training(0, [])
    assert look(plan_of(1, rounds)) == ([], [])
    add_training(0, collapsed[0])
    assert "share equal" not in look(plan_of(1, rounds))[1][0]
    assert "margin" not in look(plan_of(1, rounds, tpaw_objective="tspin"))[1][0]
    assert look(plan_of(1, rounds, tpaw_guard="off")) == look(plan_of(0, rounds[:1])) == ([], [])


def test_stop_ends_the_run() -> None:
    add_training(0, RUNS["SPIN"][0])
    rounds = [add_round(0, D_0), add_round(1, RUNS["SPIN"][1])]
    with pytest.raises(DataError, match="has collapsed since iteration 0 began"):
        guard(plan_of(1, rounds, tpaw_guard="stop"))
    assert guard(plan_of(1, rounds))
    add_training(0, RUNS["TPAW"][0])
    assert not guard(plan_of(1, rounds[:1], tpaw_guard="stop"))
