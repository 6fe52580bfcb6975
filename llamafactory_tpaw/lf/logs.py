# SPDX-License-Identifier: Apache-2.0
"""Log lines that go where LlamaFactory's own go: the terminal, and LlamaBoard's log."""

import logging
from typing import Any

from . import facade
from .status import PACKAGE


def get_logger(name: str) -> Any:
    """A logger below LlamaFactory's root logger, with its `info_rank0` and `warning_rank0`."""
    logging.getLogger("transformers.configuration_utils").setLevel(logging.WARNING)  # or each look shows a config
    return facade.get_logger(f"{PACKAGE}.{name}")
