# SPDX-License-Identifier: Apache-2.0
"""What is judged a problem or a warning, in which words, and the command that mends it."""

from __future__ import annotations

from typing import Any

import pytest

from llamafactory_tpaw.doctor import findings
from llamafactory_tpaw.doctor.packages import Package


GIB = findings.GIB
NEEDED_TORCH = 'pip install --force-reinstall "torch<2.15" torchvision torchaudio'
LLAMAFACTORY = 'pip install "llamafactory>=0.9.5,<0.9.6"'


@pytest.fixture(autouse=True)
def _installed_from_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamafactory_tpaw.doctor.packages._own_source", lambda: "--editable ~/tpaw")


def healthy(**changes: Any) -> dict[str, Any]:
    """Facts of a machine where all is well, but for the changes given as `part__key=value`."""
    facts: dict[str, Any] = {
        "hook": {"active": True, "switched_off": False, "by_pythonpath": False, "files": ["x.pth"], "error": None},
        "llamafactory": {"version": "0.9.5", "reason": None, "seams": [], "error": None, "refusal": None},
        "torch": {"cuda": "12.8", "rocm": None, "devices": [{"name": "H200"}], "error": None, "accelerator": "cuda"},
        "vllm": {"command": None, "program": None, "version": None, "error": None},
        "machine": {
            "folder": "~/run",
            "folder_writable": True,
            "disk": {"total": 100 * GIB, "free": 50 * GIB},
            "shared_memory": {"total": 16 * GIB, "free": 16 * GIB},
            "nvidia": {"driver": "550.1", "devices": ["H200", "H200"]},
            "variables": {},
        },
    }
    for place, value in changes.items():
        part, _, key = place.partition("__")
        facts[part][key] = value
    return facts


def seam(**changes: Any) -> dict[str, Any]:
    moved = {"name": "dispatch", "target": "a.b", "purpose": "starts it", "required": True, "state": "missing"}
    return moved | {"reason": "there is no module `a`"} | changes


def package(name: str, version: str | None = "1.0", allowed: str = "", use: str = "needed", **more: Any) -> Package:
    return Package(name, version, allowed, use, **more)


def test_a_vllm_that_does_not_start() -> None:
    (finding,) = findings.find_all([], healthy(vllm__command="a/vllm", vllm__error="no CUDA (exit code 1)"))
    assert (finding.level, finding.text) == (
        "warning",
        "`a/vllm` does not start as vLLM: no CUDA (exit code 1). Only runs with `tpaw_engine: vllm` are concerned.",
    )


def test_all_is_well() -> None:
    assert findings.find_all([package("torch"), package("vllm", None, use="optional")], healthy()) == []


