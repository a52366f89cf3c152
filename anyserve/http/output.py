"""What is written to one socket: what a burst sends in one piece, and the rest as it is read."""

from __future__ import annotations

import socket
from typing import Protocol

import trio

from anyserve.burst import defer, woke

_BACKLOG = 64 * 1024
"""Bytes that wait for the client to read before whoever makes them is told."""
_STALLED = 60.0
"""Seconds after which a client that reads nothing has gone."""


class Source(Protocol):
    """Whose output it is."""

    def take(self) -> bytes:
        """What has gathered beside what was written."""
        ...

    def on_behind(self) -> None:
        """Much waits for the client to read; may be called again."""
        ...

    def on_caught_up(self) -> None:
        """Nothing waits any more, after something had to."""
        ...

    def on_broken(self) -> None:
        """Nothing can be sent any more."""
        ...


class _Nobody:
    """The source of an output that is closed."""

    def take(self) -> bytes:
        return b""

    def on_behind(self) -> None:
        pass

    def on_caught_up(self) -> None:
        pass

    def on_broken(self) -> None:
        pass


_NOBODY = _Nobody()


class Output:
    """The output of one connection; an `Outlet`."""

    def __init__(self, sock: socket.socket, source: Source) -> None:
        self.waits = False
        """Whether a task waits for the socket to take more."""
        self.tasks: trio.Nursery
        """Where that task runs; set before anything is written."""
        self._sock = sock
        self._source: Source = source
        self._pieces: list[bytes] = []
        self._unsent = memoryview(b"")
        self._backlog = 0
        """Bytes that are to be sent."""

    def write(self, data: bytes) -> None:
        """Send bytes at the end of the burst."""
        self._pieces.append(data)
        self.grew(len(data))

    def grew(self, size: int) -> None:
        """The source has so many bytes more for the end of the burst."""
        self._backlog += size
        if self.waits:
            self._check_backlog()
        elif not defer(self):
            self.settle()

    def settle(self) -> None:
        """See `Outlet`; a task does what the socket does not take now."""
        if self.waits or not self._take():
            return
        self._send_some()
        if self._unsent:
            self.waits = True
            self.tasks.start_soon(self._send_all)
            woke()
            self._check_backlog()

    async def send_rest(self, patience: trio.CancelScope | None = None) -> None:
        """Send all there is, as the client reads; the caller bounds it.

        patience: its deadline moves on with each piece that is sent.
        """
        while self._take():
            await trio.lowlevel.wait_writable(self._sock)
            self._send_some()
            if patience is not None:
                patience.deadline = trio.current_time() + _STALLED

    def close(self) -> None:
        """Send nothing any more."""
        self._source = _NOBODY  # else both would wait for the garbage collector
        self._pieces.clear()
        self._unsent = memoryview(b"")

    async def _send_all(self) -> None:
        with trio.move_on_after(_STALLED) as patience:
            await self.send_rest(patience)
        self.waits = False
        if patience.cancelled_caught:
            self._source.on_broken()
        else:
            self._source.on_caught_up()

    def _take(self) -> bool:
        """Make what has gathered what is unsent; False where there is nothing."""
        if not self._unsent:
            pieces = self._pieces
            if more := self._source.take():
                pieces.append(more)
            self._unsent = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            self._backlog = len(self._unsent)
            pieces.clear()
        return bool(self._unsent)

    def _send_some(self) -> None:
        """Give the socket what it takes of what is unsent."""
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            source = self._source
            self.close()
            source.on_broken()
            return
        self._unsent = self._unsent[sent:]
        self._backlog -= sent

    def _check_backlog(self) -> None:
        if self._backlog > _BACKLOG:
            self._source.on_behind()
