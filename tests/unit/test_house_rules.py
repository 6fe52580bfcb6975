# SPDX-License-Identifier: Apache-2.0
"""What holds for every file: licence line, sizes, the direction of imports, no print, no key that nothing reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from llamafactory_tpaw.arguments.fields import FIELDS


ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "llamafactory_tpaw"
FOLDERS = (PACKAGE, "tests", "demo", "benchmarks", "tools")
SOURCES = sorted([*(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")), ROOT / "setup.py"])
MODULES = [path for path in SOURCES if path.is_relative_to(ROOT / PACKAGE)]
LICENCE = "# SPDX-License-Identifier: Apache-2.0"
MAX_FILE_LINES, MAX_FUNCTION_LINES = 500, 80

# Most lines of Python in each part of the package, with docstrings and blank lines. The start-up files are the rest.
BUDGETS = {
    "objectives": 615,
    "arguments": 635,
    "lf": 623,
    "hook": 592,
    "data": 1989,
    "team": 2358,
    "generation": 2351,
    "train": 972,
    "runs": 2826,
    "report": 1765,
    "board": 927,
    "commands": 810,
}
COMMANDS = {"cli", "doctor", "errors"}
PACKAGE_LINES, TEST_LINES = 16_500, 17_000

# A module imports parts of its own level and of those below it, whether at its top, inside a function, for type
# checking or by a module's name in a string.
LEVELS = [
    {"errors", "_hook", "__init__"},
    {"lf", "arguments", "objectives"},
    {"team", "data"},
    {"train", "generation", "report"},
    {"runs"},
    {"cli", "board", "hook", "doctor", "__main__", "_bootstrap"},
]
# These run at every interpreter's start, or write files on a machine that has no torch.
LIGHT = ("__init__", "_hook", "errors", "hook.start", "arguments.fields")
HEAVY = {"torch", "transformers", "datasets", "matplotlib", "llamafactory", "numpy", "yaml", "omegaconf"}
# LlamaFactory's column names appear where its files and its rows are read and written.
BORDER = {"data/triplets.py", "data/source.py", "data/encoding.py"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def part_of(path: Path) -> str:
    """Return the folder, or the file's name where it is in none."""
    inside = path.relative_to(ROOT / PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def level_of(part: str) -> int:
    return next((level for level, parts in enumerate(LEVELS) if part in parts), -1)


def imports_of(path: Path, *, lazy: bool = True) -> Iterator[str]:
    """Yield the full name of every module that a file imports; without `lazy`, only when it is loaded."""
    package = [PACKAGE, *path.relative_to(ROOT / PACKAGE).parent.parts] if path in MODULES else []
    for node in ast.walk(parse(path)) if lazy else _top_level(parse(path).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*(package[: len(package) - node.level + 1] if node.level else []), *filter(None, [node.module])]
            yield from (".".join([*base, alias.name]) for alias in node.names)
        elif lazy and isinstance(node, ast.Constant) and re.fullmatch(rf"{PACKAGE}(\.\w+)+", str(node.value)):
            yield node.value


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run on import; `if TYPE_CHECKING` does not."""
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        for name in ("body", "orelse", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _top_level(getattr(node, name, []))


def own_imports(path: Path) -> set[str]:
    """Return the parts of the package that a file imports."""
    names = (name.split(".") for name in imports_of(path))
    return {name[1] if len(name) > 1 else "__init__" for name in names if name[0] == PACKAGE}


def lines_of(paths: list[Path]) -> int:
    return sum(path.read_text(encoding="utf-8").count("\n") for path in paths)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_licence_docstring_and_size(path: Path) -> None:
    lines, tree = path.read_text(encoding="utf-8").splitlines(), parse(path)
    assert len(lines) <= MAX_FILE_LINES
    if lines[1:]:  # a folder's `__init__.py` may be empty or hold the licence line alone
        assert lines[0] == LICENCE
        assert ast.get_docstring(tree)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = {node.name: node.end_lineno - node.lineno + 1 - _docstring_lines(node) for node in functions}
    assert {name: size for name, size in sizes.items() if size > MAX_FUNCTION_LINES} == {}


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    has_words = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return first.end_lineno - first.lineno + 1 if has_words else 0


def parts_with_lines() -> dict[str, int]:
    sizes = dict.fromkeys(BUDGETS, 0)
    for path in MODULES:
        part = part_of(path)
        name = "commands" if part in COMMANDS else part
        if name in sizes:
            sizes[name] += lines_of([path])
    return sizes


@pytest.mark.parametrize("part", BUDGETS)
def test_every_part_keeps_its_budget(part: str) -> None:
    assert parts_with_lines()[part] <= BUDGETS[part]


def test_the_whole_keeps_its_budget() -> None:
    tests = [path for path in SOURCES if path.is_relative_to(ROOT / "tests")]
    assert lines_of(MODULES) <= PACKAGE_LINES
    assert lines_of(tests) <= TEST_LINES


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    assert level_of(part) >= 0, f"give `{part}` a level"
    upward = {f"{relative(path)} -> {name}" for name in own_imports(path) if level_of(name) > level_of(part)}
    assert upward == set()


def test_folders_make_no_circle() -> None:
    needs = {part: set() for parts in LEVELS for part in parts}
    for path in MODULES:
        needs[part_of(path)] |= own_imports(path) - {part_of(path), "__init__"}
    circles = {(one, two) for one in needs for two in needs[one] if one < two and one in needs.get(two, ())}
    assert circles == set()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_what_a_folder_alone_does(path: Path) -> None:
    """Print, import LlamaFactory or Gradio, and name LlamaFactory's columns `chosen` and `rejected`."""
    part, inside = part_of(path), path.relative_to(ROOT / PACKAGE).as_posix()
    named = {name.partition(".")[0] for name in imports_of(path)}
    names = {node.id for node in ast.walk(parse(path)) if isinstance(node, ast.Name)}
    assert "print" not in names or part == "cli"
    assert "llamafactory" not in named or part in ("lf", "hook")
    assert "gradio" not in named or part in ("board", "hook")
    assert not {"chosen", "rejected"} & names or part == "hook" or inside in BORDER
    if part == "objectives":
        assert {name for name in named if name != PACKAGE} <= {"torch", "__future__", "typing", "math", "collections"}
        assert own_imports(path) <= {part}


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy(name: str) -> None:
    path = ROOT / PACKAGE / f"{name.replace('.', '/')}.py"
    assert {name.partition(".")[0] for name in imports_of(path, lazy=False)} & HEAVY == set()


# A key that has one value so far decides nothing yet.
DECIDING = [key for key, spec in FIELDS.items() if len(get_args(spec.type)) != 1]


@pytest.mark.parametrize("key", DECIDING)
def test_every_key_is_read_somewhere(key: str) -> None:
    describing = {"fields.py", "run_files.py"}
    # As an attribute or as text that is not part of a message.
    pattern = re.compile(rf"\.{key}\b|[\"']{key}[\"']")
    reading = [path for path in MODULES if path.name not in describing]
    assert any(pattern.search(path.read_text(encoding="utf-8")) for path in reading), f"nothing reads `{key}`"


def test_the_rules_see_what_they_forbid() -> None:
    """The helpers of this file find a relative, a lazy and a plain import, and a module's name in a string."""
    start = ROOT / PACKAGE / "hook" / "start.py"
    assert f"{PACKAGE}.hook.seams.callbacks" in set(imports_of(start))
    assert f"{PACKAGE}.hook.seams.callbacks" not in set(imports_of(start, lazy=False))
    assert own_imports(Path(__file__)) >= {"arguments"}
    assert level_of("runs") > level_of("train") > level_of("data") > level_of("arguments") > level_of("errors")
