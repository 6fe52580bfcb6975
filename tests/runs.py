# SPDX-License-Identifier: Apache-2.0
"""Self-play runs in a folder of their own: datasets, run files and the real commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamafactory_tpaw.data.source import triplet_entry


TIMEOUT_S = 300
# For tests that take many launches.
every_launch = pytest.mark.skipif(
    not os.environ.get("LLAMAFACTORY_TPAW_ALL_LAUNCHES"), reason="set LLAMAFACTORY_TPAW_ALL_LAUNCHES=1"
)
ADDITIONS = [
    {
        "question": f"Tom has {first} apples and buys {second}. Total?",
        "answer": f"{first} + {second} = {first + second}.",
    }
    for first in range(4)
    for second in range(4)
]


@dataclass
class Result:
    """What a command did."""

    code: int
    output: str


class Project:
    """A folder with `data/`, `saves/` and run files, in which LlamaFactory's commands are run."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root = root
        self.model = model
        (root / "data").mkdir(parents=True, exist_ok=True)
        self.add_dataset("additions", ADDITIONS, columns={"prompt": "question", "response": "answer"})

    def add_dataset(self, name: str, rows: list[dict[str, Any]], **entry: Any) -> None:
        """Write rows to `data/<name>.jsonl` and their entry to `dataset_info.json`."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.root / "data" / f"{name}.jsonl").write_text(text)
        self.add_entry(name, {"file_name": f"{name}.jsonl", **entry})

    def add_entry(self, name: str, entry: dict[str, Any]) -> None:
        """Add an entry to `dataset_info.json`."""
        path = self.root / "data" / "dataset_info.json"
        info = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(info | {name: entry}))

    def settings(self, iteration: int, **changes: Any) -> dict[str, Any]:
        """Settings of an iteration of the run `play`; None removes a key."""
        run = changes.pop("run", "play")
        players = [str(self.model), *(f"saves/{run}_iter{index}" for index in range(iteration))]
        rounds = [f"{run}_iter{index}" for index in range(iteration + 1)]
        for name in rounds:
            self.add_entry(name, triplet_entry(name))
        settings = {
            "stage": "tpaw",
            "do_train": True,
            "model_name_or_path": players[-1],
            "finetuning_type": "full",
            "tpaw_iteration": iteration,
            "tpaw_players": ",".join(players),
            "tpaw_prompts": "additions",
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "max_new_tokens": 16,
            "dataset": ",".join(rounds),
            "output_dir": f"saves/{run}_iter{iteration}",
        }
        return {key: value for key, value in {**COMMON, **settings, **changes}.items() if value is not None}

    def write(self, name: str, settings: dict[str, Any]) -> str:
        """Write a run file and return its name."""
        (self.root / name).write_text(yaml.safe_dump(settings))
        return name

    def train(self, settings: dict[str, Any], *overrides: str, name: str = "run.yaml", **env: str) -> Result:
        """Run `llamafactory-cli train` with these settings."""
        return self.command("llamafactory-cli", "train", self.write(name, settings), *overrides, **env)

    def command(self, program: str, *arguments: str, **env: str) -> Result:
        """Run a command of this environment and wait for it."""
        done = subprocess.run(
            [str(Path(sys.executable).parent / program), *arguments],
            cwd=self.root,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Result(done.returncode, done.stdout)

    def triplets(self, name: str) -> list[dict[str, Any]]:
        """Rows of a generated file."""
        return [json.loads(line) for line in (self.root / "data" / "tpaw" / f"{name}.jsonl").read_text().splitlines()]

    def history(self, run: str) -> list[dict[str, Any]]:
        """What training logged, the summary at the end left out."""
        state = json.loads((self.root / "saves" / run / "trainer_state.json").read_text())
        return [entry for entry in state["log_history"] if "loss" in entry]


COMMON: dict[str, Any] = {
    "template": "qwen",
    "cutoff_len": 256,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "per_device_train_batch_size": 4,
    "learning_rate": 1.0e-3,
    "num_train_epochs": 1.0,
    "use_cpu": True,
    "seed": 0,
}
