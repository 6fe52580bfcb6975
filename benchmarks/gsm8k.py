# SPDX-License-Identifier: Apache-2.0
r"""Self-play on GSM8K's own text with a real pretrained model: SmolLM2-135M-Instruct, by `llamafactory-tpaw study`.

    python -m benchmarks.gsm8k                      # gsm8k_small.yaml: iterations 0 and 1 on the CPU
    python -m benchmarks.gsm8k --full               # gsm8k.yaml: four iterations of three methods on a large GPU

The same command continues. Needs GSM8K's train.jsonl and test.jsonl; where they are missing, nothing is played.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from llamafactory_tpaw.errors import INTERRUPTED, EnvironmentProblem
from llamafactory_tpaw.report.collect import collect

from . import machine, tables
from .fetch import fetch_model
from .workload import RESULTS, ROOT


KEPT, DATA, TASK = ROOT / ".real", ROOT.parent / "shared" / "data" / "gsm8k", "gsm8k_text"
PLAYED = 16  # problems of gsm8k_small.yaml
HEADER = ("method", "checkpoint", "right, %", "standard error", "items", "generate, s", "score, s", "train, s")


def write_problems(source: Path, folder: Path, played: int) -> None:
    """Write the problems, those of them that are played with, and the dataset_info.json of both sets."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {name: (source / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("train", "test")}
    texts["play"] = "".join(texts["train"].splitlines(keepends=True)[:played])
    for name, text in texts.items():
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    columns = {"prompt": "question", "response": "answer"}
    entries = {name: {"file_name": f"{name}.jsonl", "columns": columns} for name in ("train", "play")}
    (folder / "dataset_info.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def rows_of(results: Path) -> list[list[str]]:
    """A row for each checkpoint that was measured: its accuracy, and what its iteration took."""
    rows, parts = [], ("generate", "score", "train")
    for method in collect([results]):
        for name, seeds in method.points().items():
            for point in seeds.values():
                if found := point.evaluations.get(TASK):
                    error = math.sqrt(found["value"] * (1 - found["value"]) / found["n"])
                    spent = [tables.number((point.seconds or {}).get(part), 0) for part in parts]
                    shares = [tables.number(100 * share, 1) for share in (found["value"], error)]
                    rows.append([method.label, name, *shares, str(found["n"]), *spent])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch, play, print the table and write it as JSON; 0 as well where there is no text to play with."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0], prog="python -m benchmarks.gsm8k")
    parser.add_argument("--full", action="store_true", help="benchmarks/gsm8k.yaml instead of gsm8k_small.yaml")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of train.jsonl and test.jsonl")
    options = parser.parse_args(argv)
    if not all((options.data / f"{name}.jsonl").is_file() for name in ("train", "test")):
        print(f"GSM8K is left out: {options.data} has no train.jsonl and test.jsonl. Name their folder by `--data`.")
        return 0
    write_problems(options.data, KEPT / "gsm8k", PLAYED)
    try:
        fetch_model(KEPT)
    except EnvironmentProblem as error:
        print(error, file=sys.stderr)
        return error.exit_code
    name = "full" if options.full else "small"
    study = "benchmarks/gsm8k.yaml" if options.full else "benchmarks/gsm8k_small.yaml"
    command = [sys.executable, "-m", "llamafactory_tpaw", "study", study]
    try:
        if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
            return code
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    rows = rows_of(KEPT / "gsm8k" / name / "results")
    tables.show(f"SmolLM2-135M-Instruct on GSM8K, {study}", HEADER, rows)
    content = {"machine": machine.describe("cuda" if options.full else "cpu"), "rows": rows}
    tables.save(RESULTS / f"gsm8k_{name}.json", content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
