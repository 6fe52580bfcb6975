# SPDX-License-Identifier: Apache-2.0
"""The log of training as it grows: half-written lines, resumed runs, runs begun again, long ones."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamafactory_tpaw.board.training_log import TRAINER_LOG, Series, TrainingLog, last_entries


@pytest.fixture
def log(tmp_path: Path) -> TrainingLog:
    return TrainingLog(tmp_path)


def line(step: int, **values: Any) -> str:
    return json.dumps({"current_steps": step, "total_steps": 100, **values}) + "\n"


def append(log: TrainingLog, *lines: str) -> None:
    with log.path.open("a") as stream:
        stream.writelines(lines)


def losses(log: TrainingLog) -> list[tuple[int, float]]:
    series = log.read().series.get("loss", Series())
    return list(zip(series.steps, series.values, strict=True))


def test_only_whole_lines_count(log: TrainingLog) -> None:
    assert losses(log) == []
    append(log, line(1, loss=0.5), line(2, loss=0.4)[:20])
    assert losses(log) == [(1, 0.5)]
    append(log, line(2, loss=0.4)[20:])
    assert losses(log) == [(1, 0.5), (2, 0.4)]
    assert log.entries == 2


def test_only_what_is_new_is_read(log: TrainingLog, monkeypatch: pytest.MonkeyPatch) -> None:
    append(log, *(line(step, loss=1.0) for step in range(1, 101)))
    losses(log)
    taken: list[int] = []
    take = log._take
    monkeypatch.setattr(log, "_take", lambda entry: (taken.append(entry["current_steps"]), take(entry)))
    append(log, line(101, loss=0.1))
    assert losses(log)[-1] == (101, 0.1)
    assert taken == [101]


@pytest.mark.parametrize("resumed_at", [3, 4, 5])
def test_steps_of_a_resumed_run_are_not_doubled(log: TrainingLog, resumed_at: int) -> None:
    append(log, *(line(step, loss=1.0, **{"weights/player/theta_0": 0.5}) for step in range(1, 6)))
    append(log, *(line(step, loss=2.0) for step in range(resumed_at, resumed_at + 1)))
    assert losses(log) == [(step, 1.0) for step in range(1, resumed_at)] + [(resumed_at, 2.0)]
    assert max(log.series["weights/player/theta_0"].steps) <= max(resumed_at - 1, 5 if resumed_at == 5 else 0)


def test_an_evaluation_of_the_same_step_leaves_the_step(log: TrainingLog) -> None:
    append(log, line(5, loss=1.0, **{"rewards/accuracy": 0.5}), line(5, **{"eval_rewards/accuracy": 0.25}), line(5))
    assert losses(log) == [(5, 1.0)]
    assert log.series["eval_rewards/accuracy"].values == [0.25]


def test_a_log_that_begins_again_is_read_anew(log: TrainingLog) -> None:
    append(log, line(1, loss=1.0), line(2, loss=1.0))
    assert len(losses(log)) == 2
    other = log.path.with_suffix(".new")
    other.write_text(line(1, loss=7.0) + line(2, loss=7.0) + line(3, loss=7.0))
    os.replace(other, log.path)
    assert losses(log) == [(1, 7.0), (2, 7.0), (3, 7.0)]
    log.path.write_text(line(1, loss=9.0))
    assert losses(log) == [(1, 9.0)]
    log.path.unlink()
    assert losses(log) == []


def test_another_log_is_known_by_its_start(log: TrainingLog) -> None:
    append(log, line(1, loss=1.0))
    assert losses(log) == [(1, 1.0)]
    log.path.write_text(line(1, loss=2.0) + line(2, loss=2.0))  # the same file with more in it
    assert losses(log) == [(1, 2.0), (2, 2.0)]


def test_odd_lines_are_left_out(log: TrainingLog) -> None:
    append(log, "\n", "x\n", "[]\n", "\x00\n", '{"loss": 1}\n', line(1, loss="text", lr=1.0), line(2, loss=1.0))
    assert losses(log) == [(2, 1.0)]


def test_players_are_named_in_order(log: TrainingLog) -> None:
    append(log, line(1, **{f"weights/player/{name}": 0.5 for name in ("theta_9", "theta_10")}))
    assert log.read().players == ["theta_9", "theta_10"]


def test_many_points_become_few_that_mean_the_same() -> None:
    series = Series(list(range(100_001)), [float(step % 2) for step in range(100_001)])
    steps, values = series.thinned(400)
    assert len(steps) == len(values) == 400
    assert np.all(np.diff(steps) > 0)
    assert values == pytest.approx(np.full(400, 0.5), abs=0.01)
    assert (steps[0], steps[-1]) == (pytest.approx(124.5, abs=1), pytest.approx(99_875.5, abs=1))


def test_what_is_not_finite_leaves_a_gap() -> None:
    steps, values = Series([1, 2, 3], [1.0, math.inf, math.nan]).thinned(10)
    assert steps.tolist() == [1, 2, 3]
    assert values[0] == 1.0
    assert np.isnan(values[1:]).all()


def test_the_last_entries_are_found_without_reading_all(log: TrainingLog) -> None:
    assert last_entries(log.path) == []
    append(log, *(line(step, loss=1.0) for step in range(1, 5000)), '{"current')
    found = [entry["current_steps"] for entry in last_entries(log.path)]
    assert found[-1] == 4999
    assert 500 < len(found) < 4000


def test_the_name_is_llamafactorys() -> None:
    from llamafactory.extras.constants import TRAINER_LOG as THEIRS

    assert TRAINER_LOG == THEIRS
