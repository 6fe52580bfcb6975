# SPDX-License-Identifier: Apache-2.0
"""The demo in a folder of its own: the committed run files and datasets, its base model and its problems."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from demo.make_task import write_base_model, write_problems


ROOT = Path(__file__).resolve().parents[1]
SAVES = Path("saves/Tiny/full")
RUN_FILES = [f"yaml/tiny_tpaw_iter{iteration}.yaml" for iteration in range(3)]
# As many of the demo's problems do for a test; `--whole-demo` takes them all.
PROBLEMS = 96
SFT_FILE = yaml.safe_load((ROOT / "yaml" / "tiny_sft.yaml").read_text())
# What a user gives in the page to train theta_0 as yaml/tiny_sft.yaml does.
SFT: dict[str, Any] = {
    "Model path": SFT_FILE["model_name_or_path"],
    "Chat template": SFT_FILE["template"],
    "Epochs": SFT_FILE["num_train_epochs"],
    "Learning rate": SFT_FILE["learning_rate"],
    "Batch size": SFT_FILE["per_device_train_batch_size"],
    "Gradient accumulation": SFT_FILE["gradient_accumulation_steps"],
    "Cutoff length": SFT_FILE["cutoff_len"],
    "Dataset": [SFT_FILE["dataset"]],
    "Output dir": SFT_FILE["output_dir"],
}


def prepare(root: Path, whole: bool) -> None:
    """Write what the demo has before its first training."""
    (root / "yaml").mkdir(exist_ok=True)
    for name in (*RUN_FILES, "yaml/tiny_sft.yaml"):
        shutil.copy(ROOT / name, root / name)
    path = root / "data" / "dataset_info.json"
    entries = json.loads((ROOT / "data" / "dataset_info.json").read_text())
    entries = {name: entry for name, entry in entries.items() if name.startswith("tiny_")}
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    write_base_model(root / SFT_FILE["model_name_or_path"], seed=0)
    train = write_problems(root / "data" / "demo", seed=0)["train"]
    if not whole:
        train.write_text("".join(train.read_text().splitlines(keepends=True)[:PROBLEMS]))


def copy(root: Path, other: Path) -> None:
    """Copy the demo as it is before iteration 0."""
    prepare(other, whole=True)
    for folder in (Path("data/demo"), SAVES / "sft"):
        shutil.copytree(root / folder, other / folder, dirs_exist_ok=True)
