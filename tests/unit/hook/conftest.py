# SPDX-License-Identifier: Apache-2.0
"""LlamaFactory with its seams extended, and a stand-in for what the dispatch calls."""

from __future__ import annotations

import contextlib
import sys
from types import ModuleType, SimpleNamespace

import pytest

from llamafactory_tpaw.hook import start


start.install()


class Calls(SimpleNamespace):
    """What the dispatch handed to the stand-ins, by function name."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Replace `runs.launcher` and `train.workflow` by modules that write down how they are called."""
    seen = Calls(prepare=[], before_parse=[], run_tpaw=[])
    launcher = ModuleType("llamafactory_tpaw.runs.launcher")
    launcher.prepare = lambda argv: contextlib.nullcontext(seen.prepare.append(argv))
    launcher.hold_output = lambda given: contextlib.nullcontext()
    launcher.generate = launcher.score = lambda argv: 0
    launcher.before_parse = lambda args: seen.before_parse.append(args) or args
    workflow = ModuleType("llamafactory_tpaw.train.workflow")
    workflow.run_tpaw = lambda *args: seen.run_tpaw.append(args)
    for module in (launcher, workflow):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen
