# SPDX-License-Identifier: Apache-2.0
"""Training inside the test's process: the same code as the command without its cold start."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runs import Project


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
