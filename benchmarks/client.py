# SPDX-License-Identifier: Apache-2.0
r"""What our side of servers costs: requests per second, CPU seconds a request, overhead at a given rate, and memory.

    python -m benchmarks.client
    python -m benchmarks.client --prompts 10000 1000000

The server is a stub on loopback in a process of its own. First it takes a fixed time for each answer and as many
requests at once as make `--rate` of them a second: what our side adds is what the rate falls short of that. The rate
is taken between a fifth and nine tenths of the answers. Then it answers at once, for each number of `--prompts`: the
rate is then what both sides can do on the processors they have, and memory is the most that no file holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llamafactory_tpaw.generation.exchange import Exchange
from llamafactory_tpaw.generation.server import Server

from . import machine, tables
from .workload import RESULTS


END = b"\r\n\r\n"


class Stub(asyncio.Protocol):
    """Answers every request with the same bytes after the same time."""

    def __init__(self, answer: bytes, delay_s: float) -> None:
        self.answer = answer
        self.delay_s = delay_s
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(END)) >= 0:
            head = self.buffer[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
            if len(self.buffer) < end + len(END) + length:
                return
            self.buffer = self.buffer[end + len(END) + length :]
            if self.delay_s:
                asyncio.get_running_loop().call_later(self.delay_s, self.transport.write, self.answer)
            else:
                self.transport.write(self.answer)


def serve(delay_s: float, tokens: int, pipe: Connection) -> None:
    """Serve until the other end of the pipe speaks; tell the port, and in the end the CPU seconds."""
    choice = {"index": 0, "text": "word " * tokens, "finish_reason": "length", "token_ids": list(range(tokens))}
    content = json.dumps({"id": "1", "object": "text_completion", "choices": [choice]}).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"

    async def run() -> None:
        loop = asyncio.get_running_loop()
        answer = head.encode() + content
        server = await loop.create_server(lambda: Stub(answer, delay_s), "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        ended = loop.create_future()
        loop.add_reader(pipe.fileno(), lambda: ended.done() or ended.set_result(None))
        await ended

    asyncio.run(run())
    pipe.send(time.process_time())


def anonymous_mib() -> float:
    """Memory of this process that no file holds."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def measure(options: argparse.Namespace, count: int, delay_s: float) -> dict[str, Any]:
    """Have so many prompts answered."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    server = context.Process(target=serve, args=(delay_s, options.tokens, theirs), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}/v1"
    keys = {"concurrency": options.concurrency, "timeout": 60.0, "retries": 8, "startup": 60.0}
    keys = SimpleNamespace(**{f"tpaw_engine_{name}": value for name, value in keys.items()})
    seen = bytearray(count)
    marks: list[tuple[int, float]] = []
    peak, done = 0.0, 0
    begin, used = time.monotonic(), time.process_time()

    def body_of(index: int) -> dict[str, Any]:
        ids = list(range(index % 1000, index % 1000 + options.tokens))
        return {"model": "stub", "prompt": ids, "max_tokens": 16, "seed": index, "temperature": 1.0}

    def ids_of(_: int, answer: dict[str, Any]) -> list[int]:
        return answer["choices"][0]["token_ids"]

    async def ask() -> None:
        nonlocal done, peak
        server = Server(url, None, keys)
        exchange = Exchange(iter(range(count)), "/completions", body_of, ids_of, [server])
        async for results in exchange.answers():
            for index, _ in results:
                seen[index] += 1
            done += len(results)
            marks.append((done, time.monotonic()))
            peak = max(peak, anonymous_mib())
        await server.client.close()

    asyncio.run(ask())
    seconds, cpu = time.monotonic() - begin, time.process_time() - used
    ours.send(None)
    server_cpu = ours.recv()
    server.join()
    if seen != b"\x01" * count:
        raise SystemExit("not every prompt was answered exactly once")
    middle = [mark for mark in marks if 0.2 * count <= mark[0] <= 0.9 * count]
    (first, start), (last, end) = (middle[0], middle[-1]) if len(middle) > 1 else ((0, begin), marks[-1])
    return {
        "prompts": count,
        "delay_s": delay_s,
        "seconds": round(seconds, 3),
        "requests_per_second": round(count / seconds, 1),
        "steady_requests_per_second": round((last - first) / (end - start), 1),
        "cpu_ms_a_request": round(1e3 * cpu / count, 3),
        "server_cpu_ms_a_request": round(1e3 * server_cpu / count, 3),
        "peak_mib": round(peak, 1),
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[10_000, 50_000], help="of a server without delay")
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second of the server with delay")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long that one has to do")
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200, help="of a prompt and of an answer")
    parser.add_argument("--json", type=Path, default=RESULTS / "client.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table and write the result."""
    options = parse(arguments)
    measure(options, 4 * options.concurrency, 0.0)  # warms up
    timed = measure(options, round(options.rate * options.seconds), options.concurrency / options.rate)
    timed["overhead"] = round(options.rate / timed["steady_requests_per_second"] - 1, 4)
    at_once = [measure(options, count, 0.0) for count in options.prompts]
    rows = [
        [
            f"{run['delay_s']:.3f} s an answer" if run["delay_s"] else "at once",
            f"{run['prompts']:,}",
            tables.number(run["requests_per_second"], 0),
            tables.number(run["steady_requests_per_second"], 0),
            tables.number(run["cpu_ms_a_request"]),
            tables.number(run["server_cpu_ms_a_request"]),
            tables.number(run["peak_mib"], 0),
        ]
        for run in [timed, *at_once]
    ]
    header = ["server", "prompts", "a second", "steady", "CPU ms, ours", "CPU ms, stub", "peak MiB"]
    tables.show("Our side of a server", header, rows)
    share = timed["cpu_ms_a_request"] / 1e3 * options.rate
    print(f"\nat {options.rate:g} requests a second: {timed['overhead']:+.1%} time, {share:.2f} processors busy")
    content = {"machine": machine.describe("cpu"), "timed": timed, "at_once": at_once}
    tables.save(options.json, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
