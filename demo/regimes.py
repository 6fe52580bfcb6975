# SPDX-License-Identifier: Apache-2.0
"""Write what the studies in docs/reproduction/ start from: `python -m demo.regimes small`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .make_task import write_base_model, write_problems
from .problems import Task


# A model too small for its problems; then one that can learn all of them: answers that may be written in two ways; a
# tenth of the answers wrong.
REGIMES = {
    "small": Task(),
    "words": Task(wordings=2),
    "wrong": Task(wrong=0.1),
}
HIDDEN = {"small": 16, "words": 32, "wrong": 16}
SEEDS = 8


def write_regime(name: str, data: Path, saves: Path, seeds: int) -> None:
    """Write a regime's problems, the same for all seeds, and their dataset_info.json, and a base model a seed."""
    folder = data / name
    paths = write_problems(folder, 0, REGIMES[name])
    columns = {"prompt": "question", "response": "answer"}
    entries = {split: {"file_name": path.name, "columns": columns} for split, path in paths.items()}
    (folder / "dataset_info.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    for seed in range(seeds):
        write_base_model(saves / name / f"seed{seed}" / "base", seed, HIDDEN[name])


def main() -> None:
    """Write the regimes that are named."""
    parser = argparse.ArgumentParser(prog="python -m demo.regimes", description=__doc__)
    parser.add_argument("regimes", nargs="+", choices=REGIMES, metavar="REGIME", help=", ".join(REGIMES))
    parser.add_argument("--data", type=Path, default=Path("data/reproduction"), help="problems (%(default)s)")
    parser.add_argument("--saves", type=Path, default=Path("saves/reproduction"), help="models (%(default)s)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many base models (%(default)s)")
    arguments = parser.parse_args()
    for name in arguments.regimes:
        write_regime(name, arguments.data, arguments.saves, arguments.seeds)


if __name__ == "__main__":
    main()
