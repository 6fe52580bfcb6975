# SPDX-License-Identifier: Apache-2.0
"""How time and scoring of an interrupted training add up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from llamafactory_tpaw.team.manifest import Manifest, read_manifest, write_manifest
from llamafactory_tpaw.train import manifest as written
from llamafactory_tpaw.train.manifest import CheckpointManifests
from tests.unit.team.test_manifest import make_manifest


COUNTS = {"scored_blocks": 2, "scored_sequences": 32, "scored_tokens": 900}


class Clock:
    """A clock that is set by hand."""

    seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(written, "time", clock)
    return clock


def begun(**changes: object) -> Manifest:
    values = {"status": "training", "result": {}, "counts": dict(COUNTS), "seconds": {"generate": 2.0, "score": 3.0}}
    return make_manifest(**values | changes)


def save(manifest: Manifest, output: Path, clock: Clock, *steps: int) -> None:
    """Train with a checkpoint at each of these steps, 10 s apart."""
    callback = CheckpointManifests(manifest)
    arguments = SimpleNamespace(output_dir=str(output))
    callback.on_train_begin(arguments, None, None)
    for step in steps:
        clock.seconds += 10.0
        (output / f"checkpoint-{step}").mkdir(parents=True)
        callback.on_save(arguments, SimpleNamespace(global_step=step, is_world_process_zero=True), None)


def test_time_and_scoring_before_an_interruption_add_up(tmp_path: Path, clock: Clock) -> None:
    output, earlier = tmp_path / "iter0", begun(started="2026-01-01T00:00:00Z")
    write_manifest(output, earlier)
    save(earlier, output, clock, 5)
    resumed = begun(started="2026-01-02T00:00:00Z", seconds={"generate": 2.0, "score": 0.5})
    written.add_earlier_work(resumed, read_manifest(output), read_manifest(output / "checkpoint-5"))
    assert resumed.started == "2026-01-01T00:00:00Z"
    assert resumed.counts == {name: 2 * count for name, count in COUNTS.items()}
    assert resumed.seconds == {"generate": 2.0, "score": 3.5, "train": 10.0}
    save(resumed, output, clock, 10)
    assert read_manifest(output / "checkpoint-10").seconds["train"] == 20.0
