# SPDX-License-Identifier: Apache-2.0
"""Record what a server is asked and sends, inside of the server: `vllm serve --middleware benchmarks.sent.record`."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any


# Names the file of the records: JSON lines of a request's body and an answer's.
VARIABLE = "TPAW_SENT"


async def record(request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
    """Pass a completion on as it is, and write it down."""
    from starlette.responses import Response

    if not request.url.path.endswith("/completions"):
        return await call_next(request)
    asked = await request.body()
    answer = await call_next(request)
    said = b"".join([part async for part in answer.body_iterator])
    if answer.status_code == 200:
        with Path(os.environ[VARIABLE]).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"asked": json.loads(asked), "said": json.loads(said)}) + "\n")
    return Response(said, answer.status_code, dict(answer.headers))
