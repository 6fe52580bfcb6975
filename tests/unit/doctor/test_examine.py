# SPDX-License-Identifier: Apache-2.0
"""Steps that fail, kill their process or hang: each is answered for, and none hides the next."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from llamafactory_tpaw.doctor import probe
from llamafactory_tpaw.doctor.examine import Answer, examine


def test_every_step_has_an_answer(fake: Callable[..., Path]) -> None:
    fake(
        whole="print('a line on stdout')",
        killer="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        leaver="import os; os._exit(0)",
        quitter="import sys; sys.exit('no licence')",
        broken="raise OSError('a first line\\nlibcudart.so.13: cannot open shared object file')",
        caused="""
try:
    import no_such_library
except ImportError as error:
    raise RuntimeError('half broken') from error
""",
    )
    shown: list[str] = []
    names = ["killer", "whole", "leaver", "quitter", "broken", "caused", "nowhere"]
    answers = examine([f"import {name}" for name in names], shown.append)
    errors = {step.removeprefix("import "): answer.error for step, answer in answers.items()}
    assert errors == {
        "whole": None,
        "killer": f"it killed the interpreter ({signal.SIGSEGV.name})",
        "leaver": "it ended the interpreter (exit code 0)",
        "quitter": "SystemExit: no licence",
        "broken": "libcudart.so.13: cannot open shared object file",
        "caused": "RuntimeError: half broken (caused by ModuleNotFoundError: No module named 'no_such_library')",
        "nowhere": "ModuleNotFoundError: No module named 'nowhere'",
    }
    assert shown == [f"import {name}" for name in names]


def test_a_step_that_hangs_is_ended(fake: Callable[..., Path]) -> None:
    fake(endless="import time; time.sleep(600)")
    answers = examine(["import endless"], lambda _: None, limit_s=3.0)
    assert answers == {"import endless": Answer(error="it did not end within 3 s")}


def test_nothing_is_imported_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    answers = examine(["import mine"], lambda _: None)
    assert answers["import mine"].error == "ModuleNotFoundError: No module named 'mine'"


@pytest.mark.parametrize(("switch", "active"), [(None, True), ("0", False)])
def test_the_hook_is_seen_as_the_interpreter_started(
    switch: str | None, active: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LLAMAFACTORY_TPAW", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    if switch is not None:
        monkeypatch.setenv("LLAMAFACTORY_TPAW", switch)
    found = examine([probe.HOOK], lambda _: None)[probe.HOOK].found
    assert found == {"active": active, "switched_off": not active, "by_pythonpath": False}


LAUNCHER = "import subprocess, sys\ndef run_exp(): pass\ndef launch(): return sys.argv, run_exp, subprocess\n"


def test_seams_of_a_llamafactory_that_is_half_broken(fake: Callable[..., Path]) -> None:
    """The module that cannot be imported, the one that is gone, and those that are as they should be."""
    fake(
        **{
            "llamafactory": "",
            "llamafactory.extras": "",
            "llamafactory.extras.env": "VERSION = '0.8'",
            "llamafactory.extras.constants": "TRAINING_STAGES = {'SFT': 'sft'}; STAGES_USE_PAIR_DATA = {'dpo'}",
            "llamafactory.launcher": LAUNCHER,
            "llamafactory.train": "",
            "llamafactory.train.tuner": "import llamafactory.extras.env\nraise OSError('libtorchaudio.so: undefined')",
            "llamafactory.hparams": "",
        }
    )
    found = examine([probe.SEAMS], lambda _: None)[probe.SEAMS].found
    assert found["version"] == "0.8"
    assert found["reason"] is None
    assert {seam["name"]: (seam["state"], seam["reason"]) for seam in found["seams"]} == {
        "arguments": ("missing", "there is no module `llamafactory.hparams.finetuning_args`"),
        "dispatch": (
            "missing",
            "`llamafactory.train.tuner` cannot be imported: OSError: libtorchaudio.so: undefined",
        ),
        "launch": ("applied", None),
        "launch_v1": ("missing", "there is no module `llamafactory.v1.launcher`"),
        "stages": ("applied", None),
    } | {
        name: ("missing", f"there is no module `llamafactory.webui.{module}`")
        for name, module in {
            "board_words": "locales",
            "board_runner": "runner",
            "board_train": "components.train",
            "board_tabs": "components.footer",
            "board_top": "components.top",
            "board_data": "components.data",
            "board_settings": "common",
        }.items()
    }


TORCH = """
class version: cuda, hip = {cuda!r}, None
class cuda:
    is_available = staticmethod(lambda: {available})
    device_count = staticmethod(lambda: 2)
    def get_device_properties(index):
        class H200: name, total_memory, major, minor = "NVIDIA H200", 150 * 1024**3, 9, 0
        return H200
    def mem_get_info(index):
        if index: raise RuntimeError("busy")
        return 100 * 1024**3, 150 * 1024**3
    def init(): raise RuntimeError("The NVIDIA driver on your system is too old")
"""


def test_devices_of_torch(fake: Callable[..., Path]) -> None:
    fake(torch=TORCH.format(cuda="12.8", available=True))
    found = examine([probe.DEVICES], lambda _: None)[probe.DEVICES].found
    assert [(device["name"], device["free"], device["capability"]) for device in found["devices"]] == [
        ("NVIDIA H200", 100 * 1024**3, "9.0"),
        ("NVIDIA H200", None, "9.0"),
    ]
    assert found["error"] == "RuntimeError: busy"


@pytest.mark.parametrize(
    ("cuda", "error"), [("12.8", "RuntimeError: The NVIDIA driver on your system is too old"), (None, None)]
)
def test_why_torch_has_no_devices(fake: Callable[..., Path], cuda: str | None, error: str | None) -> None:
    fake(torch=TORCH.format(cuda=cuda, available=False))
    found = examine([probe.DEVICES], lambda _: None)[probe.DEVICES].found
    assert (found["cuda"], found["devices"], found["error"]) == (cuda, [], error)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("pass", None),
        (
            "raise ImportError('trl<=0.24.0 is required.\\nTo fix: run `pip install trl<=0.24.0`.')",
            "trl<=0.24.0 is required. To fix: run `pip install trl<=0.24.0`.",
        ),
    ],
)
def test_what_llamafactory_thinks_of_its_dependencies(fake: Callable[..., Path], body: str, found: str | None) -> None:
    fake(**{"llamafactory": "", "llamafactory.extras": ""})
    fake(**{"llamafactory.extras.misc": f"def check_dependencies(): {body}"})
    assert examine([probe.DEPENDENCIES], lambda _: None)[probe.DEPENDENCIES] == Answer(found)
