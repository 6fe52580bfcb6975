# SPDX-License-Identifier: Apache-2.0
"""Servers on the nodes of a Ray cluster, placed by Ray, for a command that generates.

    python ray_servers.py --servers 2 --gpus 1 \\
        --serve "/shared/vllm-env/bin/vllm serve /shared/saves/tpaw_iter1 --host {host} --port {port} \\
                 --dtype bfloat16 --max-model-len 2048 --generation-config vllm" \\
        -- llamafactory-tpaw generate iter1.yaml

starts two servers where the cluster has the GPUs, waits until they answer, runs the command with
`tpaw_engine=openai tpaw_engine_url=...` behind it, ends the servers and exits as the command does. Without a command
it prints the addresses and serves until Ctrl-C.

It connects to the cluster that RAY_ADDRESS names or that runs on this machine (`ray start --head` on one node,
`ray start --address ...` on the others). Programs and paths in `--serve` are those of the nodes: use absolute ones.
A server whose actor dies is not started again; the others answer in its place. Ray ends an actor's child with it, but
not the child's children, and none where the process of the actor is killed; by its documentation, with
`RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper=1` set for `ray start` it ends those too.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import ray


NAMESPACE = "tpaw"
GRACE_S = 10


class Server:
    """A Ray actor that has one server as its child."""

    def start(self, serve: str, startup_s: float) -> tuple[str, str]:
        """Start the server on this node and wait until it answers `/health`; gives its address and where it runs."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            port = free.getsockname()[1]
        command = shlex.split(serve.replace("{host}", host).replace("{port}", str(port)))
        self.log = Path(tempfile.mkdtemp(prefix="tpaw-server-")) / "server.log"
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
        end = time.monotonic() + startup_s
        while not answers(f"http://{host}:{port}/health"):
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"{shlex.join(command)} does not answer:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.5)
        return f"http://{host}:{port}/v1", f"node {ray.get_runtime_context().get_node_id()}, log {self.log}"

    def stop(self) -> None:
        """End the server and what it started: asked first, killed after a while."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(GRACE_S)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def answers(url: str) -> bool:
    """Whether a server is there and well."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def main() -> int:
    """Start the servers, run the command, end the servers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, required=True, help="how many; Ray spreads them over the nodes")
    parser.add_argument("--cpus", type=float, default=1, help="that Ray reserves for each")
    parser.add_argument("--gpus", type=float, default=0, help="that Ray reserves for each and shows it")
    parser.add_argument("--startup", type=float, default=1800, help="seconds until all must answer")
    parser.add_argument("--serve", required=True, help="the server's command line with {host} and {port}")
    parser.add_argument("command", nargs="*", help="what to run, after `--`")
    given = parser.parse_args()
    ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), namespace=NAMESPACE, log_to_driver=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    placed = ray.remote(num_cpus=given.cpus, num_gpus=given.gpus, scheduling_strategy="SPREAD")(Server)
    servers = [placed.options(name=f"server-{index}").remote() for index in range(given.servers)]
    try:
        started = ray.get(
            [server.start.remote(given.serve, given.startup) for server in servers], timeout=given.startup
        )
        for url, place in started:
            print(f"{url} on {place}")
        urls = ",".join(url for url, _ in started)
        print(f"tpaw_engine_url: {urls}", flush=True)
        if given.command:
            process = subprocess.Popen([*given.command, "tpaw_engine=openai", f"tpaw_engine_url={urls}"])
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command, which ends in its own way.
            signal.signal(signal.SIGTERM, lambda *_: process.terminate())
            return process.wait()
        signal.pause()
    except ray.exceptions.GetTimeoutError:
        sys.exit(f"The servers do not answer after {given.startup:.0f} s. `ray status` shows what the cluster lacks.")
    except KeyboardInterrupt:
        return 130
    finally:
        ray.wait([server.stop.remote() for server in servers], num_returns=len(servers), timeout=3 * GRACE_S)
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
