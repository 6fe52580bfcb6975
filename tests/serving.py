# SPDX-License-Identifier: Apache-2.0
"""A real server on this machine's loopback: `transformers serve` with a tiny model."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import TIMEOUT_S


# The conversation as the model is taught it, for the chat API.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@contextlib.contextmanager
def transformers_serve(model: Path, log: Path, *arguments: str) -> Iterator[str]:
    """Start the server and wait until it answers; gives its base address. Skips where its packages are absent."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).parent / "transformers")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [program, "serve", str(model), "--device", "cpu", "--port", str(port), "--host", "127.0.0.1", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1", "LLAMAFACTORY_TPAW": "0", "HF_HOME": str(log.parent / "hub")},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + TIMEOUT_S
        while not _answers(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"transformers serve did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False
