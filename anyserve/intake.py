"""What takes requests until it drains: those in flight, and the wait for their end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio


@attrs.define(eq=False)
class Intake:
    """Counts requests, and lets nobody read more of them once it drains."""

    draining: bool = False
    in_flight: int = 0
    _reading: set[trio.CancelScope] = attrs.field(init=False, factory=set)
    """Around those who read requests."""
    _idle: trio.Event = attrs.field(init=False, factory=trio.Event)

    def begin(self) -> None:
        """A request has come."""
        self.in_flight += 1

    def finish(self) -> None:
        """A request has ended."""
        self.in_flight -= 1
        self._check_idle()

    @contextmanager
    def accepting(self) -> Iterator[trio.CancelScope]:
        """A scope for reading requests, cancelled once no more are taken."""
        with trio.CancelScope() as scope:
            if self.draining:
                scope.cancel()
            self._reading.add(scope)
            try:
                yield scope
            finally:
                self._reading.discard(scope)
                self._check_idle()

    def stop_accepting(self) -> None:
        """Take no more requests; those in flight go on."""
        self.draining = True
        for scope in self._reading:
            scope.cancel()

    async def drain(self) -> None:
        """Take no more requests and wait until those in flight have ended; the caller bounds it.

        Cancelled, it goes on draining.
        """
        self.stop_accepting()
        while self.in_flight or self._reading:
            self._idle = trio.Event()
            await self._idle.wait()

    def _check_idle(self) -> None:
        if not (self.in_flight or self._reading):
            self._idle.set()
