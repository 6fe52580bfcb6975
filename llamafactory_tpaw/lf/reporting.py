# SPDX-License-Identifier: Apache-2.0
"""How an error that a user can cause reaches the terminal."""

import os
import sys
import traceback

from ..errors import TpawError


def report(error: TpawError) -> int:
    """Write the error's message, or every problem's, to stderr and return the exit code.

    The traceback is kept where LLAMAFACTORY_VERBOSITY is DEBUG.
    """
    if os.environ.get("LLAMAFACTORY_VERBOSITY", "").upper() == "DEBUG":
        traceback.print_exception(error)
    for message in error.problems:
        sys.stderr.write(f"llamafactory-tpaw: error: {message}\n")
    sys.stderr.flush()
    return error.exit_code
