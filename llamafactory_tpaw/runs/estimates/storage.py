# SPDX-License-Identifier: Apache-2.0
"""How fast this machine writes files to a folder and hashes what it reads."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from ...team.fingerprint import HASHING_THREADS


WRITTEN, HASHED = 64 << 20, 16 << 20


class Storage(NamedTuple):
    """Bytes a second that are written to a file system and that are hashed by all threads together."""

    write: float
    hash: float


def measure_storage(folder: Path) -> Storage:
    r"""Write a temporary file and hash some bytes: a fraction of a second.

    Args:
        folder: A folder that is there, on the file system in question; where it cannot be written to, the folder of
            temporary files stands in for it.
    """
    place = folder if os.access(folder, os.W_OK) else None
    block = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=place, prefix=".llamafactory-tpaw-") as stream:
        begun = time.perf_counter()
        for _ in range(WRITTEN // len(block)):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
        written = time.perf_counter() - begun
    begun = time.perf_counter()
    for _ in range(HASHED // len(block)):
        hashlib.sha256(block).digest()
    hashed = time.perf_counter() - begun
    threads = min(HASHING_THREADS, os.cpu_count() or 1)
    return Storage(WRITTEN / max(written, 1e-9), threads * HASHED / max(hashed, 1e-9))
