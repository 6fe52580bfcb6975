# SPDX-License-Identifier: Apache-2.0
"""The tiny model, loaded once."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
from transformers import AutoModelForCausalLM


if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel


@pytest.fixture(scope="session")
def loaded(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


@pytest.fixture
def model(loaded: PreTrainedModel) -> PreTrainedModel:
    """A copy that a test may change."""
    return copy.deepcopy(loaded)
