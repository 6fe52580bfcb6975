# SPDX-License-Identifier: Apache-2.0
"""`llamafactory-tpaw doctor` on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import Project


pytestmark = pytest.mark.integration


def test_doctor_finds_all_that_is_needed(tmp_path: Path) -> None:
    result = Project(tmp_path, tmp_path).command("llamafactory-tpaw", "doctor", "--json")
    report = json.loads(result.output)  # nothing but the report, on either stream
    assert [finding for finding in report["findings"] if finding["level"] == "problem"] == []
    assert (report["ok"], result.code) == (True, 0)
    assert {seam["name"]: seam["state"] for seam in report["seams"]} == dict.fromkeys(
        [
            *("arguments", "dispatch", "launch", "stages"),
            *("board_words", "board_runner", "board_train"),
        ],
        "applied",
    )
    assert report["hook"] is True
    assert any("PyTorch version" in line for line in report["environment"])
