# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the client, at toy size: every prompt is answered, and the figures are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import client


def test_figures_of_a_toy_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "client.json"
    command = f"--prompts 60 90 --rate 100 --seconds 1 --concurrency 10 --tokens 3 --json {file}"
    assert client.main(command.split()) == 0
    result = json.loads(file.read_text())
    timed = result["timed"]
    assert (timed["prompts"], timed["delay_s"]) == (100, 0.1)
    assert timed["seconds"] > 10 * 0.1  # as many at once as are allowed, ten times
    assert [run["prompts"] for run in result["at_once"]] == [60, 90]
    assert all(run["cpu_ms_a_request"] > 0 and run["peak_mib"] > 1 for run in [timed, *result["at_once"]])
    assert "at 100 requests a second: " in capsys.readouterr().out
