# SPDX-License-Identifier: Apache-2.0
"""Requests of which each has its answer by its number, and a process that answers its share of them.

Usage of the process: python -m tests.unit.generation.sharing HOW SHARE, with a device's name in CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING

import numpy as np

from llamafactory_tpaw.generation.base import Request, Response
from llamafactory_tpaw.generation.devices import Share, answer_parent


if TYPE_CHECKING:
    from collections.abc import Callable

JOB = "job"
COUNT = 40


class Numbered:
    """Request `i` has a prompt of `COUNT - i` tokens, and `i` is its answer."""

    def __init__(self, count: int = COUNT) -> None:
        self.prompt_tokens = np.arange(count, 0, -1, dtype=np.int32)
        self.new_tokens = np.ones(count, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    def __getitem__(self, index: int) -> Request:
        return Request(str(index), np.zeros(self.prompt_tokens[index], dtype=np.int32), 1, 0)


def respond(request: Request) -> Response:
    return Response([int(request.id)] * 1000, "stop")


def make_generate(how: str) -> Callable[[list[Request], Callable[[int], object]], list[Response]]:
    device = os.environ["CUDA_VISIBLE_DEVICES"]

    def generate(requests: list[Request], finished: Callable[[int], object]) -> list[Response]:
        if device == "1" and how == "fail":
            sys.stderr.write("Device 1 has no memory.\n")
            raise SystemExit(5)
        if device == "1" and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if device == "1" and how == "leave":
            raise SystemExit(0)
        if device == "0" and how in ("fail", "killed", "leave"):
            signal.pause()  # for the other one to fail while this one works
        finished(len(requests))
        return [respond(request) for request in requests]

    return generate


if __name__ == "__main__":
    _, how, share = sys.argv
    job = "another" if how == "other" else JOB
    answer_parent(Share(**json.loads(share)), job, Numbered(), lambda: make_generate(how))
