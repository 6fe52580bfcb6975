# SPDX-License-Identifier: Apache-2.0
"""A run to spoil, and the way of `llamafactory-cli train` up to the first model inside the test's process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.errors import ConfigError, TpawError
from tests.runs import Project, Result

from .spoiling import contents


Refuse = Callable[..., str]


@pytest.fixture
def project(played: tuple[Project, list[Result]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of a run of iterations 0 to 2, to be spoiled. Its own θ_0 is at `saves/sft`."""
    done, _ = played
    shutil.copytree(done.root, tmp_path / "run")
    shutil.copytree(done.model, tmp_path / "run" / "saves" / "sft")
    monkeypatch.chdir(tmp_path / "run")
    return Project(tmp_path / "run", Path("saves/sft"))


@pytest.fixture
def refuse(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that starts an iteration, which must fail, and returns the error's message."""
    from llamafactory_tpaw.arguments.parsed import parse_single_process
    from llamafactory_tpaw.iteration import launcher
    from llamafactory_tpaw.plugin import facade
    from llamafactory_tpaw.train.setup import load_setup

    def load_model(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    def start(settings: dict[str, Any]) -> None:
        launcher.prepare(settings)
        load_setup(parse_single_process(launcher.before_parse(settings)))

    def refused(settings: dict[str, Any], kind: type[TpawError] = ConfigError) -> str:
        before = contents(project.root)
        with pytest.raises(kind) as caught:
            start(settings)
        assert contents(project.root) == before, "something was written"
        return str(caught.value)

    monkeypatch.setattr(facade, "load_model", load_model, raising=False)
    monkeypatch.setattr(launcher, "_generate_in_child", launcher.generate)
    return refused
