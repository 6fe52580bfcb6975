# SPDX-License-Identifier: Apache-2.0
"""`doctor` says what is wrong with hook, seams and versions, and the command that mends it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw import _hook, cli, doctor
from llamafactory_tpaw.lf.status import SUPPORTED, SeamStatus


@pytest.fixture(autouse=True)
def seams(monkeypatch: pytest.MonkeyPatch) -> list[SeamStatus]:
    """Two seams that hold; tests change them. LlamaFactory itself is neither imported nor started."""
    statuses = [
        SeamStatus("board_settings", "a.save_config", "keeps settings", False, state="applied"),
        SeamStatus("launch", "a.launch", "starts", True, state="applied"),
    ]
    monkeypatch.setattr(doctor, "seam_status", lambda: statuses)
    monkeypatch.setattr(doctor, "importlib", SimpleNamespace(import_module=lambda name: None))
    monkeypatch.setattr(doctor.start, "install", lambda: None)
    monkeypatch.setattr(doctor._hook, "active_finder", object)
    monkeypatch.setattr(doctor._hook, "inactive_reason", lambda: None)
    monkeypatch.setattr(doctor, "LLAMAFACTORY_ENV", [sys.executable, "-c", "print('- Python version: 3')"])
    monkeypatch.delenv(_hook.SWITCH, raising=False)
    return statuses


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["doctor", *arguments])
    return code, capsys.readouterr().out


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    code, output = run(capsys)
    lines = output.splitlines()
    assert (code, lines[-1]) == (0, "All that stage `tpaw` needs is there.")
    assert "hook: registered at the interpreter's start" in output
    assert "  board_settings  applied  a.save_config: keeps settings" in lines
    assert "  - Python version: 3" in lines
    assert f"torch {metadata.version('torch')}" in output


@pytest.mark.parametrize(("required", "code"), [(True, 5), (False, 0)])
def test_a_missing_seam(
    seams: list[SeamStatus], required: bool, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seams[1].required = required
    seams[1].miss("there is no function `launch`")
    ended, output = run(capsys)
    assert ended == code
    assert f'is missing: there is no function `launch`.\n  mend: pip install "llamafactory{SUPPORTED}"' in output


def test_an_inactive_hook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor._hook, "active_finder", lambda: None)
    code, output = run(capsys)
    assert code == 0, "llamafactory-tpaw train works without it"
    assert "hook: not registered" in output
    assert "warning: `llamafactory-cli train` does not know stage `tpaw`" in output
    assert "mend: pip install --editable " in output


def test_what_is_switched_off_and_what_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(_hook.SWITCH, "0")
    monkeypatch.setattr(doctor, "LLAMAFACTORY_ENV", [sys.executable, "-c", "raise ImportError('no torch')"])
    code, output = run(capsys)
    assert code == 5
    assert f"  mend: unset {_hook.SWITCH}\n" in output
    assert "`llamafactory-cli env` ends with exit code 1: ImportError: no torch" in output


def test_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["rich>=999", 'vllm; extra == "vllm"', "no-such-package>1", f"llamafactory{SUPPORTED}"]
    monkeypatch.setattr(metadata, "requires", {"llamafactory-tpaw": named}.get)
    known = metadata.version  # LlamaFactory's package also comes as `llamafactory-kt`
    monkeypatch.setattr(metadata, "version", lambda name: known(name.replace("llamafactory", "no-such-package")))
    monkeypatch.setattr("llamafactory.extras.env.VERSION", "0.9.6.dev0")
    code, output = run(capsys)
    assert code == 5
    assert f"`rich` {metadata.version('rich')} is installed, but >=999 is required.\n  mend: pip install" in output
    assert '`no-such-package` is not installed.\n  mend: pip install "no-such-package>1"' in output
    assert "`vllm` is not installed" not in output
    assert "llamafactory 0.9.6.dev0, " in output
    assert "`llamafactory`" not in output


def test_vllm_as_json_and_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    code, output = run(capsys, "--json", "--vllm", str(program))
    report: dict[str, Any] = json.loads(output)
    assert (code, report["ok"], report["vllm"]) == (0, True, str(program))
    code, output = run(capsys, "--vllm", "not/there")
    assert "vLLM: not found" in output
    assert "warning: `tpaw_engine: vllm` needs the program `not/there`" in output


def test_a_broken_package_is_a_missing_seam(seams: list[SeamStatus], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError("libcuda.so is not there")

    seams[1].state = "waiting"
    monkeypatch.setattr(doctor, "importlib", SimpleNamespace(import_module=fail))
    assert doctor._seams()[1]["reason"] == "`a` cannot be imported: OSError: libcuda.so is not there"


def test_it_imports_nothing_heavy_before_it_looks() -> None:
    code = "import sys; from llamafactory_tpaw import doctor; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
