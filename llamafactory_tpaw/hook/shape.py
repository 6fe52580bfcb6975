# SPDX-License-Identifier: Apache-2.0
"""Looks at what a seam extends, before anything is changed."""

import inspect
from typing import Any


class SeamMissing(Exception):
    """A LlamaFactory name is not what the hook builds on. Says what is wrong with it."""


def check(condition: Any, problem: str) -> None:
    """Raise `SeamMissing` with `problem` unless `condition` holds."""
    if not condition:
        raise SeamMissing(problem)


def check_function(module: Any, name: str, parameters: tuple[str, ...] = (), uses: tuple[str, ...] = ()) -> Any:
    """Return a module's or class's function after a look at its first parameters and the names that its body uses."""
    function = getattr(module, name, None)
    check(inspect.isfunction(function), f"there is no function `{name}` in `{module.__name__}`")
    found = tuple(inspect.signature(function).parameters)
    expected = f"({', '.join(parameters)}, ...)"
    check(found[: len(parameters)] == parameters, f"`{name}` takes ({', '.join(found)}) instead of {expected}")
    names = {*function.__code__.co_names, *function.__code__.co_varnames}
    absent = [f"`{used}`" for used in uses if used not in names]
    check(not absent, f"`{name}` no longer refers to {' and '.join(absent)}")
    return function
