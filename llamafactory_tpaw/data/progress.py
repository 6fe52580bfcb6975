# SPDX-License-Identifier: Apache-2.0
"""How far something long has come: a bar on a terminal, a line now and then in a log, nothing for what is short."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm


if TYPE_CHECKING:
    from collections.abc import Iterable

BAR_AFTER_S, LINE_EVERY_S = 5.0, 30.0
BYTES = "B"
LINE = "{desc}: {n_fmt} of {total_fmt}{unit} ({percentage:.0f}%, {remaining} left)\n"


class Progress(tqdm):
    """Counts what is done, or the `items` that are taken, and shows it on stderr; of several ranks the first does."""

    def __init__(
        self, what: str, total: int, unit: str = "row", done: int = 0, items: Iterable[Any] | None = None
    ) -> None:
        settings: dict[str, Any] = {"desc": what, "total": total, "initial": done, "unit": f" {unit}s"}
        if unit == BYTES:
            settings |= {"unit": unit, "unit_scale": True, "unit_divisor": 1024}
        if sys.stderr.isatty():
            settings |= {"delay": BAR_AFTER_S}
        else:
            settings |= {"delay": LINE_EVERY_S, "mininterval": LINE_EVERY_S, "bar_format": LINE}
        if os.environ.get("RANK", "0") != "0":
            settings |= {"disable": True}  # otherwise tqdm's own `TQDM_DISABLE` decides
        super().__init__(items, miniters=0, **settings)  # told that nothing is done, it shows that, too
