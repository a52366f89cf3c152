"""Deadlines of many requests, kept by one task: a request that is answered in time costs none."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import attrs
import trio

from anyserve.waiting import Waiter

_SPARE = 64
"""Deadlines of requests that have ended which are kept whatever the number of others."""


@attrs.define(eq=False)
class Deadline:
    """The deadline of one request."""

    at: float
    """On Trio's clock."""
    passed: Callable[[], None] | None
    """None once the request has ended."""

    def __lt__(self, other: Deadline) -> bool:
        return self.at < other.at


class Deadlines:
    """Calls back those whose time is over, while `run` runs."""

    def __init__(self) -> None:
        self._heap: list[Deadline] = []
        self._dropped = 0
        self._earlier = Waiter()

    def __len__(self) -> int:
        return len(self._heap) - self._dropped

    def add(self, at: float, passed: Callable[[], None]) -> Deadline:
        """Have `passed` called, from the task that runs `run`, once it is `at` or later."""
        deadline = Deadline(at, passed)
        heapq.heappush(self._heap, deadline)
        if self._heap[0] is deadline:
            self._earlier.wake()
        return deadline

    def drop(self, deadline: Deadline) -> None:
        """The request has ended: nobody is to be called. Only the first call counts."""
        if deadline.passed is None:
            return
        deadline.passed = None
        self._dropped += 1
        if self._dropped > _SPARE + len(self._heap) // 2:
            self._heap = [other for other in self._heap if other.passed is not None]
            heapq.heapify(self._heap)
            self._dropped = 0

    def expire(self, now: float) -> float:
        """Call those whose time is over; the time of the next one, `inf` for none."""
        heap = self._heap
        while heap and (heap[0].at <= now or heap[0].passed is None):
            deadline = heapq.heappop(heap)
            if deadline.passed is None:
                self._dropped -= 1
                continue
            passed, deadline.passed = deadline.passed, None  # dropping it now does nothing
            passed()
            heap = self._heap
        return heap[0].at if heap else math.inf

    async def run(self) -> None:
        """Call back as time passes, until cancelled."""
        while True:
            with trio.move_on_at(self.expire(trio.current_time())):
                await self._earlier.wait()
