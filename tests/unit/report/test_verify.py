# SPDX-License-Identifier: Apache-2.0
"""Everything that was recorded is looked at again, whatever the times of the files say, and named where it changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from llamafactory_tpaw.report.lineage import trace
from llamafactory_tpaw.report.verify import Check, verify
from llamafactory_tpaw.team.fingerprint import fingerprint_checkpoint
from tests.unit.report.played import STORE, change_json, play_three
from tests.unit.team.checkpoints import flip


@pytest.fixture(autouse=True)
def thetas(elsewhere: Path) -> list[Path]:
    """A run of three iterations in the working folder."""
    return play_three()


def checks(place: str = "saves/iter2") -> list[Check]:
    return list(verify(trace([Path(place)])))


def found(state: str) -> list[tuple[str, str, str]]:
    return [(check.name, check.path, check.what) for check in checks() if check.state == state]


@pytest.mark.parametrize("theta", [0, 1, 3])
def test_a_changed_byte_in_a_file_of_the_same_size_and_time(thetas: list[Path], theta: int) -> None:
    weights = thetas[theta] / "model.safetensors"
    recorded, stat = fingerprint_checkpoint(thetas[theta], STORE), weights.stat()
    flip(weights, -1)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint_checkpoint(thetas[theta], STORE) == recorded, "time and size alone do not show it"
    assert found("changed") == [(f"theta_{theta}", str(thetas[theta]), "model.safetensors")]
    assert fingerprint_checkpoint(thetas[theta], STORE) != recorded, "from now on training sees it too"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tpaw.json"])
def test_other_files_of_a_checkpoint(thetas: list[Path], name: str) -> None:
    (thetas[2] / "tokenizer.json").unlink()
    (thetas[2] / "modeling_own.py").write_text("")
    (thetas[2] / "README.md").write_text("not part of the model")
    change_json(thetas[1] / name, **({"finished": "2027-01-01T00:00:00Z"} if name == "tpaw.json" else {"new": 1}))
    changed = [("theta_1", name), ("theta_2", "modeling_own.py"), ("theta_2", "tokenizer.json")]
    assert [(theta, what) for theta, _, what in found("changed")] == changed


def test_weights_that_are_cut_off_or_gone(thetas: list[Path]) -> None:
    path = thetas[1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (thetas[2] / "model.safetensors").unlink()
    first, second = (check for check in checks() if check.state == "changed")
    assert (first.name, first.what, second.name, second.what) == ("theta_1", "weights", "theta_2", "weights")
    assert "is cut off or damaged" in first.detail
    assert "holds no weights" in second.detail


def test_triplets(thetas: list[Path]) -> None:
    flip(Path("data/tpaw/d0.jsonl"), 5)
    change_json(Path("data/tpaw/d1.meta.json"), sampling={"temperature": 0.5})
    change_json(Path("data/tpaw/d2.meta.json"), rows_digest="e" * 64)
    assert found("changed") == [
        ("D_0", "data/tpaw/d0.jsonl", "rows"),
        ("D_1", "data/tpaw/d1.jsonl", "meta file"),
        ("D_2", "data/tpaw/d2.jsonl", "rows"),
    ]


def test_what_is_not_here_is_missing_and_no_change(thetas: list[Path]) -> None:
    shutil.rmtree(thetas[0])
    Path("data/tpaw/d1.jsonl").unlink()
    change_json(thetas[3] / "tpaw.json", status="training", result={})  # nothing is recorded of it yet
    assert [(check.name, check.state) for check in checks() if check.state != "ok"] == [
        ("theta_0", "missing"),
        ("D_1", "missing"),
    ]
    assert "theta_3" not in {check.name for check in checks()}


def test_of_folders_with_one_result_the_parent_is_compared(thetas: list[Path]) -> None:
    """A copy, or an iteration that was played twice, says other dates."""
    shutil.copytree(thetas[2], "saves/a_copy")
    change_json(Path("saves/a_copy/tpaw.json"), finished="2027-01-01T00:00:00Z")
    checked = checks("saves")
    assert [check for check in checked if check.state != "ok"] == []
    assert {check.path for check in checked if check.name == "theta_2"} == {"saves/iter1"}
