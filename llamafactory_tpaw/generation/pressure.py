# SPDX-License-Identifier: Apache-2.0
r"""How many requests a server is given at once: as many as make it faster, fewer when it says that it is too much.

The limit doubles while the rate of answers rises with it, then grows in small steps. It is halved when the server
answers that it is overloaded or does not answer in time, at most once for the requests that were in flight together.
"""

from __future__ import annotations


FIRST_LIMIT = 16
# By how much a doubled limit must raise the rate, and how often it may fail to, before doubling ends.
WORTH = 1.1
STRIKES = 2
# Small steps go on while the rate is close to the best so far, which fades so that one lucky moment does not last.
CLOSE, FADE = 0.95, 0.98
DEATH = 8


class Pressure:
    r"""The limit of one server. Times are seconds of one clock.

    Args:
        most: Most requests at once that the user allows.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = min(most, FIRST_LIMIT)
        self.rate: float | None = None
        self.overloads = 0
        self._doubling = True
        self._strikes = 0
        self._best = 0.0
        self._reduced = float("-inf")
        self._begun: float | None = None
        self._answers = 0

    def answered(self, now: float, full: bool) -> None:
        """Count an answer. `full` says that the limit was reached: otherwise the rate says nothing about it."""
        self.overloads = 0
        if not full:
            self._begun = None
        elif self._begun is None:
            self._begun, self._answers = now, 0
        else:
            self._answers += 1
            if self._answers >= self.limit and now > self._begun:
                self._judge(self._answers / (now - self._begun))
                self._begun, self._answers = now, 0

    def _judge(self, rate: float) -> None:
        """Set the limit by the rate that it gave."""
        before, self.rate = self.rate, rate
        if self._doubling:
            self._strikes = self._strikes + 1 if before is not None and rate < WORTH * before else 0
            self._doubling = self._strikes < STRIKES
            step = self.limit if self._doubling else 0
        else:
            step = max(1, self.most // 16) if rate >= CLOSE * self._best else 0
        self._best = max(rate, FADE * self._best)
        self.limit = min(self.most, self.limit + step)

    def overloaded(self, sent: float, now: float) -> bool:
        """Halve the limit, unless the request was sent before it was last lowered; return whether it was halved."""
        if sent < self._reduced:
            return False
        self._lower(self.limit // 2, now)
        self._doubling = False
        self.overloads += 1
        return True

    def died(self, now: float) -> None:
        """Begin again with few requests: one of those in flight may be what the server cannot stand."""
        self._lower(self.limit // DEATH, now)
        self._doubling, self._strikes, self.rate, self.overloads = True, 0, None, 0

    def _lower(self, limit: int, now: float) -> None:
        self.limit = max(1, limit)
        self._reduced = now
        self._begun = None
        self._best = 0.0
