# SPDX-License-Identifier: Apache-2.0
"""The finder: watches, restores the loader, stays single, and explains why it is not there."""

from __future__ import annotations

import importlib
import sys

import pytest

from llamafactory_tpaw import _hook
from llamafactory_tpaw.hook import start


@pytest.fixture
def without_llamafactory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of an interpreter that has not imported LlamaFactory and has no hook."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "llamafactory"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not getattr(f, "llamafactory_tpaw", False)])
    monkeypatch.delenv(_hook.SWITCH, raising=False)


@pytest.mark.usefixtures("without_llamafactory")
def test_install_twice_registers_one_finder() -> None:
    start.install()
    start.install()
    importlib.reload(_hook)
    start.install()
    assert sum(getattr(finder, "llamafactory_tpaw", False) for finder in sys.meta_path) == 1
    assert _hook.inactive_reason() is None


@pytest.mark.usefixtures("without_llamafactory")
def test_it_says_why_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "llamafactory-tpaw train" in _hook.inactive_reason()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "llamafactory", sys)
        start.install()
        assert "imported before" in _hook.inactive_reason()
    monkeypatch.setenv("LLAMAFACTORY_TPAW", "0")
    start.install()
    assert _hook.active_finder() is None
    assert "LLAMAFACTORY_TPAW=0" in _hook.inactive_reason()


def test_a_broken_plugin_does_not_stop_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    finder = _hook.Finder(start._extend)
    monkeypatch.setitem(sys.modules, "llamafactory_tpaw.hook.seams", None)
    monkeypatch.delattr("llamafactory_tpaw.hook.seams", raising=False)
    package = type(sys)("llamafactory")
    finder.before(package)
    finder.after(package)
    assert "seams" in finder.failure
    monkeypatch.setattr(sys, "meta_path", [finder])
    assert "Install it again" in _hook.inactive_reason()
