# SPDX-License-Identifier: Apache-2.0
"""Every LlamaFactory name that the package reaches exists in the installed version."""

from __future__ import annotations

import pytest

from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.lf import facade, status


@pytest.mark.parametrize("name", sorted(facade.NAMES))
def test_name_exists(name: str) -> None:
    assert getattr(facade, name) is not None


@pytest.mark.parametrize("place", [("extras.misc", "no_such_name"), ("no_such_module", "name")])
def test_missing_name_is_told_with_the_versions(place: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(facade.NAMES, "moved", place)
    message = rf"{status.SUPPORTED}, but 0\.9\.\S+ is installed and lacks `llamafactory\.\S*no_such"
    with pytest.raises(ConfigError, match=message):
        _ = facade.moved
