# SPDX-License-Identifier: Apache-2.0
"""What short forms share."""

from __future__ import annotations

import pytest

from .kill import Campaign


@pytest.fixture(scope="package")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """Two iterations that nothing disturbs."""
    return Campaign(tmp_path_factory.mktemp("campaign"), seed=0, iterations=2)
