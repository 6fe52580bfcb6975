# SPDX-License-Identifier: Apache-2.0
"""A folder with this project's run files and datasets, and iterations in it that look as if they were played."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from llamafactory_tpaw.arguments.recorded import recorded_settings
from llamafactory_tpaw.data.rounds import split_names
from llamafactory_tpaw.team.manifest import Manifest, relative_path, write_manifest


ROOT = Path(__file__).resolve().parents[3]


def copy_project() -> None:
    """Copy the demo's run files and `dataset_info.json` into the working folder."""
    Path("yaml").mkdir()
    Path("data").mkdir()
    shutil.copy(ROOT / "data" / "dataset_info.json", "data")
    copy_run_files("tiny")


def copy_run_files(family: str) -> None:
    """Copy the run files of a family."""
    for path in (ROOT / "yaml").glob(f"{family}_*.yaml"):
        shutil.copy(path, "yaml")


def committed(name: str) -> dict[str, Any]:
    """Return what a committed run file says."""
    return yaml.safe_load((ROOT / "yaml" / f"{name}.yaml").read_text(encoding="utf-8"))


def save_model(folder: str) -> None:
    """Make a folder that is a whole checkpoint by its files."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.zeros(1, np.float32)}, Path(folder) / "model.safetensors")
    (Path(folder) / "config.json").write_text(json.dumps({"vocab_size": 8}))


def play(settings: dict[str, Any], status: str = "finished") -> None:
    """Leave in the output folder what an iteration with these settings leaves there."""
    folder = Path(settings["output_dir"])
    save_model(str(folder))
    players = [{"name": "", "path": relative_path(path, folder), "fingerprint": ""}
               for path in split_names(settings["tpaw_players"])]  # fmt: skip
    manifest = Manifest(
        iteration=settings["tpaw_iteration"],
        status=status,
        objective=settings["tpaw_objective"],
        policy=players[-1],
        players=players[-settings["tpaw_team_size"] :],
        triplets=[
            {"entry": name, "iteration": number} for number, name in enumerate(split_names(settings["dataset"]))
        ],
        tokenizer="",
        template={},
        settings=recorded_settings(settings),
    )
    write_manifest(folder, manifest)
