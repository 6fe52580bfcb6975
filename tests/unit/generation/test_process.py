# SPDX-License-Identifier: Apache-2.0
"""A server that is started is there, and one that is ended leaves nothing behind, whatever ends whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from llamafactory_tpaw.errors import GenerationError
from llamafactory_tpaw.generation import process
from llamafactory_tpaw.generation.process import ServerProcess
from tests.processes import free_port


KEY = "k3y-of-this-test"
# Answers at once, or behaves as it is told; it starts a child, as vLLM does.
PROGRAM = """
import http.server, os, signal, subprocess, sys
how, port = sys.argv[1], int(sys.argv[2])
if how == "end":
    sys.exit(f"the key is {os.environ['VLLM_API_KEY']}\\n\\x1b[31mout of memory\\x1b[0m")
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
if how == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: (child.kill(), os._exit(0)))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if how == "silent" else 200)
        self.send_header("content-length", "0")
        self.end_headers()

http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
PARENT = """
import os, sys
from pathlib import Path
from tests.unit.generation.test_process import start
print(f"pid {start(Path(sys.argv[1]))._process.pid}", flush=True)
sys.stdin.read()
"""


def start(folder: Path, how: str = "well", startup_s: float = 60.0) -> ServerProcess:
    port = free_port()
    command = [sys.executable, "-S", "-c", PROGRAM, how, str(port)]
    return ServerProcess(command, os.environ | {"VLLM_API_KEY": KEY}, port, KEY, folder / "d.server.log", startup_s)


def family_of(pid: int) -> list[psutil.Process]:
    leader = psutil.Process(pid)
    family = [leader, *leader.children(recursive=True)]
    assert len(family) == 2
    return family


def living(family: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("how", ["well", "deaf"])
def test_it_serves_and_leaves_nothing(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TERMINATION_S", 0.5 if how == "deaf" else 20.0)
    server = start(tmp_path, how)
    server.check()
    family = family_of(server._process.pid)
    assert os.getsid(family[0].pid) != os.getsid(0), "a terminal's Ctrl-C is not for it"
    assert KEY not in str(family[0].cmdline())
    server.close()
    assert living(family) == []
    with pytest.raises(GenerationError, match=r"ended with exit code -?\d+; the end of its log:"):
        server.check()


def test_one_that_ends_while_starting(tmp_path: Path) -> None:
    with pytest.raises(
        GenerationError, match=r"The server at http://127\.0\.0\.1:\d+/v1 ended with exit code 1"
    ) as error:
        start(tmp_path, "end")
    assert "    the key is ***\n    out of memory\n" in str(error.value)
    assert f"look at its log {tmp_path / 'd.server.log'}" in str(error.value)


def test_one_that_never_answers(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(GenerationError, match=r"did not answer within `tpaw_engine_startup: 1.5` seconds"):
        start(tmp_path, "silent", startup_s=1.5)
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process that its parent died")
def test_it_does_not_outlive_its_parent(tmp_path: Path) -> None:
    words = [sys.executable, "-c", PARENT, str(tmp_path)]
    parent = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with parent:
        said = next(line for line in parent.stdout if line.startswith(b"pid"))
        family = family_of(int(said.split()[-1]))
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 20
    while living(family) and time.monotonic() < end:
        time.sleep(0.05)
    assert living(family) == []
