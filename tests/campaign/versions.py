# SPDX-License-Identifier: Apache-2.0
"""Both ends of what is supported: fresh environments, one after the other, in which `doctor` and some tests run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from .ledger import ROOT, Outcome


PYTHONS, ENDS = ("3.11", "3.13", "3.12"), ("highest", "lowest-direct")
# The release, and the main branch, which PyPI has under a name that pip does not know, with forks of what it needs.
RELEASE, MAIN, FORK = "llamafactory==0.9.5", "llamafactory-kt==0.9.6.dev0", "-kt"
CELLS = [(factory, python, end) for end in ENDS for factory in (RELEASE, MAIN) for python in PYTHONS]
# Of these the lowest or the highest versions that LlamaFactory and this package take; what they need is the newest.
NAMED = "transformers!=4.57.0 torch<2.15 torchvision torchaudio peft datasets gradio accelerate trl".split()
OWN = "transformers>=5.2 torch>=2.6 packaging filelock>=3.20.1 psutil>=5.9 rich>=13.0 shtab>=1.6".split()
MAINS = "transformers<=5.8.0,!=5.6.0 accelerate>=1.3,<=1.15 peft>=0.18,<=0.20 trl>=0.18,<=0.24".split()
REQUIRED = "import importlib.metadata as m; print(*m.requires('llamafactory-kt'), sep='\\n')"
COLUMNS = ("transformers", "torch", "peft", "datasets", "gradio")
TESTS = ("tests/unit/hook", "tests/unit/lf", "tests/integration/test_step_zero.py", "tests/gate")


def run(count: int, seed: int, folder: Path) -> Outcome:
    """Try so many of `CELLS`, from number `seed` on; the rows printed are those of docs/compatibility.md."""
    outcome = Outcome()
    if shutil.which("uv") is None:
        print("Nothing is tried: uv makes the environments, and is not here. Run: pip install uv")
        return outcome
    for cell in CELLS[seed : seed + count]:
        *versions, said = _try(*cell, folder / "environment", folder / "log")
        print(f"| {' | '.join(versions)} | {said} |", flush=True)
        outcome.tried["environments"] += 1
        outcome.failures += [f"{', '.join(cell)}: {said}."] * said.startswith("failed")
        if said.startswith(("failed", "not")):
            print((folder / "log").read_text()[-3000:])
        shutil.rmtree(folder / "environment", ignore_errors=True)
    return outcome


def _try(factory: str, python: str, end: str, environment: Path, log: Path) -> list[str]:
    """Make an environment and use it: its versions, and what became of it."""

    def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
        variables = os.environ | {"PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)
        with log.open("a") as stream:
            stream.write(f"$ {' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
        return done

    row, interpreter = [python, factory.replace("==", " ")], environment / "bin" / "python"
    pip = ("uv", "pip", "install", "--python", interpreter)
    needs, others = [factory, "-e", "."], []
    call("uv", "venv", "--python", python, environment)
    if factory == MAIN:
        call(*pip, "--no-deps", factory)
        required = call(interpreter, "-c", REQUIRED).stdout.splitlines()
        others = [each for each in required if FORK not in each and "extra" not in each]
        needs = [each for each in others if each.startswith(("torch", "datasets", "gradio"))] + OWN + MAINS
    for step in (("--resolution", end, *NAMED, *needs), ("pytest>=8", *others), ("--no-deps", "-e", ".")):
        if call(*pip, *step).returncode:
            return [*row, *[f"({end})"] * len(COLUMNS), "not installable"]
    listed = call("uv", "pip", "list", "--python", interpreter, "--format", "json").stdout
    versions = {each["name"]: each["version"] for each in json.loads(listed)}
    row += [versions[name] for name in COLUMNS]
    if code := call(environment / "bin" / "llamafactory-tpaw", "doctor").returncode:
        return [*row, f"failed: `doctor` ends with {code}"]
    tests = call(interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS).stdout
    ended = dict(map(reversed, re.findall(r"(\d+) (passed|failed|skipped|error)", tests.rstrip().rpartition("\n")[2])))
    said = ", ".join(f"{number} {end}" for end, number in ended.items())
    return [*row, said if {"passed"} <= ended.keys() <= {"passed", "skipped"} else f"failed: {said or 'no test ran'}"]
