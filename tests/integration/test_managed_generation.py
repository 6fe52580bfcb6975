# SPDX-License-Identifier: Apache-2.0
"""Engine `vllm` with a real server program in vLLM's place: started, asked, ended, and nothing is left of it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.data.source import find_entry
from llamafactory_tpaw.data.triplets import TripletMeta
from tests import encoders
from tests.processes import ends_soon
from tests.runs import Project


pytestmark = pytest.mark.integration

# What `vllm serve` is told, for `transformers serve`; it fails where something that it needs is not said.
PROGRAM = """#!{python}
import argparse, os
parser = argparse.ArgumentParser()
parser.add_argument("serve", choices=["serve"])
parser.add_argument("model")
for option in ("served-model-name", "host", "port", "dtype", "max-model-len", "generation-config", "seed"):
    parser.add_argument("--" + option, required=True)
given, _ = parser.parse_known_args()
assert os.environ["VLLM_API_KEY"] and os.environ["LLAMAFACTORY_TPAW"] == "0"
print("this is", os.getpid(), flush=True)
words = ["serve", given.model, "--host", given.host, "--port", given.port, "--dtype", given.dtype, "--device", "cpu"]
os.execv({program!r}, [{program!r}, *words])
"""


def generate(project: Project, name: str, **changes: Any) -> tuple[TripletMeta, list[dict[str, Any]]]:
    """Generate a round of its own in this process."""
    from llamafactory_tpaw.generation.local import generate_round

    greedy = {"run": name, "temperature": 0.0, "tpaw_cache_dir": str(project.root / "cache")}
    run = encoders.parse(project, **(greedy | changes))
    round_ = Round(0, find_entry(f"{name}_iter0", run.data.dataset_dir))
    return generate_round(run, round_), project.triplets(f"{name}_iter0")


def plain(row: dict[str, Any]) -> str:
    """The response without special tokens, which this server leaves out."""
    return re.sub(r"<\|\w+\|>", "", row["rejected"]["value"])


def test_a_server_is_started_asked_and_ended(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    program = tmp_path / "vllm of another environment"
    transformers = str(Path(sys.executable).parent / "transformers")
    program.write_text(PROGRAM.format(python=sys.executable, program=transformers), encoding="utf-8")
    program.chmod(0o755)
    project = Project(tmp_path, tiny_model)
    _, ours = generate(project, "hf")
    before = set(psutil.Process().children(recursive=True))
    meta, theirs = generate(project, "vllm", tpaw_engine="vllm", tpaw_vllm_command=f"'{program}'")
    assert [plain(row) for row in theirs] == [plain(row) for row in ours]
    assert (meta.engine["name"], meta.engine["version"], meta.engine["verified"]) == (
        "vllm",
        "transformers serve",
        True,
    )
    said = (tmp_path / "data" / "tpaw" / "vllm_iter0.server.log").read_text(encoding="utf-8")
    assert ends_soon(int(said.partition("this is")[2].split()[0]))
    assert set(psutil.Process().children(recursive=True)) <= before
