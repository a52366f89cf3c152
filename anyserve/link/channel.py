"""The Trio side of a worker link: frames over a stream socket, many to a write and to a read."""

from __future__ import annotations

from collections.abc import Iterable

import trio

from anyserve.link.frames import Buffer, Frame, FrameDecoder

_READ_SIZE = 1 << 16
_JOIN_LIMIT = 1 << 16
"""Pieces up to this size are joined into one write; larger ones are written from where they lie."""


class LinkClosed(Exception):
    """The other end of the link is gone."""


class FrameChannel:
    """Frames both ways over one end of a socket pair.

    `send` never waits: what it takes is bounded by the calls in flight and their credit. What has
    gathered goes out in one write a scheduling tick, by the task that runs `run_writer`.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._outbox: list[Buffer] = []
        self._wake = trio.Event()
        self._decoder = FrameDecoder()
        self._closed = False

    def send(self, pieces: Buffer | Iterable[Buffer]) -> None:
        """Queue a frame, whole or in pieces. Dropped when the link is closed."""
        if self._closed:
            return
        if isinstance(pieces, bytes | bytearray | memoryview):
            self._outbox.append(pieces)
        else:
            self._outbox.extend(pieces)
        self._wake.set()

    async def run_writer(self) -> None:
        """Write what `send` queues, until cancelled. Raises `LinkClosed` when nobody reads."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await self.flush()

    async def flush(self) -> None:
        """Write what is queued now; waits for the other end to read. Raises `LinkClosed`."""
        batch, self._outbox = self._outbox, []
        try:
            for chunk in _joined(batch):
                await self._stream.send_all(chunk)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._closed = True
            raise LinkClosed("the other end of the worker link is gone") from error

    async def receive(self) -> list[Frame]:
        """The frames that the next read completes, at least one; none at end of file."""
        while True:
            try:
                data = await self._stream.receive_some(_READ_SIZE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return []
            if not data:
                return []
            frames = self._decoder.feed(bytes(data))
            if frames:
                return frames

    async def aclose(self) -> None:
        """Close the socket."""
        self._closed = True
        await self._stream.aclose()


def _joined(pieces: list[Buffer]) -> Iterable[Buffer]:
    """The same bytes in as few writes as may be, large pieces uncopied."""
    run: list[Buffer] = []
    for piece in pieces:
        if len(piece) < _JOIN_LIMIT:
            run.append(piece)
            continue
        if run:
            yield b"".join(run)
            run = []
        yield piece
    if run:
        yield b"".join(run)
