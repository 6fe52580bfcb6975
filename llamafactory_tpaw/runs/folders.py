# SPDX-License-Identifier: Apache-2.0
"""The folders that every iteration writes to: whether it may, before hours of work are spent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..lf.failures import nearest_folder, places_of


def folder_problems(given: Mapping[str, Any]) -> list[str]:
    """Say which of a run's folders cannot be made or written to; nothing is made."""
    problems = []
    for name, path in places_of(given, ("output_dir", "tpaw_cache_dir")).items():
        nearest = nearest_folder(path)
        if not nearest.is_dir():
            problems.append(
                f"{name} cannot be a folder: {_relative(nearest)} is a file. Move it, or choose another folder."
            )
        elif not os.access(nearest, os.W_OK | os.X_OK):
            problems.append(
                f"{name} cannot be written to: {_relative(nearest)} does not let this user write. Give yourself the "
                "right to, or choose another folder."
            )
    return problems


def _relative(path: Path) -> str:
    """As the user would write it: from here, where it is below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
