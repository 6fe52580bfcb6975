# SPDX-License-Identifier: Apache-2.0
"""The tiny run of these tests, which is made once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gate import values


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """Commands in this process settle for all that comes after what is logged."""
    import datasets
    import transformers

    level = logging.getLogger("llamafactory").level
    yield
    logging.getLogger("llamafactory").setLevel(level)
    transformers.utils.logging.set_verbosity_warning()
    datasets.enable_progress_bars()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What iterations 0 to 2 of the tiny run came to."""
    return values.tiny_run(tmp_path_factory.mktemp("tiny_run"))
