# SPDX-License-Identifier: Apache-2.0
"""The head's blocks while passes are traced: as large as on the run's device, and only two of them gone through."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ...objectives.head import Blocks, watched_blocks


if TYPE_CHECKING:
    from .tracing import ByteTracer


def head_on(device: str, tracer: ByteTracer) -> contextlib.AbstractContextManager[None]:
    r"""Let the head do what it would do on a kind of device, although tensors without data say that they are here.

    Blocks are alike, so two are gone through, the second beside what the first one left, and the operations of the
    others are counted with these.

    Args:
        device: Kind of device, e.g. `cuda`.
        tracer: Counts bytes and operations.
    """

    def two_of(blocks: Blocks, count: float) -> Blocks:
        first = next(blocks)
        flops, calls = tracer.flops, tracer.calls
        yield first
        second = next(blocks, None)
        if second is not None:
            # Since then a block was used and the next one computed: what each of the others would cost.
            tracer.flops += round(max(count - 2, 0) * (tracer.flops - flops))
            tracer.calls += round(max(count - 2, 0) * (tracer.calls - calls))
            yield second

    return watched_blocks(device, two_of)
