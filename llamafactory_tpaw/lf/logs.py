# SPDX-License-Identifier: Apache-2.0
"""Log lines that go where LlamaFactory's own go: the terminal, and LlamaBoard's log."""

from __future__ import annotations

from typing import Any

from . import facade
from .status import PACKAGE


def get_logger(name: str) -> Any:
    """A logger below LlamaFactory's root logger, with its `info_rank0` and `warning_rank0`."""
    return facade.get_logger(f"{PACKAGE}.{name}")
