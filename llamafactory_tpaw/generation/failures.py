# SPDX-License-Identifier: Apache-2.0
"""The list of requests that no attempt answered."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ..data.triplets import row_key


if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .base import Failure, Request

SHOWN = 3


class FailedRequests:
    r"""Writes a line for each request that failed; the list of an earlier run is removed, for all are tried again.

    Args:
        path: Where the list is.

    Attributes:
        count: How many failed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._shown: list[str] = []
        path.unlink(missing_ok=True)

    def add(self, failures: Sequence[tuple[Request, Failure]]) -> None:
        r"""List requests with the reasons.

        Raises:
            OSError: If the list cannot be written.
        """
        if not failures:
            return
        self.count += len(failures)
        for request, failure in failures[: SHOWN - len(self._shown)]:
            self._shown.append(f"{row_key(request.id, request.sample)} ({failure.reason.rstrip('.')})")
        try:
            with self.path.open("a", encoding="utf-8", errors="replace") as stream:
                for request, failure in failures:
                    row = {"id": request.id, "sample": request.sample, "reason": failure.reason}
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            error.filename = str(self.path)
            raise

    def first(self) -> str:
        """Name the first ones and why they failed, in a sentence."""
        return f"First: {', '.join(self._shown)}."
