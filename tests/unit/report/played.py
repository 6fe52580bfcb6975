# SPDX-License-Identifier: Apache-2.0
"""A run written by hand: checkpoints of a few tensors with their `tpaw.json`, triplets with their meta files."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamafactory_tpaw.data.encoding import digest_of_ids
from llamafactory_tpaw.data.files import SEAL, digest_file
from llamafactory_tpaw.data.triplets import TripletMeta, TripletRow, meta_path, read_meta, write_meta
from llamafactory_tpaw.team.fingerprint import digest_other_files, hash_weights
from llamafactory_tpaw.team.manifest import MANIFEST, Manifest, relative_path, write_manifest
from tests.unit.team.checkpoints import make_tensors, save_single


STORE = Path("saves/.tpaw_cache")
META = TripletMeta(0, "", "", "t", "d", "sft", "p", {}, {"temperature": 1.0, "seed": 0}, 256, {"name": "hf"}, 1, "")
META = replace(META, counts={"generated_tokens": 10}, seconds=1.0, created="2026-01-01T00:00:00Z")


def files_of(folder: Path) -> dict[str, str]:
    own = {MANIFEST: digest_file(folder / MANIFEST)} if (folder / MANIFEST).exists() else {}
    return hash_weights(folder, STORE).files | digest_other_files(folder) | own


def save(folder: str, number: float) -> Path:
    """Save a checkpoint; all that differs is `number`."""
    saved = save_single(
        Path(folder), {name: (tensor + number).to(tensor.dtype) for name, tensor in make_tensors().items()}
    )
    (saved / "tokenizer.json").write_text("{}")
    return saved


def describe(name: str, path: Path, folder: Path) -> dict[str, Any]:
    fingerprint = hash_weights(path, STORE).fingerprint
    return {"name": name, "path": relative_path(path, folder), "fingerprint": fingerprint}


def generate(name: str, iteration: int, by: Path, **changes: Any) -> Path:
    """Write a file of triplets and its meta file; `changes` replaces fields of that."""
    path = Path(f"data/tpaw/{name}.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    says = [{"role": "user", "content": "2 + 2?"}], "", "", {"role": "assistant", "content": "4"}
    path.write_text(TripletRow(name, iteration, *says, "5", "stop", []).to_json() + "\n")
    given = {"iteration": iteration, "generator": hash_weights(by, STORE).fingerprint}
    given |= {"generator_path": relative_path(by, path.parent), "rows_digest": digest_file(path)}
    given["prompts_digest"] = digest_of_ids([name])
    write_meta(path, replace(META, **given | changes))
    return path


def source(path: Path, iteration: int, output: Path) -> dict[str, Any]:
    meta = read_meta(path)
    digests = {"digest": digest_file(path), "generator": meta.generator, "meta": digest_file(meta_path(path))}
    place = {"entry": path.stem, "path": os.path.relpath(path, output), "opponent": meta.opponent}
    return {"iteration": iteration, "rows": 1, "foreign": False, **digests, **place}


def play(folder: str, players: list[Path], rounds: list[Path], first: int = 0, **changes: Any) -> Path:
    """Save what an iteration makes of the newest player; the rounds are those of its players."""
    output = Path(folder)
    iteration = first + len(players) - 1
    output = save(folder, 1.0 + iteration + len(folder) / 100)
    team = [describe(f"theta_{first + index}", player, output) for index, player in enumerate(players)]
    values: dict[str, Any] = {"iteration": iteration, "status": "finished", "objective": "tpaw"}
    values |= {
        "policy": team[-1] | {"files": files_of(players[-1])},
        "players": team,
        "triplets": [source(path, first + index, output) for index, path in enumerate(rounds)],
        "tokenizer": "t",
        "template": {"name": "qwen", "digest": "d"},
        "settings": {"learning_rate": 1e-3, "tpaw_iteration": iteration, "dataset": "x"},
        "result": describe(f"theta_{iteration + 1}", output, output) | {"files": files_of(output)},
        "seconds": {"generate": 1.0, "score": 2.0, "train": 3.0},
        "counts": {"generated_tokens": 10, "scored_tokens": 20},
        "finished": "2026-01-02T00:00:00Z",
        "cache": os.path.relpath(STORE, output),
    }
    write_manifest(output, Manifest(**values | changes))
    return output


def play_three() -> list[Path]:
    """Play three iterations in the working folder: θ_0 to θ_3."""
    thetas, rounds = [save("saves/sft", 0.0)], []
    for iteration in range(3):
        rounds.append(generate(f"d{iteration}", iteration, thetas[-1]))
        settings = {"learning_rate": 1e-3 if iteration < 2 else 5e-4, "tpaw_iteration": iteration}
        thetas.append(play(f"saves/iter{iteration}", thetas, rounds, settings=settings))
    return thetas


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values | {SEAL: None}))
