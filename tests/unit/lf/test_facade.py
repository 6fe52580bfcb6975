# SPDX-License-Identifier: Apache-2.0
"""Every LlamaFactory name that the package reaches exists in the installed version."""

from __future__ import annotations

import pytest

from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.lf import facade


@pytest.mark.parametrize("name", sorted(facade.NAMES))
def test_name_exists(name: str) -> None:
    assert getattr(facade, name) is not None
    assert name in dir(facade)


def test_training_arguments_have_our_keys() -> None:
    names = {name for kind in facade.TRAIN_ARGS for name in kind.__dataclass_fields__}
    assert {"tpaw_eta", "model_name_or_path", "learning_rate", "dataset", "top_p"} <= names


@pytest.mark.parametrize("place", [("extras.misc", "no_such_name"), ("no_such_module", "name")])
def test_missing_name_is_told_with_the_versions(place: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(facade.NAMES, "moved", place)
    with pytest.raises(
        ConfigError, match=r">=0\.9\.5,<0\.9\.6, but \S+ is installed and lacks `llamafactory\.\S*no_such"
    ) as caught:
        _ = facade.moved
    assert facade.VERSION in str(caught.value)


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = facade.no_such_thing
