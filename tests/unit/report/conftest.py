# SPDX-License-Identifier: Apache-2.0
"""A small project of finished runs, written by hand: two iterations of self-play and one plain training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamafactory_tpaw.report.collect import Method, collect_method, read_accuracies
from llamafactory_tpaw.report.render import Page
from llamafactory_tpaw.team.manifest import Manifest, write_manifest


@dataclass
class Project:
    """Folders of the runs and the file of accuracies."""

    root: Path
    accuracy: Path

    def folder(self, name: str) -> Path:
        return self.root / name

    def method(self, label: str, *runs: str) -> Method:
        folders = [self.folder(run) for run in runs]
        return collect_method(label, "a note", self.folder("sft"), folders, read_accuracies(self.accuracy))

    def methods(self) -> tuple[Method, Method]:
        return self.method("team", "iter0", "iter1"), self.method("plain", "more")

    def page(self, **changes: object) -> Page:
        texts = {"title": "A page", "introduction": ("First.",), "what": "right answers", "noise": ("One seed.",)}
        return Page(**{**texts, "methods": self.methods(), **changes})


def write_state(folder: Path, steps: int, rows: list[dict[str, float]], seen: int) -> None:
    totals = {"step": steps, "train_runtime": 8.0, "train_samples_per_second": seen / 8.0, "train_loss": 1.0}
    folder.mkdir(parents=True, exist_ok=True)
    state = {"global_step": steps, "log_history": [*rows, totals]}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def write_iteration(folder: Path, iteration: int, steps: int) -> None:
    names = [f"theta_{index}" for index in range(iteration + 1)]
    rows = []
    for step in range(5, steps + 1, 5):
        row = {"step": step, "loss": 0.7, "weights/target_eta_fraction": 0.9, "logps/target": -4.0}
        row |= {"rewards/target": 0.01 * step, "rewards/generated": -0.5, "rewards/margin": 0.01 * step + 0.5}
        row |= {f"weights/player/{name}": 1 / len(names) for name in names}
        row |= {"generated/equal_fraction": 0.25 if step == 5 else 0.35}
        rows.append(row | ({"weights/step0_flipped_fraction": 0.125} if step == 5 else {}))
    write_state(folder, steps, rows, seen=640)
    players = [{"name": name, "path": name, "fingerprint": "f" * 64} for name in names]
    manifest = Manifest(iteration, "finished", "tpaw", players[-1], players, [], "t", {"name": "default"}, {})
    manifest.counts, manifest.seconds = {"train_triplets": 320}, {"generate": 3.0, "score": 1.0, "train": 8.0}
    write_manifest(folder, manifest)


def accuracy_row(folder: Path, hits: str, interval: tuple[float, float]) -> dict[str, object]:
    return {
        "checkpoint": str(folder),
        "n": len(hits),
        "correct": hits.count("1"),
        "interval": list(interval),
        "hits": hits,
    }


@pytest.fixture
def project(tmp_path: Path) -> Project:
    write_iteration(tmp_path / "iter0", 0, 10)
    write_iteration(tmp_path / "iter1", 1, 20)
    write_state(tmp_path / "more", 30, [{"step": 10, "loss": 0.2}], seen=960)
    rows = [
        accuracy_row(tmp_path / "sft", "1100000000", (0.06, 0.51)),
        accuracy_row(tmp_path / "iter0", "1110000000", (0.11, 0.61)),
        accuracy_row(tmp_path / "iter1", "1111111000", (0.39, 0.89)),
        accuracy_row(tmp_path / "more" / "checkpoint-12", "1111000000", (0.17, 0.69)),
        accuracy_row(tmp_path / "more" / "checkpoint-30", "1111100000", (0.24, 0.76)),
        accuracy_row(tmp_path / "more", "0011100000", (0.11, 0.61)),
    ]
    (tmp_path / "accuracy.json").write_text(json.dumps(rows))
    return Project(tmp_path, tmp_path / "accuracy.json")
