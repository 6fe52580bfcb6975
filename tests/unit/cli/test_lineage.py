# SPDX-License-Identifier: Apache-2.0
"""The command `lineage`: what it prints where, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafactory_tpaw import cli
from tests.unit.report.played import play_three
from tests.unit.team.checkpoints import flip


def test_lineage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    thetas = play_three()
    assert cli.main(["lineage", "saves/iter2", "--verify"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "\x1b" not in output
    assert all(line == line.rstrip() for line in output.splitlines())
    assert "theta_3 <- theta_2  saves/iter2" in output
    assert output.endswith("\n20 ok, 0 changed, 0 missing\n")
    assert cli.main(["lineage", "saves/iter2", "--mermaid"]) == 0
    assert capsys.readouterr().out.startswith("flowchart LR\n")

    flip(thetas[1] / "model.safetensors", -1)
    Path("data/tpaw/d1.jsonl").unlink()
    assert cli.main(["lineage", "saves/iter2", "--verify"]) == 3
    output, errors = capsys.readouterr()
    assert "\nchanged  theta_1  saves/iter0: model.safetensors\n" in output
    assert "\nmissing  D_1  data/tpaw/d1.jsonl: rows\n" in output
    (error,) = errors.splitlines()
    assert error.startswith("llamafactory-tpaw: error: theta_1 (saves/iter0): model.safetensors was changed")
    assert cli.main(["lineage", "saves/iter2", "--json", "--verify"]) == 3
    content = json.loads(capsys.readouterr().out)
    assert [node["name"] for node in content["checkpoints"]] == ["theta_3", "theta_2", "theta_1", "theta_0"]
    assert {check["what"] for check in content["verification"] if check["state"] != "ok"} == {
        "model.safetensors",
        "rows",
    }
