# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of training at toy size, as they are started by hand: all contenders do the same work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.contenders import NAIVE, TRL_ONLINE
from benchmarks.ours import ALL


ROOT = Path(__file__).resolve().parents[2]
TOY = ("--size", "toy", "--threads", "1", "--response-tokens", "8", "--accumulation", "2")


@pytest.mark.integration
def test_all_do_the_same_work(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.training", "--check", *TOY]
    command += ["--only", NAIVE, TRL_ONLINE, "no saving", ALL]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All contenders do the same work." in done.stdout
