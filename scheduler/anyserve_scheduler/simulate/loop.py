"""The simulation's event loop: one task of a Trio run whose clock is set from event to event.

The parts under test ask Trio for the time. They get that of the event which is being handled, and
no event costs a task or a turn of Trio's loop.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any

import trio


class Loop(trio.abc.Clock):
    """Events in the order of their times; of those at one time, in the order they were set."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the simulation began: Trio's time, too."""
        self.handled = 0
        """Events so far."""
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._set = 0

    def at(self, time: float, handle: Callable[..., None], *values: Any) -> None:
        """Call `handle` when it is `time`; at once after what is due now where that has passed."""
        self._set += 1
        heapq.heappush(self._events, (max(time, self.now), self._set, handle, values))

    def after(self, delay: float, handle: Callable[..., None], *values: Any) -> None:
        """Call `handle` in `delay` seconds."""
        self.at(self.now + delay, handle, *values)

    def run(self, until: float = math.inf, *, over: Callable[[], bool] | None = None) -> None:
        """Handle events up to the time `until`, or to the first after which `over()` is true."""
        while self._events and self._events[0][0] <= until:
            if over is not None and over():
                return
            self.now, _, handle, values = heapq.heappop(self._events)
            self.handled += 1
            handle(*values)
        if until < math.inf:
            self.now = until

    # What Trio asks of a clock.

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return max(0.0, deadline - self.now)


class Alarm:
    """Has something called when it is due, and asks again then when it is due next."""

    def __init__(self, loop: Loop, ring: Callable[[], float]) -> None:
        """ring: does what is due; when it is due next, `inf` for never."""
        self._loop = loop
        self._ring = ring
        self._next = math.inf

    def check(self) -> None:
        """Do what is due, and see to it that the rest is done in time."""
        due = self._ring()
        if due < self._next:
            self._next = due
            self._loop.at(due, self._rung, due)

    def _rung(self, due: float) -> None:
        if due == self._next:
            self._next = math.inf
            self.check()
