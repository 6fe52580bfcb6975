# SPDX-License-Identifier: Apache-2.0
"""How the answers of the probe become one report."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from llamafactory_tpaw.doctor import probe, report
from llamafactory_tpaw.doctor.examine import Answer
from llamafactory_tpaw.doctor.packages import Package


PACKAGES = (
    ("llamafactory", "0.9.5", ">=0.9.5,<0.9.6", "needed", None),
    ("torch", "2.9", "", "needed", "torch"),
    ("torchaudio", "2.9", "", "needed", "torchaudio"),
    ("trl", None, "", "needed", "trl"),
    ("peft", None, "", "needed", "peft"),
    ("gradio", "5", "", "board", "gradio"),
    ("vllm", None, "", "optional", "vllm"),
    ("ray", "2", "", "optional", "ray"),
)
SEAMS = {"version": "0.9.7", "folder": "/x", "reason": None, "seams": []}


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, Any], list[str]]]:
    """Return a function that makes a report of given answers; all others are that all is well."""
    monkeypatch.setattr(report, "installed_packages", lambda: [Package(*fields) for fields in PACKAGES])

    def run(**answers: Answer) -> tuple[dict[str, Any], list[str]]:
        hook = {"active": True, "switched_off": False, "by_pythonpath": False}
        default = {probe.HOOK: Answer(hook), probe.SEAMS: Answer(dict(SEAMS, version="0.9.5"))}
        asked: list[str] = []

        def examine(steps: list[str], show: object) -> dict[str, Answer]:
            asked.extend(steps)
            return {step: answers.get(step.split()[-1], default.get(step, Answer())) for step in steps}

        monkeypatch.setattr(report, "examine", examine)
        monkeypatch.setattr(report, "vllm_program", lambda command: {"program": None, "error": command})
        return report.make_report(lambda _: None), asked

    return run


def test_what_is_asked_in_which_order(make: Callable) -> None:
    """What is needed is tried even where pip does not know it; what is optional only where it is installed."""
    made, asked = make()
    assert asked == [
        "hook",
        "import torch",
        "devices",
        "import torchaudio",
        "import trl",
        "import peft",
        "seams",
        "dependencies",
        "import gradio",
        "import ray",
    ]
    assert made["ok"] is True
    assert {package["name"]: package["version"] for package in made["packages"]}["trl"] == "unknown"
    assert json.loads(json.dumps(made)) == made


def test_errors_of_imports(make: Callable) -> None:
    made, _ = make(torchaudio=Answer(error="OSError: no"), trl=Answer(error="no trl"), ray=Answer(error="no ray"))
    assert made["ok"] is False
    assert [finding["text"] for finding in made["findings"] if finding["level"] == "problem"] == [
        "`torchaudio` 2.9 cannot be imported: OSError: no.",
        "`trl` is not installed.",
    ]
    assert any("no ray" in finding["text"] for finding in made["findings"])


def test_the_imported_llamafactory_counts(make: Callable) -> None:
    made, _ = make(seams=Answer(SEAMS))
    assert made["ok"] is True
    assert made["packages"][0]["version"] == made["llamafactory"]["version"] == "0.9.7"
    assert "0.9.7 is installed, but >=0.9.5,<0.9.6 was tested" in made["findings"][0]["text"]


def test_a_probe_that_cannot_start(make: Callable) -> None:
    made, _ = make(hook=Answer(error="it died"), seams=Answer(error="it died"), devices=Answer(error="it died"))
    assert made["ok"] is False
    assert {"The hook cannot be looked at: it died.", "LlamaFactory cannot be imported: it died."} <= {
        finding["text"] for finding in made["findings"]
    }
    assert made["torch"] is None
