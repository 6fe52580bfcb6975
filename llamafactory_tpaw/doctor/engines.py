# SPDX-License-Identifier: Apache-2.0
"""Which vLLM engine `vllm` would start, and whether it does."""

import os
import shlex
import signal
import subprocess
from typing import Any

from ..errors import TpawError


# It imports torch first, perhaps from a slow disk.
VERSION_S = 180.0
LINE_CHARACTERS = 300


def vllm_program(command: str | None, limit_s: float = VERSION_S) -> dict[str, Any]:
    r"""Ask vLLM for its version.

    Args:
        command: `tpaw_vllm_command`; None is this environment's `vllm`.
        limit_s: Seconds that it may take.

    Returns:
        `command`, `program` (the words that start it, one text; None where there is none), `version`, `error`.
    """
    found: dict[str, Any] = {"command": command, "program": None, "version": None, "error": None}
    try:
        from ..generation.vllm import find_program
    except ImportError as error:
        return found | {"error": f"{type(error).__name__}: {error}"}
    try:
        words = find_program(command)
    except TpawError as error:
        return found | {"error": str(error) if command else None}
    found["program"] = shlex.join(words)
    try:
        code, output = _run([*words, "--version"], limit_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        how = f"it did not end within {limit_s:g} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        return found | {"error": how}
    lines = [line.strip()[:LINE_CHARACTERS] for line in output.splitlines() if line.strip()] or ["it says nothing"]
    return found | ({"error": f"{lines[-1]} (exit code {code})"} if code else {"version": lines[-1]})


def _run(words: list[str], limit_s: float) -> tuple[int, str]:
    """Run a program in a session of its own, of which nothing is left."""
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"LLAMAFACTORY_TPAW": "0", "VLLM_NO_USAGE_STATS": "1"},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
    return process.returncode, output
