# SPDX-License-Identifier: Apache-2.0
"""A server that starts in a moment, answers what a health check asks, and misbehaves as it is told.

    python small_server.py --port N [BEHAVIOUR …]

`die FILE` ends it at once while FILE is missing, after making it; `end` always does. `silent` never answers, `deaf`
takes no notice of SIGTERM, `family` starts a child in its session and one in another.
"""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET: `/die` ends the server, `/health` is unknown to it, the rest is fine."""

    def do_GET(self) -> None:
        if self.path == "/die":
            os._exit(7)
        body = self.headers.get("Authorization", "").encode()
        self.send_response(404 if self.path == "/health" else 500 if "silent" in sys.argv else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve."""
    words = sys.argv
    port = int(words[words.index("--port") + 1])
    if "die" in words and not (seen := Path(words[words.index("die") + 1])).exists():
        seen.touch()
        sys.exit("OSError: [Errno 98] error while attempting to bind: Address already in use")
    if "end" in words:
        sys.exit(f"the key is {os.environ['VLLM_API_KEY']}\n\x1b[31mout of memory\x1b[0m")
    if "deaf" in words:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "family" in words:
        for session in (False, True):
            subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=session)
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
