# SPDX-License-Identifier: Apache-2.0
"""How `doctor` shows its report."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from llamafactory_tpaw import cli
from llamafactory_tpaw.doctor import report as doctor_report


GIB = 1024**3
PACKAGE = {"name": "torch", "version": "2.9", "allowed": "<2.15", "use": "needed", "module": "torch", "extra": None}
PACKAGE |= {"within": True, "conflicts": [], "error": None}
SEAM = {"name": "launch", "target": "a.launch", "purpose": "starts", "required": True, "state": "missing"}
REPORT: dict[str, Any] = {
    "ok": False,
    "version": "0.1.0",
    "findings": [{"level": "problem", "text": "it is broken.", "fix": "pip install it"}],
    "packages": [
        PACKAGE,
        PACKAGE | {"name": "trl", "error": "no"},
        PACKAGE | {"name": "peft", "within": False},
        PACKAGE | {"name": "vllm", "use": "optional", "version": None, "extra": "vllm"},
        PACKAGE | {"name": "ray", "use": "optional", "conflicts": ["x"], "allowed": ""},
    ],
    "hook": {"active": True, "switched_off": False, "by_pythonpath": True, "files": ["~/x.pth"], "error": None},
    "llamafactory": {"version": "0.9.5", "seams": [SEAM], "error": None, "reason": None, "refusal": None},
    "torch": {
        "cuda": "12.8",
        "rocm": None,
        "accelerator": "cuda",
        "error": None,
        "devices": [{"name": "H200", "total": 140 * GIB, "free": 70 * GIB, "capability": "9.0"}],
    },
    "vllm": {"command": None, "program": "~/bin/vllm", "version": "0.28.0", "error": None},
    "machine": {
        "python": "3.11.7",
        "system": "Linux",
        "interpreter": "~/python",
        "cpus": 4,
        "usable_cpus": 2,
        "memory": {"total": 8 * GIB, "available": 4 * GIB},
        "shared_memory": {"total": 2 * GIB, "free": GIB},
        "disk": {"total": 100 * GIB, "free": 50 * GIB},
        "folder": "~/run",
        "folder_writable": True,
        "nvidia": {"driver": "570.1", "devices": ["H200"]},
        "variables": {"USE_V1": "1"},
    },
}
TEXT = """\
llamafactory-tpaw 0.1.0, Python 3.11.7, Linux
interpreter: ~/python

Packages
  torch           2.9             imported                          <2.15
  trl             2.9             broken                            <2.15
  peft            2.9             version not tested                <2.15

Optional packages
  vllm            -               not installed; extra `vllm`       <2.15
  ray             2.9             conflicts

Hook
  registered at the interpreter's start, by PYTHONPATH
  ~/x.pth

Seams in LlamaFactory 0.9.5
  launch        missing  a.launch: starts

Devices
  NVIDIA driver 570.1: 1 x H200
  torch is built for CUDA 12.8
  0: H200, 140.0 GiB, 70.0 GiB free, capability 9.0

vLLM
  ~/bin/vllm: 0.28.0, found by its name

Machine
  processors: 4, of which 2 may be used
  memory: 8.0 GiB, 4.0 GiB available
  shared memory: 2.0 GiB, 1.0 GiB free
  working folder: ~/run, 50.0 GiB free of 100.0 GiB
  variables: USE_V1=1

Findings
  problem: it is broken.
    mend: pip install it
"""


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The report that the command will show; tests change it."""
    made = json.loads(json.dumps(REPORT))

    def make_report(show: Any, vllm_command: str | None) -> dict[str, Any]:
        show("import torch")
        made["vllm"]["command"] = vllm_command
        return made

    monkeypatch.setattr(doctor_report, "make_report", make_report)
    return made


def test_text_to_paste(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 5
    assert capsys.readouterr() == (TEXT, "")


def test_json(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    report["ok"] = True
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report


@pytest.mark.parametrize(
    ("vllm", "line"),
    [
        ({"version": None}, "~/bin/vllm: broken, named by the command line"),
        ({"program": None, "version": None}, "venv/bin/vllm: not there"),
    ],
)
def test_another_vllm(
    report: dict[str, Any], vllm: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report["vllm"] |= vllm
    cli.main(["doctor", "--vllm", "venv/bin/vllm"])
    assert f"  {line}\n" in capsys.readouterr().out


def test_little_is_known(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """No LlamaFactory, no torch, no hook, no /proc: the report says so and ends well."""
    report["findings"] = [{"level": "warning", "text": "look out.", "fix": "do it"}]
    report["hook"] |= {"active": False, "files": []}
    report["llamafactory"] |= {"version": None, "seams": [], "error": "No module named 'llamafactory'"}
    report["torch"] = None
    report["vllm"] |= {"program": None, "version": None}
    report["machine"] |= {"memory": None, "shared_memory": None, "nvidia": None, "variables": {}}
    cli.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    for line in [
        "  not registered at the interpreter's start",
        "Seams in LlamaFactory",
        "  not looked at: No module named 'llamafactory'",
        "  torch cannot be asked",
        "  not installed; `tpaw_vllm_command` may name one in another environment",
        "  warning: look out.",
        "  All that stage `tpaw` needs is there.",
    ]:
        assert line in lines


@pytest.mark.parametrize(
    ("torch", "line"),
    [
        ({"cuda": None, "devices": [], "accelerator": None}, "torch sees no device but the CPU"),
        ({"cuda": None, "devices": [], "accelerator": "mps"}, "torch uses mps"),
        ({"cuda": None, "rocm": "6.2"}, "torch is built for ROCm 6.2"),
        ({"cuda": None}, "torch is built for the CPU alone"),
    ],
)
def test_other_devices(
    torch: dict[str, Any], line: str, report: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    report["torch"] |= torch
    cli.main(["doctor"])
    assert f"  {line}\n" in capsys.readouterr().out


def test_a_terminal_sees_colours_and_what_is_waited_for(
    report: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    report["hook"] |= {"switched_off": True}
    cli.main(["doctor"])
    out, err = capsys.readouterr()
    assert "\x1b[31mproblem\x1b[0m: it is broken." in out
    assert "switched off by LLAMAFACTORY_TPAW=0" in out
    assert err == "\r\x1b[Klooking at torch ...\r\x1b[K"
    monkeypatch.setenv("NO_COLOR", "1")
    cli.main(["doctor"])
    assert "\x1b" not in capsys.readouterr().out
