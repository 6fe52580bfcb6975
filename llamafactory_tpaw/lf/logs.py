# SPDX-License-Identifier: Apache-2.0
"""Log lines that go where LlamaFactory's own go: the terminal, and LlamaBoard's log."""

import logging
from typing import Any

from ..errors import visible
from . import facade
from .status import PACKAGE


def get_logger(name: str) -> Any:
    """A logger below LlamaFactory's root logger, with its `info_rank0` and `warning_rank0`."""
    for module in ("configuration_utils", "generation.configuration_utils"):  # or each look shows a config
        logging.getLogger(f"transformers.{module}").setLevel(logging.WARNING)
    logger = facade.get_logger(f"{PACKAGE}.{name}")
    logger.addFilter(_show)
    return logger


def _show(record: logging.LogRecord) -> bool:
    """Keep what is quoted in a message, of a server or a file, from ruling the terminal."""
    record.msg = visible(str(record.msg))
    return True