@pytest.mark.parametrize(
    ("given", "level", "text", "fix"),
    [
        (package("trl", None, "<=0.24.0"), "problem", "`trl` is not installed.", 'pip install "trl<=0.24.0"'),
        (
            package("gradio", None, use="board"),
            "warning",
            "`gradio` is not installed. LlamaBoard needs it.",
            'pip install "gradio"',
        ),
        (
            package("shtab", None, use="commands"),
            "warning",
            "`shtab` is not installed. Some commands of llamafactory-tpaw need it.",
            'pip install "shtab"',
        ),
        (
            package("torchaudio", error="OSError: libcudart.so.13"),
            "problem",
            "`torchaudio` 1.0 cannot be imported: OSError: libcudart.so.13.",
            NEEDED_TORCH,
        ),
        (
            package("vllm", use="optional", extra="vllm", error="ImportError: no"),
            "warning",
            "`vllm` 1.0 cannot be imported: ImportError: no. Only runs that ask for it are concerned.",
            "pip install --force-reinstall --editable ~/tpaw'[vllm]'",
        ),
        (
            package("torch", "2.15.0", "<2.15", within=False),
            "warning",
            "`torch` 2.15.0 is installed, but <2.15 was tested.",
            'pip install "torch<2.15"',
        ),
        (
            package("vllm", use="optional", extra="vllm", conflicts=["torch==2.8.0, but 2.9 is installed"]),
            "warning",
            "`vllm` 1.0 requires torch==2.8.0, but 2.9 is installed.",
            "pip install --editable ~/tpaw'[vllm]'",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Package) else "",
)
def test_packages(given: Package, level: str, text: str, fix: str) -> None:
    assert findings.find_all([given], healthy()) == [(level, text, fix)]


NO_HOOK = "`llamafactory-cli train` does not know stage `tpaw`, because {} in the interpreter's site-packages; "
AGAIN = "pip install --force-reinstall --no-deps --editable ~/tpaw"


@pytest.mark.parametrize(
    ("changes", "level", "text", "fix"),
    [
        (
            {"hook__active": False, "hook__switched_off": True},
            "problem",
            "LLAMAFACTORY_TPAW=0 switches stage `tpaw` off.",
            "unset LLAMAFACTORY_TPAW",
        ),
        ({"hook__active": False}, "warning", NO_HOOK.format("x.pth is not processed"), AGAIN),
        (
            {"hook__active": False, "hook__files": []},
            "warning",
            NO_HOOK.format("there is no llamafactory_tpaw.pth"),
            AGAIN,
        ),
        ({"hook__error": "it died"}, "problem", "The hook cannot be looked at: it died.", AGAIN),
        ({"llamafactory__reason": "no hook."}, "problem", "no hook.", AGAIN),
        (
            {"llamafactory__seams": [seam()]},
            "problem",
            "Seam `dispatch`, `a.b` (starts it), is missing: there is no module `a`.",
            LLAMAFACTORY,
        ),
        (
            {"llamafactory__seams": [seam(required=False), seam(state="applied", reason=None)]},
            "warning",
            "Seam `dispatch`, `a.b` (starts it), is missing: there is no module `a`.",
            LLAMAFACTORY,
        ),
        (
            {"llamafactory__error": "ImportError: no"},
            "problem",
            "LlamaFactory cannot be imported: ImportError: no.",
            'pip install --force-reinstall "llamafactory>=0.9.5,<0.9.6"',
        ),
        (
            {"llamafactory__refusal": "trl<=0.24.0 is required. To fix: run `pip install trl<=0.24.0`."},
            "problem",
            "LlamaFactory refuses to start: trl<=0.24.0 is required. To fix: run `pip install trl<=0.24.0`.",
            'pip install "trl<=0.24.0"',
        ),
        (
            {"torch__devices": [], "torch__cuda": None},
            "warning",
            "The machine has 2 x H200, but the installed torch was built without CUDA.",
            NEEDED_TORCH,
        ),
        (
            {"torch__devices": [], "torch__error": "too old"},
            "warning",
            "The machine has 2 x H200, but torch, built for CUDA 12.8, cannot use it with driver 550.1: too old.",
            "nvidia-smi shows up to which CUDA",
        ),
        (
            {"machine__variables": {"USE_V1": "1", "USE_MCA": "0"}},
            "problem",
            "USE_V1 is set; stage `tpaw` refuses to run with it.",
            "unset USE_V1",
        ),
        (
            {"machine__folder_writable": False},
            "problem",
            "Nothing can be written in the working folder ~/run.",
            "chmod u+w ~/run",
        ),
        (
            {"machine__disk": {"total": GIB, "free": GIB // 2}},
            "warning",
            "Only 0.50 GiB are free where ~/run is; a checkpoint may not fit.",
            "du -sh saves/* data/tpaw | sort -h",
        ),
        (
            {"machine__shared_memory": {"total": GIB // 16, "free": 0}},
            "warning",
            "/dev/shm holds 0.06 GiB",
            "mount -o remount,size=16G /dev/shm",
        ),
    ],
)
def test_facts(changes: dict[str, Any], level: str, text: str, fix: str) -> None:
    (finding,) = findings.find_all([], healthy(**changes))
    assert finding.level == level
    assert finding.text.startswith(text)
    assert finding.fix.startswith(fix)


@pytest.mark.parametrize(
    "changes",
    [
        {"machine__nvidia": None, "torch__devices": []},
        {"machine__variables": {"CUDA_VISIBLE_DEVICES": ""}, "torch__devices": []},
        {"machine__shared_memory": None},
    ],
)
def test_what_is_no_finding(changes: dict[str, Any]) -> None:
    assert findings.find_all([], healthy(**changes)) == []


def test_a_missing_llamafactory_is_named_once() -> None:
    """What pip installs with it is not named as well."""
    facts = healthy(llamafactory__version=None, llamafactory__error="ModuleNotFoundError: No module")
    missing = [
        package("llamafactory", None, ">=0.9.5,<0.9.6"),
        package("trl", None),
        package("gradio", None, use="board"),
    ]
    (finding,) = findings.find_all(missing, facts)
    assert finding == ("problem", "`llamafactory` is not installed.", LLAMAFACTORY)


def test_a_broken_package_is_mended_rather_than_llamafactory() -> None:
    reason = "`llamafactory.train.tuner` cannot be imported: OSError: libcudart.so.13"
    broken = package("torchaudio", error="OSError: libcudart.so.13")
    found = findings.find_all([broken], healthy(llamafactory__seams=[seam(reason=reason)]))
    assert [finding.fix for finding in found] == [NEEDED_TORCH, NEEDED_TORCH]


def test_problems_come_first() -> None:
    facts = healthy(hook__active=False, machine__folder_writable=False)
    assert [finding.level for finding in findings.find_all([], facts)] == ["problem", "warning"]
