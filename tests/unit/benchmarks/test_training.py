# SPDX-License-Identifier: Apache-2.0
"""How repeats become a table: ratios, targets, variants, turns, failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import check, iteration, pool, tables, training
from benchmarks.contenders import DPO_STAGE, FLOOR, NAIVE, OURS, contenders
from benchmarks.ours import ALL, NOTHING_CACHED, SAVINGS, absent_savings, variants
from benchmarks.workload import Data, Job, Workload


DATA = Data(2, 64, 192)


def run_of(seconds: float, ends: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0)) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "before_training_seconds": 1.0,
        "step_seconds": [1.0, 1.0],
        "step_ends": ends,
        "peak_mib": 10.0,
        "device_peak_mib": None,
    }


def test_an_iteration_of_one_epoch_leaves_out_the_steps_of_the_others() -> None:
    found = training.summarize([run_of(10.0), {"error": "killed"}], epochs=[1, 3], trained=3)
    assert found["iteration_seconds"] == {1: [6.0], 3: [10.0]}
    assert found["peak_mib"] == 10.0


def test_ratios_are_of_the_same_repeat() -> None:
    assert tables.ratio([1.0, 20.0, 3.0], [2.0, 40.0, 6.0]) == 0.5
    assert tables.ratio([], [1.0]) is None


def measured(iteration_seconds: float, step: float, peak: float) -> dict[str, Any]:
    return {"iteration_seconds": {1: [iteration_seconds]}, "step_seconds": [step], "peak_mib": peak}


def test_targets_are_met_or_not() -> None:
    rows = training.targets(
        DATA,
        {
            NAIVE: measured(100.0, 9.0, 1000.0),
            DPO_STAGE: measured(50.0, 6.0, 500.0),
            OURS + ALL: measured(45.0, 4.0, 300.0),
            training.WITHOUT_SHARING: measured(46.0, 3.0, 300.0),
            FLOOR: measured(20.0, 3.0, 100.0),
        },
    )
    assert {row["what"]: row["met"] for row in rows} == {
        "iteration of 1 epochs / a": True,
        "iteration of 1 epochs / b": False,
        "step / floor": True,
        "peak memory / a": True,
        "peak memory / b": False,
        "step without prompt sharing / with": False,
    }


def test_nothing_is_compared_with_what_was_not_measured() -> None:
    assert training.targets(DATA, {NAIVE: measured(100.0, 9.0, 1000.0)}) == []
    assert training.targets(DATA, {OURS + ALL: measured(45.0, 4.0, 300.0)}) == []


def test_savings_are_switched_on_one_after_the_other() -> None:
    assert absent_savings() == []
    found = variants()
    assert len(found) == len(SAVINGS) + 2
    for count, variant in enumerate(list(found.values())[:-1]):
        for position, saving in enumerate(SAVINGS):
            expected = saving.on if position < count else saving.off
            assert expected.items() <= variant.keys.items()
    assert training.WITHOUT_SHARING.removeprefix(OURS) in found
    assert found[NOTHING_CACHED].keys == found[ALL].keys
    assert not found[NOTHING_CACHED].scored_before


class Turns:
    """A worker that notes its turns."""

    def __init__(self, name: str, turns: list[str], fails_at: int | None = None) -> None:
        self.name, self.turns, self.fails_at = name, turns, fails_at
        self.count = 0

    def run(self, job: Job) -> dict[str, Any]:
        self.turns.append(self.name)
        self.count += 1
        return {"error": "out of memory"} if self.count == self.fails_at else {"seconds": 1.0}


def test_contenders_take_turns_and_the_warm_up_does_not_count() -> None:
    turns: list[str] = []
    results = pool.run_in_turn([Turns("a", turns), Turns("b", turns)], [Job(DATA)], repeats=2)
    assert "".join(turns) == "abbaab"
    assert len(results["a", 0]) == len(results["b", 0]) == 2


def test_a_contender_that_failed_has_no_further_turn() -> None:
    turns: list[str] = []
    results = pool.run_in_turn([Turns("a", turns, fails_at=1), Turns("b", turns)], [Job(DATA)], repeats=2)
    assert "".join(turns) == "abbb"
    assert results["a", 0] == [{"error": "out of memory"}]


def test_a_process_that_ends_is_told_with_what_it_printed(tmp_path: Path) -> None:
    workload = Workload(str(tmp_path), size="toy", threads=1)
    pool.workload_file(workload).write_text(workload.to_json())
    worker = pool.Worker("nobody", workload, 0)
    with pytest.raises(pool.WorkerFailed, match=r"nobody ended with code 1:[\s\S]*KeyError: 'nobody'"):
        worker.wait_until_ready()
    worker.stop()


def test_workload_and_job_travel_as_json() -> None:
    workload = Workload("folder", datasets=(DATA,))
    assert Workload.from_json(workload.to_json()) == workload
    assert Job.from_dict(Job(DATA, 3, 2).to_dict()) == Job(DATA, 3, 2)


def test_losses_that_differ_are_told() -> None:
    ours, same = OURS + ALL, ([0.7, 0.6], [-10.0, -9.0])
    assert check.compare({NAIVE: same, ours: same, DPO_STAGE: ([0.69, 0.5], [-10.0, -8.0])}) == []
    other = {NAIVE: same, ours: ([0.7, 0.60002], [-10.0, -9.0])}
    assert check.compare(other) == [f"The losses of {ours} and {NAIVE} differ by 2e-05."]
    other = {NAIVE: same, DPO_STAGE: ([0.69, 0.5], [-10.1, -8.0])}
    assert check.compare(other) == [f"The targets' log-probs of {DPO_STAGE} and {NAIVE} are -10.1 and -10."]


def test_names_begin_with_the_letters_of_the_table() -> None:
    assert [name[0] for name in contenders()] == sorted(name[0] for name in contenders())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--micro", "4"], "--micro is 4, but must be a multiple of 3"),
        (["--spread", "1"], "1 is not from 0 to below 1"),
        (["--repeats", "0"], "0 is below 1"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        training.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_contenders_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert training.main(["--only", "nobody"]) == 1
    assert "--only nobody names none of: a. naive TPAW" in capsys.readouterr().err


def test_one_thing_at_a_time_grows() -> None:
    options = iteration._parse([])
    jobs = iteration._time_jobs(options)
    assert [jobs[f"{factor}x prompts"].data.prompts for factor in iteration.GROWTH] == [2, 8, 32]
    assert {job.players for job in jobs.values()} == set(iteration.PLAYERS)
    assert {job.epochs for job in jobs.values()} == set(iteration.EPOCHS)
