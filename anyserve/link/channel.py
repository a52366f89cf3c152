"""The Trio side of a worker link: frames over a stream socket, many to a write and to a read."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress

import trio

from anyserve.burst import defer
from anyserve.link.frames import Buffer, Frame, FrameDecoder
from anyserve.waiting import Waiter

_READ_SIZE = 1 << 16
_JOIN_LIMIT = 1 << 16
"""Pieces up to this size are joined into one write; larger ones are written from where they lie."""


class LinkClosed(Exception):
    """The other end of the link is gone."""


class FrameChannel:
    """Frames both ways over one end of a socket pair, which it owns.

    `send` never waits: what it takes is bounded by the calls in flight and their credit. What has
    gathered goes out in one write: see `anyserve.burst`, and else by the task that runs
    `run_writer`.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._outbox: list[Buffer] = []
        self._unsent: list[Buffer] = []
        self._due = False
        self._writer = Waiter()
        self._decoder = FrameDecoder()
        self._closed = False

    def send(self, pieces: Buffer | Iterable[Buffer], *, last: bool = False) -> None:
        """Queue a frame, whole or in pieces; write it now where it is the last for a while.

        Dropped when the link is closed.
        """
        if self._closed:
            return
        if isinstance(pieces, bytes | bytearray | memoryview):
            self._outbox.append(pieces)
        else:
            self._outbox.extend(pieces)
        if last:
            self.settle()
        elif not self._due:
            self._due = True
            if not defer(self):
                self._writer.wake()

    def settle(self) -> None:
        """See `Outlet`; the writer does the rest."""
        if not self._unsent and not self._closed:
            self._due = False
            self._gather()
            with suppress(LinkClosed):  # the reader sees the end of file
                self._write_some()
        if self._unsent:
            self._due = True
            self._writer.wake()

    async def run_writer(self) -> None:
        """Write what `send` queues, until cancelled. Raises `LinkClosed` when nobody reads."""
        while True:
            while not self._due:
                await self._writer.wait()
            await self.flush()

    async def flush(self) -> None:
        """Write what is queued now; waits for the other end to read. Raises `LinkClosed`.

        Cancelled, it keeps what is not written.
        """
        self._due = False
        try:
            while self._outbox or self._unsent:
                if not self._unsent:
                    self._gather()
                self._write_some()
                if self._unsent:
                    await trio.lowlevel.wait_writable(self._sock)
        except trio.ClosedResourceError as error:
            raise LinkClosed("the link is closed") from error
        except BaseException:
            self._due = True
            raise

    async def receive(self) -> list[Frame]:
        """The frames that the next read completes, at least one; none at end of file."""
        while True:
            try:
                await trio.lowlevel.wait_readable(self._sock)
                data = self._sock.recv(_READ_SIZE)
            except BlockingIOError:
                continue
            except (OSError, trio.ClosedResourceError):
                return []
            if not data:
                return []
            frames = self._decoder.feed(data)
            if frames:
                return frames

    async def aclose(self) -> None:
        """Close the socket."""
        self._closed = True
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
        await trio.lowlevel.checkpoint()

    def _gather(self) -> None:
        """Make what is queued the next to be written, in as few pieces as may be."""
        outbox, self._outbox = self._outbox, []
        run: list[Buffer] = []
        for piece in outbox:
            if len(piece) < _JOIN_LIMIT:
                run.append(piece)
                continue
            if run:
                self._unsent.append(b"".join(run))
                run = []
            self._unsent.append(piece)
        if run:
            self._unsent.append(b"".join(run))

    def _write_some(self) -> None:
        """Write until the socket takes no more; raises `LinkClosed`."""
        unsent = self._unsent
        try:
            while unsent:
                piece = unsent[0]
                sent = self._sock.send(piece)
                if sent == len(piece):
                    del unsent[0]
                else:
                    unsent[0] = memoryview(piece)[sent:]
        except BlockingIOError:
            return
        except OSError as error:
            self._closed = True
            unsent.clear()
            raise LinkClosed("the other end of the worker link is gone") from error
