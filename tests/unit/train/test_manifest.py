# SPDX-License-Identifier: Apache-2.0
"""How time and scoring of an interrupted training add up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from llamafactory_tpaw.team.manifest import Manifest, read_manifest
from llamafactory_tpaw.train import manifest as written
from tests.unit.team.test_manifest import make_manifest


COUNTS = {"scored_blocks": 2, "scored_sequences": 32, "scored_tokens": 900}


def test_time_and_scoring_before_an_interruption_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(day: int, score: float) -> Manifest:
        seconds, started = {"generate": 2.0, "score": score}, f"2026-01-0{day}T00:00:00Z"
        return make_manifest(status="training", result={}, counts=dict(COUNTS), seconds=seconds, started=started)

    def train(manifest: Manifest, step: int) -> Manifest:
        """Save a checkpoint 10 s after the beginning, by a clock that nothing else moves."""
        monkeypatch.setattr(written, "time", SimpleNamespace(monotonic=iter([100.0, 100.0, 110.0]).__next__))
        callback, folder = written.CheckpointManifests(manifest), tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        callback.on_train_begin(None, None, None)
        state = SimpleNamespace(global_step=step, is_world_process_zero=True)
        callback.on_save(SimpleNamespace(output_dir=str(tmp_path)), state, None)
        return read_manifest(folder)

    earlier, resumed = begun(1, 3.0), begun(2, 0.5)
    written.add_earlier_work(resumed, earlier, train(earlier, 5))
    assert resumed.started == "2026-01-01T00:00:00Z"
    assert resumed.counts == {name: 2 * count for name, count in COUNTS.items()}
    assert resumed.seconds == {"generate": 2.0, "score": 3.5, "train": 10.0}
    assert train(resumed, 10).seconds["train"] == 20.0
