# SPDX-License-Identifier: Apache-2.0
"""`docs/commands.md` is what the commands say of themselves."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from llamafactory_tpaw import cli
from llamafactory_tpaw.cli import reference
from llamafactory_tpaw.errors import EXIT_CODES


ROOT = Path(__file__).resolve().parents[3]


def test_commands_page_is_fresh() -> None:
    page = (ROOT / reference.PAGE).read_text(encoding="utf-8")
    assert page == reference.commands_page(), "stale: make docs"


def test_readme_table_is_fresh() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert reference.with_table(readme) == readme, "stale: make docs"


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="Put them back"):
        reference.with_table("# no table\n")


@pytest.mark.parametrize("width", ["40", "200"])
def test_page_does_not_depend_on_the_terminal(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    expected = reference.commands_page()
    monkeypatch.setenv("COLUMNS", width)
    assert reference.commands_page() == expected


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_argument_of_a_command_is_explained(name: str) -> None:
    _, parsers = cli.build_parsers()
    section = reference.commands_page().partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert f"    llamafactory-tpaw {name} " in section
    for action in parsers[name]._actions:
        assert action.help
        flag = (action.option_strings or [action.metavar])[-1]
        assert isinstance(action, argparse._HelpAction) or flag in section


def test_every_exit_code_is_explained() -> None:
    page = reference.commands_page()
    assert all(f"| {code} | {meaning} |" in page for code, meaning in EXIT_CODES.items())


def test_check_names_the_stale_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{reference.TABLE_BEGIN}\nold\n{reference.TABLE_END}\nb\n")
    assert reference.main(["--check"]) == 1
    assert capsys.readouterr().out == "stale: docs/commands.md\nstale: README.md\n"
    assert "old" in readme.read_text()
    assert reference.main(["--write"]) == 0
    assert reference.main(["--check"]) == 0
    assert (tmp_path / "docs" / "commands.md").read_text(encoding="utf-8") == reference.commands_page()
    assert readme.read_text().startswith(f"a\n{reference.TABLE_BEGIN}\n| command |")
