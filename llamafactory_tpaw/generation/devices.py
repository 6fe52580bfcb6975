# SPDX-License-Identifier: Apache-2.0
r"""The `hf` engine on several devices: a process for each, which is handed a unit of requests after another.

The process that started them alone writes to the disk. What is answered together does not depend on who answers it,
so an interrupted round goes on with any number of devices, and the devices are done at nearly the same time.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import selectors
import socket
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..errors import GenerationError
from ..lf.signals import end_like_child, exit_code, started_child
from .base import Response, ignore, units_left
from .share import Share


if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np

    from .base import Answers, PromptRequests

READ_BYTES = 1 << 16


def devices_in_sight(environment: Mapping[str, str]) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` would name to choose each device in sight; empty where there is none."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        return [str(number) for number in range(torch.cuda.device_count())]
    names = [name.strip() for name in visible.split(",")]
    ends = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
    return names[:ends]


class DeviceEngine:
    r"""Samples with a process for each device.

    Args:
        name: Of the engine in the processes.
        version: Of it.
        hand: Writes the plan for a process that is to call `share.answer_parent`, and returns its file.
        file: The round's file, by which the process knows its round.
        job: Digest of what is generated, in which the processes must agree with this one.
        devices: A value of `CUDA_VISIBLE_DEVICES` for each process.
        batch_tokens: Most tokens in a batch.
    """

    def __init__(
        self,
        name: str,
        version: str,
        hand: Callable[..., contextlib.AbstractContextManager[str]],
        file: str,
        job: str,
        devices: Sequence[str],
        batch_tokens: int,
    ) -> None:
        self.name = name
        self.version = version
        self.hand = hand
        self.file = file
        self.job = job
        self.devices = devices
        self.batch_tokens = batch_tokens

    def answer(
        self, requests: PromptRequests, left: np.ndarray, finished: Callable[[int], object] = ignore
    ) -> Iterator[Answers]:
        r"""Hand out units until all are answered.

        Raises:
            KeyboardInterrupt: If a process was interrupted.
            SystemExit: With the code of a process that failed, which has said why; the others are ended.
            GenerationError: If a process sees other prompts or settings than this one.
        """
        units = units_left(requests, left, self.batch_tokens)
        needed = len(list(itertools.islice(units_left(requests, left, self.batch_tokens), len(self.devices))))
        with contextlib.ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            children = [self._start(stack, device) for device in self.devices[:needed]]
            stack.callback(_terminate, children)
            for child in children:
                selector.register(child.channel, selectors.EVENT_READ, child)
            while selector.get_map():
                for key, _ in selector.select():
                    child = key.data
                    messages = child.read()
                    if messages is None:
                        selector.unregister(child.channel)
                        child.check_end()
                        continue
                    for message in messages:
                        if "job" in message:
                            self._compare(message["job"], child)
                        if "finished" in message:
                            finished(message["finished"])
                        else:
                            child.work_on(next(units, None))
                        if "answers" in message:
                            yield [(index, Response(ids, reason)) for index, ids, reason in message["answers"]]

    def _start(self, stack: contextlib.ExitStack, device: str) -> _Child:
        own, others = socket.socketpair()
        stack.callback(own.close)
        with others:
            plan_file = stack.enter_context(self.hand(share=asdict(Share(self.file, others.fileno()))))
            command = [sys.executable, "-m", "llamafactory_tpaw", "generate", plan_file]
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": device}
            started = started_child(command, environment, pass_fds=[others.fileno()])
            return _Child(stack.enter_context(started), own, device)

    def _compare(self, job: str, child: _Child) -> None:
        if job != self.job:
            raise GenerationError(
                f"The process for device {child.device} found other prompts, settings or weights than the one that "
                "started it: they were changed meanwhile. What is done is kept. Leave them as they are and start "
                "again."
            )


class _Child:
    """A process and the lines it sends."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, device: str) -> None:
        self.process = process
        self.channel = channel
        self.device = device
        self._parts: list[bytes] = []
        self._busy = False

    def read(self) -> list[dict[str, Any]] | None:
        """Messages that are complete; None where there will be no more."""
        try:
            content = self.channel.recv(READ_BYTES)
        except ConnectionError:
            content = b""
        if not content:
            return None
        *complete, rest = content.split(b"\n")
        if not complete:
            self._parts.append(rest)
            return []
        complete[0] = b"".join([*self._parts, complete[0]])
        self._parts = [rest]
        return [json.loads(line) for line in complete]

    def work_on(self, unit: list[int] | None) -> None:
        """Send a unit, or without one let the process end; one that is gone is noticed when it is read from."""
        self._busy = unit is not None
        with contextlib.suppress(ConnectionError):
            if unit is None:
                self.channel.shutdown(socket.SHUT_WR)
            else:
                self.channel.sendall(json.dumps(unit).encode() + b"\n")

    def check_end(self) -> None:
        """Wait for the process and end as it did, unless it was done."""
        end_like_child(exit_code(self.process), "generates")
        if self._busy:
            raise GenerationError(
                f"The process for device {self.device} ended before it had answered. What is done is kept: the same "
                "command continues."
            )


def _terminate(children: Sequence[_Child]) -> None:
    """Ask all at once to end, so that they need not be waited for one after another."""
    for child in children:
        if child.process.poll() is None:
            child.process.terminate()
