# SPDX-License-Identifier: Apache-2.0
"""The command `lineage`: what it prints where, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafactory_tpaw import cli
from tests.unit.report.played import play_three
from tests.unit.team.checkpoints import flip


@pytest.fixture(autouse=True)
def thetas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A run of three iterations in the working folder."""
    monkeypatch.chdir(tmp_path)
    return play_three()


def test_text_is_plain_and_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lineage", "saves/iter2"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "\x1b" not in output
    assert all(line == line.rstrip() for line in output.splitlines())
    assert "theta_3 <- theta_2  saves/iter2" in output
    assert cli.main(["lineage", "saves/iter2", "--mermaid"]) == 0
    assert capsys.readouterr().out.startswith("flowchart LR\n")


def test_verify(thetas: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lineage", "saves/iter2", "--verify"]) == 0
    output = capsys.readouterr().out
    assert "\nok       theta_1  saves/iter0: model.safetensors\n" in output
    assert "\nok       D_0  data/tpaw/d0.jsonl: meta file\n" in output
    assert output.endswith("\n20 ok, 0 changed, 0 missing\n")

    flip(thetas[1] / "model.safetensors", -1)
    Path("data/tpaw/d1.jsonl").unlink()
    assert cli.main(["lineage", "saves/iter2", "--verify"]) == 3
    output, errors = capsys.readouterr()
    assert "\nchanged  theta_1  saves/iter0: model.safetensors\n" in output
    assert "\nmissing  D_1  data/tpaw/d1.jsonl: rows\n" in output
    assert output.endswith("\n17 ok, 1 changed, 1 missing\n")
    (error,) = errors.splitlines()
    assert error.startswith("llamafactory-tpaw: error: theta_1 (saves/iter0): model.safetensors was changed")
    assert error.endswith("or repeat iteration 0 with `overwrite_output_dir: true`.")


def test_json_is_one_object(thetas: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lineage", "saves/iter2", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [node["name"] for node in content["checkpoints"]] == ["theta_3", "theta_2", "theta_1", "theta_0"]
    assert "verification" not in content
    flip(thetas[3] / "model.safetensors", -1)
    assert cli.main(["lineage", "saves/iter2", "--json", "--verify"]) == 3
    content = json.loads(capsys.readouterr().out)
    changed = [check["what"] for check in content["verification"] if check["state"] == "changed"]
    assert changed == ["model.safetensors"]


def test_a_place_without_lineage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lineage", "data"]) == 3
    assert "data holds no tpaw.json" in capsys.readouterr().err
