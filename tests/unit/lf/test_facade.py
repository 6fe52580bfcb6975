# SPDX-License-Identifier: Apache-2.0
"""Which LlamaFactory is there, and that it has every name that the package reaches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.specifiers import SpecifierSet

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


def test_range() -> None:
    """As pip looks at what is installed: a version outside of it is replaced without a word."""
    range_ = SpecifierSet(status.SUPPORTED)
    admitted = [range_.contains(f"0.9.{last}", prereleases=True) for last in ("4", "5", "6.dev0", "6", "7.dev0")]
    assert admitted == [False, True, True, True, False]


def test_commit_of_a_checkout_and_of_what_pip_installed_from_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@x.x", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    source, site = tmp_path / "src" / "llamafactory", tmp_path / "venv" / "site-packages" / "llamafactory"
    for package in (source, site):
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("VERSION = 1\n")
    monkeypatch.setitem(sys.modules, "llamafactory", SimpleNamespace(__file__=str(source / "__init__.py")))
    assert status.installed_commit() is None
    git("init", "-q")
    git("add", "src")
    git("commit", "-qm", "one")
    assert status.installed_commit() == git("rev-parse", "HEAD")
    (source / "__init__.py").write_text("VERSION = 2\n")
    assert status.installed_commit() == git("rev-parse", "HEAD") + "-dirty"
    sys.modules["llamafactory"].__file__ = str(site / "__init__.py")
    info = site.with_name("llamafactory-0.9.6.dev0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llamafactory\nVersion: 0.9.6.dev0\n")
    assert status.installed_commit() is None
    (info / "direct_url.json").write_text(json.dumps({"vcs_info": {"commit_id": "a" * 40}}))
    assert status.installed_commit() == "a" * 40
