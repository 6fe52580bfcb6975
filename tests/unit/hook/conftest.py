# SPDX-License-Identifier: Apache-2.0
"""LlamaFactory with its seams extended, and what takes the place of the functions that the dispatch calls."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.hook import start


start.install()


def fake(**names: Any) -> ModuleType:
    """A module of LlamaFactory with these names."""
    module = ModuleType("llamafactory.fake")
    vars(module).update(names)
    return module


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace `runs.launcher` and `train.workflow` by modules that write down how they are called."""
    seen = SimpleNamespace(prepared=[], before_training=[], run_tpaw=[])

    @contextlib.contextmanager
    def prepared(given: dict[str, Any], run_file: str) -> Iterator[str]:
        seen.prepared.append((given, run_file))
        yield "plan.yaml"

    launcher = ModuleType("llamafactory_tpaw.runs.launcher")
    launcher.prepared = prepared
    launcher.hold_output = lambda given, handed: contextlib.nullcontext()
    launcher.before_training = lambda given, handed: seen.before_training.append((given, handed)) or given
    workflow = ModuleType("llamafactory_tpaw.train.workflow")
    workflow.run_tpaw = lambda *args: seen.run_tpaw.append(args)
    for module in (launcher, workflow):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen
