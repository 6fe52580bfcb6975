# SPDX-License-Identifier: Apache-2.0
"""Finished and unfinished iterations, as their logs and `tpaw.json` show them; no weights but a few bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from llamafactory_tpaw.board.training_log import TRAINER_LOG
from llamafactory_tpaw.team.manifest import write_manifest
from tests.unit.team.test_manifest import make_manifest


RUNS = Path("saves/Tiny/full")
STEPS = 10


def folder_of(iteration: int) -> Path:
    return RUNS / ("sft" if iteration < 0 else f"play_iter{iteration}")


def write_run(iteration: int, status: str = "finished", **changes: Any) -> Path:
    """Write an iteration in which the target reward grows from the iteration's number on."""
    folder = folder_of(iteration)
    players = [{"name": f"theta_{k}", "path": f"../{folder_of(k - 1).name}", "fingerprint": f"fp{k}"}
               for k in range(iteration + 1)]  # fmt: skip
    fields: dict[str, Any] = {"iteration": iteration, "status": status, "policy": players[-1], "players": players}
    fields |= {"seconds": {"generate": 2.6, "score": 1.0, "train": 8.0}}
    fields |= {"counts": {"train_triplets": 1000 * (iteration + 1), "generated_tokens": 26399}}
    fields |= {"settings": {"tpaw_eta": 6.0, "template": "qwen", "tpaw_cache_dir": "saves/.tpaw_cache"}}
    write_manifest(folder, make_manifest(**fields | changes))
    (folder / "model.safetensors").write_bytes(f"theta_{iteration + 1}".encode())
    entries = [entry(step, iteration, len(players)) for step in range(1, STEPS + 1)]
    logged = [{"step": row["current_steps"], **row} for row in entries]
    (folder / TRAINER_LOG).write_text("".join(json.dumps(row) + "\n" for row in entries))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": STEPS, "log_history": logged}))
    return folder


def entry(step: int, iteration: int, players: int) -> dict[str, Any]:
    """A line of the log."""
    row = {"current_steps": step, "total_steps": STEPS, "loss": 1 / step, "lr": 0.1, "rewards/accuracy": step / STEPS}
    row |= {"rewards/target": iteration + step / 10, "rewards/generated": -0.5, "rewards/margin": -step / 4}
    return row | {f"weights/player/theta_{k}": 1 / players for k in range(players)}


def write_accuracies(name: str, shares: dict[int, int]) -> Path:
    """Write how many of ten problems the result of each iteration solves; -1 is the first model."""
    rows = []
    for iteration, correct in shares.items():
        weights = folder_of(iteration) / "model.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        if not weights.exists():
            weights.write_bytes(b"theta_0")
        row = {"checkpoint": str(weights.parent), "n": 10, "correct": correct, "interval": [0.1, 0.9]}
        rows.append(row | {"hits": "1" * correct, "weights": hashlib.sha256(weights.read_bytes()).hexdigest()})
    path = RUNS.parent / name
    path.write_text(json.dumps(rows))
    return path
