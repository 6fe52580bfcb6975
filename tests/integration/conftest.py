# SPDX-License-Identifier: Apache-2.0
"""Training inside the test's process: the same code as the command without its cold start."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.adapters import settings_of
from tests.runs import Project, Result


@pytest.fixture
def train_here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Return a function that trains with LlamaFactory's `run_exp`, and returns what was logged step by step."""
    import transformers
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from llamafactory.train.tuner import run_exp

    def train(project: Project, settings: dict[str, Any], history: bool = True) -> list[dict[str, Any]]:
        monkeypatch.chdir(project.root)
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        run_exp(dict(settings))
        transformers.utils.logging.set_verbosity_warning()
        logging.getLogger("llamafactory").setLevel(logging.INFO)
        return project.history(Path(settings["output_dir"]).name) if history else []

    return train


@pytest.fixture(scope="session")
def played_lora(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Project, list[Result]]:
    """A run with LoRA of iterations 0, 1, 2: a new adapter, the same one continued, another one upon it."""
    project = Project(tmp_path_factory.mktemp("played_lora"), tiny_model)
    model, first, second = str(tiny_model), "saves/play_iter0", "saves/play_iter1"
    given = [
        settings_of(project, 0, players=[]),
        settings_of(project, 1, first, players=[model]),
        settings_of(project, 2, second, players=[model, f"{model}+{first}"], create_new_adapter=True),
    ]
    results = [project.train(settings, name=f"iter{index}.yaml") for index, settings in enumerate(given)]
    for result in results:
        assert result.code == 0, result.output
    return project, results
