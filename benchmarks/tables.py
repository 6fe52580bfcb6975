# SPDX-License-Identifier: Apache-2.0
"""Numbers as text: a table for people, on a terminal with colours, and a file of JSON."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def middle(values: Sequence[float]) -> float | None:
    """The median; None of nothing."""
    return statistics.median(values) if values else None


def ratio(values: Sequence[float], others: Sequence[float]) -> float | None:
    """The median of the ratios of two contenders in the same repeats, which the machine's load meets alike."""
    return middle([value / other for value, other in zip(values, others, strict=False)])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`median (smallest to largest)`."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def number(value: float | None, digits: int = 2) -> str:
    """A number, or `-` for none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, with lines and colours on a terminal."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left")
        for index, name in enumerate(header):
            table.add_column(name, justify="right" if index else "left")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(len(line[index]) for line in [header, *rows]) for index in range(len(header))]
    print(f"\n{title}")
    for line in [header, *rows]:
        cells = [
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"\nWritten to {path}")
