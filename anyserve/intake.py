"""What takes requests until it drains: those in flight, and the wait for their end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import attrs
import trio

_Request = TypeVar("_Request")


@attrs.define(eq=False)
class Intake(Generic[_Request]):
    """Knows the requests in flight, and lets nobody read more of them once it drains."""

    draining: bool = False
    requests: dict[_Request, None] = attrs.field(init=False, factory=dict)
    """Those in flight, the oldest first; not to be written to."""
    _reading: set[trio.CancelScope] = attrs.field(init=False, factory=set)
    """Around those who read requests."""
    _idle: trio.Event = attrs.field(init=False, factory=trio.Event)

    @property
    def in_flight(self) -> int:
        """How many requests have come and not ended."""
        return len(self.requests)

    def begin(self, request: _Request) -> None:
        """A request has come."""
        self.requests[request] = None

    def finish(self, request: _Request) -> None:
        """A request has ended."""
        del self.requests[request]
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
        while self.requests or self._reading:
            self._idle = trio.Event()
            await self._idle.wait()

    def _check_idle(self) -> None:
        if not (self.requests or self._reading):
            self._idle.set()
