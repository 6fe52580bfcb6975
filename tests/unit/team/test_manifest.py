# SPDX-License-Identifier: Apache-2.0
"""`tpaw.json`: versions and paths, and what a training that was interrupted adds to it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.team.manifest import Manifest, moved_manifest, read_manifest, relative_path
from llamafactory_tpaw.train import manifest as written


def make_manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "iteration": 0,
        "status": "finished",
        "objective": "tpaw",
        "policy": {"name": "theta_0", "path": "../sft", "fingerprint": "fp0"},
        "players": [{"name": "theta_0", "path": "../sft", "fingerprint": "fp0"}],
        "triplets": [],
        "tokenizer": "t",
        "template": {"name": "qwen", "digest": "d"},
        "settings": {"tpaw_eta": 6.0},
        "result": {"name": "theta_1", "fingerprint": "fp1"},
    }
    return Manifest(**values | changes)


def test_what_is_not_moved_with_the_run_has_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("models/base", "run/saves/sft"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run")
    assert relative_path("../models/base", "saves/iter0") == str(tmp_path / "models" / "base")
    assert relative_path(tmp_path / "run" / "saves" / "sft", "saves/iter0") == "../sft"
    assert relative_path("Qwen/Qwen2.5-1.5B", "saves/iter0") == "Qwen/Qwen2.5-1.5B"
    assert relative_path("saves/sft", "/elsewhere/iter0") == os.path.relpath(
        tmp_path / "run/saves/sft", "/elsewhere/iter0"
    )


def test_moved_paths_lead_to_the_same_places(tmp_path: Path) -> None:
    for folder in ("sft", "iter0", "weak", ".tpaw_cache"):
        (tmp_path / folder).mkdir()
    elsewhere = {"name": "theta_1", "path": "org/hub", "fingerprint": "fp"}
    absolute = {"name": "theta_2", "path": str(tmp_path / "sft"), "fingerprint": "fp"}
    players = [make_manifest().policy, elsewhere, absolute]
    manifest = make_manifest(
        players=players, triplets=[{"opponent": "../weak"}, {"opponent": "served"}], cache="../.tpaw_cache"
    )
    old, new = tmp_path / "iter0", tmp_path / "iter0" / "checkpoint-5"
    moved = moved_manifest(manifest, old, new, step=5)
    assert [player["path"] for player in moved.players] == ["../../sft", "org/hub", str(tmp_path / "sft")]
    assert (moved.policy["path"], moved.cache, moved.step) == ("../../sft", "../../.tpaw_cache", 5)
    assert [source["opponent"] for source in moved.triplets] == ["../../weak", "served"]
    assert manifest.policy["path"] == "../sft"


COUNTS = {"scored_blocks": 2, "scored_sequences": 32, "scored_tokens": 900}


def test_time_and_scoring_before_an_interruption_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(day: int, score: float) -> Manifest:
        seconds, started = {"generate": 2.0, "score": score}, f"2026-01-0{day}T00:00:00Z"
        return make_manifest(status="training", result={}, counts=dict(COUNTS), seconds=seconds, started=started)

    def train(manifest: Manifest, step: int) -> Manifest:
        """Save a checkpoint 10 s after the beginning, by a clock that nothing else moves."""
        monkeypatch.setattr(written, "time", SimpleNamespace(monotonic=iter([100.0, 110.0]).__next__))
        callback, folder = written.CheckpointManifests(manifest), tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        state = SimpleNamespace(global_step=step, is_world_process_zero=True)
        callback.on_save(SimpleNamespace(output_dir=str(tmp_path)), state, None)
        return read_manifest(folder)

    earlier, resumed = begun(1, 3.0), begun(2, 0.5)
    written.add_earlier_work(resumed, earlier, train(earlier, 5))
    assert resumed.started == "2026-01-01T00:00:00Z"
    assert resumed.counts == {name: 2 * count for name, count in COUNTS.items()}
    assert resumed.seconds == {"generate": 2.0, "score": 3.5, "train": 10.0}
    assert train(resumed, 10).seconds["train"] == 20.0


def test_what_a_kill_left_is_put_right_where_training_continues(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
    log = tmp_path / "trainer_log.jsonl"
    log.write_text('{"current_steps": 6}\n{"current_st')
    args = SimpleNamespace(output_dir=str(tmp_path), save_total_limit=2, should_save=True)
    state = SimpleNamespace(global_step=6, is_world_process_zero=True, best_model_checkpoint=None)
    written.CheckpointManifests(make_manifest()).on_train_begin(args, state, None)
    assert log.read_text() == '{"current_steps": 6}\n'
    assert sorted(each.name for each in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{step}" for step in (4, 6, 8)]
