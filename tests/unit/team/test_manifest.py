# SPDX-License-Identifier: Apache-2.0
"""`tpaw.json`: written whole, read back, refused where it is damaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from llamafactory_tpaw.team import manifest
from llamafactory_tpaw.team.manifest import (
    Manifest,
    moved_manifest,
    relative_path,
)


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


def test_versions_are_those_of_what_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the distribution is called: `llamafactory-kt` and `transformers-kt` hold the packages, too."""
    monkeypatch.setattr("llamafactory.extras.env.VERSION", "0.9.6.dev0")
    monkeypatch.setattr(manifest, "installed_commit", lambda: "c" * 40)
    monkeypatch.setattr(manifest, "distributions", lambda name: [])
    found = manifest.versions()
    assert (found["llamafactory"], found["llamafactory_commit"]) == ("0.9.6.dev0", "c" * 40)
    assert found["torch"] == torch.__version__


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
