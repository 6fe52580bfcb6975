# SPDX-License-Identifier: Apache-2.0
"""A run that older code left, in another folder, verifies and goes on: nothing is made, scored or trained twice.

`old_run/run.tar.gz` was made once, before the package was rebuilt, and stays as it is: iteration 0 finished, and
`llamafactory-cli train iter1.yaml` killed with all its processes (`kill -9`) after its first checkpoint, at step 6.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamafactory_tpaw.runs.loop import read_items
from tests.gate import values
from tests.gate.test_golden import OWN_TOKENIZER, golden, match
from tests.gate.values import read


OUTPUT = Path("saves/play_iter1")
STATE = OUTPUT / "checkpoint-6" / "trainer_state.json"
KEPT = ("data/tpaw", "saves/.tpaw_cache/logps", "saves/play_iter0")
SCORED = ("blocks", "scored_blocks", "scored_sequences", "scored_tokens")
MARK = 1234.5


def digests() -> dict[str, str]:
    """SHA-256 of every file that must stay as it is; locks come and go."""
    files = [path for folder in KEPT for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path): values.digest(path.read_bytes()) for path in files if ".lock" not in path.name}


@OWN_TOKENIZER
@pytest.mark.usefixtures("logs_as_before")
@pytest.mark.integration
def test_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values.unpack(tmp_path)
    monkeypatch.chdir(tmp_path)
    values.run("lineage", "saves", "--verify")
    before, begun, state = digests(), read(OUTPUT / "tpaw.json"), read(STATE)
    assert (begun["status"], state["global_step"], len(before)) == ("training", 6, 22)
    state["log_history"][0]["loss"] = MARK  # a training that began again would log its first step again
    STATE.write_text(json.dumps(state))

    program = Path(sys.executable).with_name("llamafactory-cli")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([program, "train", "iter1.yaml"], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]

    assert digests() == before
    finished = read(OUTPUT / "tpaw.json")
    assert finished["status"] == "finished"
    assert {name: finished["counts"][name] for name in SCORED} == {name: begun["counts"][name] for name in SCORED}
    first, *later, _ = values.logged(OUTPUT)
    expected = golden("tiny_run")["training_1"]
    assert first["loss"] == MARK
    match(later, expected["log"][1:-1])
    match(values.weights(OUTPUT), expected["weights"])

    for command in (["check", "iter2.yaml"], ["lineage", "saves", "--verify"]):
        values.run(*command)
    assert [item.finished for item in read_items(["iter0.yaml", "iter1.yaml"], [])] == [True, True]
