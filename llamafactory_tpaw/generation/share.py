# SPDX-License-Identifier: Apache-2.0
"""The part of a process for one device in generating a round: it answers what its parent hands out."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Callable

    from .base import PromptRequests, Request, Response


@dataclass(frozen=True)
class Share:
    """What a process that generates a part of a round is told: the round's file and an open socket to its parent."""

    file: str
    channel: int


def answer_parent(
    share: Share,
    job: str,
    requests: PromptRequests,
    make_generate: Callable[[], Callable[[list[Request], Callable[[int], object]], list[Response]]],
) -> None:
    r"""In a process for one device: answer the units that the parent sends, until it sends no more.

    Args:
        share: What this process was told.
        job: Digest of what is generated.
        requests: All requests.
        make_generate: Loads the model and returns what answers a unit; called when there is one.
    """
    with socket.socket(fileno=share.channel) as channel, channel.makefile("rb") as lines:

        def send(**message: Any) -> None:
            channel.sendall(json.dumps(message).encode() + b"\n")

        send(job=job)
        generate = None
        for line in lines:
            unit = json.loads(line)
            generate = generate or make_generate()
            responses = generate([requests[index] for index in unit], lambda count: send(finished=count))
            send(
                answers=[
                    (index, response.ids, response.finish_reason)
                    for index, response in zip(unit, responses, strict=True)
                ]
            )
