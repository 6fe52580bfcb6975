# SPDX-License-Identifier: Apache-2.0
"""Which vLLM there is, asked with a bound."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llamafactory_tpaw.doctor.engines import vllm_program


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that writes a shell script and returns its path."""

    def write(body: str) -> str:
        path = tmp_path / "vllm"
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    return write


def test_a_named_one_is_asked(program: Callable[[str], str]) -> None:
    path = program('echo "a warning" >&2; echo "0.28.0 $1"')
    assert vllm_program(path) == {
        "command": path,
        "program": path,
        "version": "0.28.0 --version",
        "error": None,
    }


def test_one_that_fails(program: Callable[[str], str]) -> None:
    assert vllm_program(program("echo ImportError: no; exit 3"))["error"] == "ImportError: no (exit code 3)"


def test_one_that_hangs(program: Callable[[str], str]) -> None:
    assert vllm_program(program("sleep 600 & wait"), 0.2)["error"] == "it did not end within 0.2 s"


def test_one_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "begins with /no/vllm, which is no program here" in vllm_program("/no/vllm")["error"]
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert vllm_program(None) == {"command": None, "program": None, "version": None, "error": None}
