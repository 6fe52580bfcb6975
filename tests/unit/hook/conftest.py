# SPDX-License-Identifier: Apache-2.0
"""LlamaFactory with its seams extended, and a stand-in for what the dispatch calls."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.hook import start


start.install()


class Calls(SimpleNamespace):
    """What the dispatch handed to the stand-ins, by function name."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Replace `runs.launcher` and `train.workflow` by modules that write down how they are called."""
    seen = Calls(prepared=[], before_training=[], run_tpaw=[])

    @contextlib.contextmanager
    def prepared(given: dict[str, Any], run_file: str) -> Iterator[str]:
        seen.prepared.append((given, run_file))
        yield "plan.yaml"

    launcher = ModuleType("llamafactory_tpaw.runs.launcher")
    launcher.prepared = prepared
    launcher.hold_output = lambda given, handed: contextlib.nullcontext()
    launcher.generate = launcher.score = lambda argv: 0
    launcher.before_training = lambda given, handed: seen.before_training.append((given, handed)) or given
    workflow = ModuleType("llamafactory_tpaw.train.workflow")
    workflow.run_tpaw = lambda *args: seen.run_tpaw.append(args)
    for module in (launcher, workflow):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen
