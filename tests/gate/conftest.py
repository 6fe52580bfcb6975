# SPDX-License-Identifier: Apache-2.0
"""The tiny run of these tests, which is made once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gate import values


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What iterations 0 to 2 of the tiny run came to."""
    return values.tiny_run(tmp_path_factory.mktemp("tiny_run"))
