# SPDX-License-Identifier: Apache-2.0
"""A run to spoil, and `llamafactory-cli train` inside the test's process up to the first model."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.data.files import read_json, write_json_atomic
from llamafactory_tpaw.errors import TpawError
from tests.runs import Project, Result

from .rows import Refusal


@pytest.fixture
def project(played: tuple[Project, list[Result]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of a run of iterations 0 to 2, to be spoiled. Its own θ_0 is at `saves/sft`."""
    done, _ = played
    shutil.copytree(done.root, tmp_path / "run")
    shutil.copytree(done.model, tmp_path / "run" / "saves" / "sft")
    for meta in (tmp_path / "run" / "data" / "tpaw").glob("*.meta.json"):
        content = json.dumps(read_json(meta)).replace(str(done.model), "saves/sft")
        write_json_atomic(meta, json.loads(content), seal=True)
    monkeypatch.chdir(tmp_path / "run")
    return Project(tmp_path / "run", Path("saves/sft"))


@pytest.fixture
def train_command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Refusal]:
    """Return a function that does what `llamafactory-cli train` does, and returns the exit code and the errors.

    The child that generates runs in this process, too.
    """
    from llamafactory import launcher as command

    from llamafactory_tpaw.hook import dispatch
    from llamafactory_tpaw.runs import launcher

    reported: list[str] = []
    report = dispatch.report

    def remember(error: TpawError) -> int:
        reported[:] = error.problems
        return report(error)

    def train(*arguments: str) -> Refusal:
        reported.clear()
        monkeypatch.setattr(sys, "argv", ["llamafactory-cli", "train", *arguments])
        try:
            command.launch()
        except SystemExit as end:
            return Refusal(end.code, list(reported))
        return Refusal(0, [])

    monkeypatch.setattr(dispatch, "report", remember)
    monkeypatch.setattr(launcher, "run_child", lambda command: launcher.generate(command[-1:]))
    return train


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test where a model is loaded."""
    from llamafactory_tpaw.lf import facade

    def load_model(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(facade, "load_model", load_model, raising=False)
