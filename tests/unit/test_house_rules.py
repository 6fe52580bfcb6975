# SPDX-License-Identifier: Apache-2.0
"""What holds for every file: licence line, sizes, the direction of imports, no print, no key that nothing reads."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from llamafactory_tpaw.arguments.fields import FIELDS


ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "llamafactory_tpaw"
FOLDERS = (PACKAGE, "tests", "demo", "benchmarks")
SOURCES = sorted([*(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")), ROOT / "setup.py"])
MODULES = [path for path in SOURCES if path.is_relative_to(ROOT / PACKAGE)]
LICENCE = "# SPDX-License-Identifier: Apache-2.0"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# A module imports its own level and those below it. The plugin is apart: it may be imported from anywhere, imports
# nothing above `arguments` when it is loaded, and reaches up only inside functions, at LlamaFactory's call.
LEVELS = [
    {"errors", "_hook"},
    {"objectives", "arguments"},
    {"team", "data"},
    {"train", "generation", "evaluation", "report", "doctor"},
    {"iteration"},
    {"cli", "board", "__main__", "_bootstrap"},
]
PLUGIN = "plugin"
# `python -m` entries that print what they wrote.
PRINTING = {"arguments/reference.py", "iteration/families.py"}
# These run at every interpreter's start, or to write files on a machine that has no torch.
LIGHT = ("__init__", "_hook", "errors", "arguments.fields", "arguments.reference", "iteration.run_files")
HEAVY = {"torch", "transformers", "datasets", "matplotlib", "llamafactory", "numpy", "yaml", "omegaconf"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(path: Path, *, lazy: bool = True) -> Iterator[tuple[int, str]]:
    """Yield line and full name of every module that a file imports; without `lazy`, only when it is loaded."""
    package = [PACKAGE, *path.relative_to(ROOT / PACKAGE).parent.parts] if path in MODULES else []
    for node in ast.walk(parse(path)) if lazy else _top_level(parse(path).body):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *filter(None, [node.module])]
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run on import; `if TYPE_CHECKING` does not."""
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        for name in ("body", "orelse", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _top_level(getattr(node, name, []))


def part_of(module: str) -> str | None:
    """Return the part of the package that a full module name is in; None for foreign modules."""
    name, _, rest = module.partition(".")
    return (rest.partition(".")[0] or "__init__") if name == PACKAGE else None


def level_of(part: str) -> int:
    return next((level for level, parts in enumerate(LEVELS) if part in parts), -1)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_licence_docstring_and_size(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_FILE_LINES
    if lines[1:]:  # a folder's `__init__.py` may be empty or hold the licence line alone
        assert lines[0] == LICENCE
        assert ast.get_docstring(parse(path))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_functions_are_short(path: Path) -> None:
    functions = [node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = {node.name: _code_lines(node) for node in functions}
    assert {name: size for name, size in sizes.items() if size > MAX_FUNCTION_LINES} == {}


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a function's lines without its docstring."""
    first = node.body[0]
    has_words = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return node.end_lineno - node.lineno + 1 - (first.end_lineno - first.lineno + 1 if has_words else 0)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_print(path: Path) -> None:
    calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
    printed = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
    assert not printed or _may_print(path), f"print in lines {printed}"


def _may_print(path: Path) -> bool:
    inside = path.relative_to(ROOT / PACKAGE)
    return inside.parts[0] == "cli" or inside.as_posix() in PRINTING


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_only_the_plugin_imports_llamafactory(path: Path) -> None:
    found = [line for line, module in imports_of(path) if module.partition(".")[0] == "llamafactory"]
    assert not found or path.is_relative_to(ROOT / PACKAGE / PLUGIN), f"llamafactory is imported in lines {found}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_only_the_board_imports_gradio(path: Path) -> None:
    found = [line for line, module in imports_of(path) if module.partition(".")[0] == "gradio"]
    inside = path.relative_to(ROOT / PACKAGE).as_posix()
    assert not found or inside.startswith("board/") or inside == "plugin/board.py", f"gradio in lines {found}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    in_plugin = part == PLUGIN
    level = level_of("arguments") if in_plugin else level_of(part)
    upward = {
        f"line {line}: {module}"
        for line, module in imports_of(path, lazy=not in_plugin)
        if part_of(module) not in (None, PLUGIN) and level_of(part_of(module)) > level
    }
    assert upward == set()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_part_has_a_level(path: Path) -> None:
    part = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert part in (PLUGIN, "__init__") or level_of(part) >= 0, f"give `{part}` a level"


def test_objectives_need_nothing_but_torch() -> None:
    allowed = {"torch", "__future__", "typing", "math", "collections", "contextlib"}
    for path in (ROOT / PACKAGE / "objectives").glob("*.py"):
        foreign = {module for _, module in imports_of(path) if part_of(module) != "objectives"}
        assert {module.partition(".")[0] for module in foreign} <= allowed, relative(path)


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy(name: str) -> None:
    path = ROOT / PACKAGE / f"{name.replace('.', '/')}.py"
    assert {module.partition(".")[0] for _, module in imports_of(path, lazy=False)} & HEAVY == set()


# A key that has one value so far decides nothing yet.
DECIDING = [key for key, spec in FIELDS.items() if len(get_args(spec.type)) != 1]


@pytest.mark.parametrize("key", DECIDING)
def test_every_key_is_read_somewhere(key: str) -> None:
    describing = {"arguments/fields.py", "arguments/reference.py", "iteration/run_files.py", "iteration/families.py"}
    reading = [path for path in MODULES if path.relative_to(ROOT / PACKAGE).as_posix() not in describing]
    # As an attribute or as text that is not part of a message.
    pattern = re.compile(rf"\.{key}\b|[\"']{key}[\"']")
    assert any(pattern.search(path.read_text(encoding="utf-8")) for path in reading), f"nothing reads `{key}`"


def test_no_chosen_or_rejected_but_at_the_border() -> None:
    # LlamaFactory's column names appear where its files and its rows are read and written.
    border = {
        "data/triplets.py",
        "data/source.py",
        "data/encoding.py",
        "iteration/run_files.py",
        "iteration/families.py",
    }
    for path in MODULES:
        name = path.relative_to(ROOT / PACKAGE).as_posix()
        names = {node.id for node in ast.walk(parse(path)) if isinstance(node, ast.Name)}
        assert name in border or name.startswith("plugin/") or not {"chosen", "rejected"} & names, name


def test_the_rules_see_what_they_forbid() -> None:
    """The helpers of this file find a relative, a lazy and a plain import, and leave out type checking."""
    path = ROOT / PACKAGE / "data" / "source.py"
    assert any(module.startswith(f"{PACKAGE}.errors") for _, module in imports_of(path, lazy=False))
    hook = ROOT / PACKAGE / "_hook.py"
    assert f"{PACKAGE}.plugin.seams" in {module for _, module in imports_of(hook)}
    assert f"{PACKAGE}.plugin.seams" not in {module for _, module in imports_of(hook, lazy=False)}
    assert part_of("torch.nn") is None
    assert part_of(importlib.import_module(f"{PACKAGE}.errors").__name__) == "errors"
    assert level_of("iteration") > level_of("train") > level_of("data") > level_of("arguments") > level_of("errors")
