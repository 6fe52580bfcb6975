# SPDX-License-Identifier: Apache-2.0
"""A line on a terminal that says what is waited for; nothing where stderr is not one."""

import sys


CLEAR_LINE = "\r\x1b[K"


def show_step(step: str) -> None:
    """Say what is looked at now, in the place of what was said before."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{CLEAR_LINE}looking at {step} ...")
        sys.stderr.flush()


def clear_step() -> None:
    """Take the line away."""
    if sys.stderr.isatty():
        sys.stderr.write(CLEAR_LINE)
        sys.stderr.flush()
