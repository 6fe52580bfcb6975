# SPDX-License-Identifier: Apache-2.0
"""A number that was estimated, with its unit and how it came about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


KIB = 1024


@dataclass(frozen=True)
class Figure:
    """One estimate.

    Attributes:
        name: What it is of.
        amount: Bytes or seconds; None where it cannot be told.
        unit: `bytes` or `seconds`.
        how: How it was estimated.
    """

    name: str
    amount: float | None
    unit: str
    how: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        amount = self.amount
        if amount is not None:
            amount = round(amount) if self.unit == "bytes" else round(amount, 6)
        return {"name": self.name, "amount": amount, "unit": self.unit, "how": self.how}

    def readable(self) -> str:
        """The amount for people."""
        if self.amount is None:
            return "unknown"
        return readable_bytes(self.amount) if self.unit == "bytes" else readable_seconds(self.amount)


def readable_bytes(amount: float) -> str:
    """Write a number of bytes as KiB, MiB, GiB: `14.3 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < KIB:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= KIB
    return f"{amount:.1f} TiB"


def readable_seconds(amount: float) -> str:
    """Write seconds as `12 s`, `3.5 min` or `2.1 h`."""
    if amount < 90:
        return f"{amount:.1f} s" if amount < 10 else f"{amount:.0f} s"
    return f"{amount / 60:.1f} min" if amount < 5400 else f"{amount / 3600:.1f} h"
