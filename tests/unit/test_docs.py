# SPDX-License-Identifier: Apache-2.0
"""The documents agree with the code: generated tables are fresh, and what they name exists."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llamafactory_tpaw.arguments.fields import FIELDS
from llamafactory_tpaw.cli import build_parsers
from llamafactory_tpaw.errors import EXIT_CODES, TERMINATED
from tools import commands, configuration


ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_configuration_page_is_fresh() -> None:
    page = configuration.configuration_page()
    assert read(ROOT / "docs" / "configuration.md") == page, "stale: make docs"
    assert sorted(key for group in configuration.GROUPS for key in group.keys) == sorted(FIELDS)
    assert "| `tpaw_eta` | number | `6.0` | >= 1 | `tpaw` |" in page


def test_commands_page_is_fresh() -> None:
    page = commands.commands_page()
    assert read(ROOT / "docs" / "commands.md") == page, "stale: make docs"
    assert all(f"| {code} | {meaning} |" in page for code, meaning in EXIT_CODES.items())


@pytest.mark.parametrize("name", re.findall(r"`(llamafactory_tpaw(?:\.\w+)+)`", read(ROOT / "docs" / "algorithm.md")))
def test_functions_of_the_algorithm_exist(name: str) -> None:
    module, _, function = name.rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))


NAMED_TESTS = {name for page in PAGES for name in re.findall(r"`(tests/[\w/]+\.py::\w+)`", read(page))}


@pytest.mark.parametrize("name", sorted(NAMED_TESTS))
def test_tests_that_a_page_names_exist(name: str) -> None:
    path, _, function = name.partition("::")
    tree = ast.parse(read(ROOT / path))
    assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_example_of_an_objective_applies(tmp_path: Path) -> None:
    """The patch in docs/architecture.md fits the code, and its own test passes."""
    (patch,) = re.findall(r"```diff\n(.*?)```", read(ROOT / "docs" / "architecture.md"), re.DOTALL)
    for folder in ("llamafactory_tpaw", "tests/unit/objectives"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "apply", "-"], input=patch, text=True, cwd=tmp_path, check=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/objectives/test_hinge.py"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_files_and_keys_exist(page: Path) -> None:
    text = read(page)
    assert [target for target in LINK.findall(text) if not (page.parent / target).exists()] == []
    named = set(re.findall(r"`([\w/]+/\w+\.py)\b", text))
    folders = (ROOT, ROOT / "llamafactory_tpaw", page.parent)
    known = {name for name in named if any((folder / name).is_file() for folder in folders)}
    assert named - known - {"src/train.py"} == set()  # LlamaFactory's
    names = set(re.findall(r"\byaml/[\w/]+\.(?:yaml|json)\b", text))
    assert {name for name in names if not (ROOT / name).is_file() and "mine" not in name} == set()
    assert set(re.findall(r"`(tpaw_[a-z_]+)[`:=]", text)) - set(FIELDS) - {"tpaw_loss"} == set()


INIT_COMMANDS = [
    line for page in PAGES for line in re.findall(r"^ +llamafactory-tpaw (init [^\[\n]*)$", read(page), re.MULTILINE)
]


@pytest.mark.parametrize("line", INIT_COMMANDS)
def test_init_is_shown_as_it_takes_its_arguments(line: str) -> None:
    _, parsers = build_parsers()
    given = parsers["init"].parse_intermixed_args(shlex.split(line)[1:])
    assert given.name
    assert all("=" in word for word in given.overrides)


def test_the_examples_of_the_clusters_page(tmp_path: Path) -> None:
    """The Slurm script is bash, the Kubernetes manifest YAML, and both know the exit codes."""
    page = read(ROOT / "docs" / "clusters.md")
    (script,), (text,) = (re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) for language in ("bash", "yaml"))
    (tmp_path / "job.sh").write_text(script)
    subprocess.run(["bash", "-n", "job.sh"], cwd=tmp_path, check=True)
    assert f'"$code" -eq {TERMINATED}' in script
    _, job = yaml.safe_load_all(text)
    (codes,) = (rule["onExitCodes"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule)
    assert set(codes["values"]) <= EXIT_CODES.keys() - {TERMINATED}
