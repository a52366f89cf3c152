"""HTTP/2 streams of a grpclib connection for Trio tasks, in place of grpclib's own streams.

grpclib's streams wait in asyncio. These have the same hooks for its event processor, and waits of
Trio, so that a call is one Trio task and nothing of it crosses between the two loops.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Literal

import trio
from h2.errors import ErrorCodes

from anyserve.errors import AnyServeError, Cancelled, Unavailable
from anyserve.transport.headers import Headers
from anyserve.transport.rpc import MIB, Buffer

if TYPE_CHECKING:
    from anyserve.transport.grpclib_connection import TrioConnection

_MAX_WRITE = MIB // 4
"""Bytes of one call in one write, so that other calls come between."""


class Gate(asyncio.Event):
    """grpclib's kind of event, for Trio tasks to wait at."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting = trio.lowlevel.ParkingLot()

    def set(self) -> None:
        super().set()
        self._waiting.unpark_all()

    async def wait(self) -> Literal[True]:
        """Wait until it is set; bounded by the caller."""
        while not self.is_set():
            await self._waiting.park()
        return True

    async def next(self) -> None:
        """Wait until it is set from now on; bounded by the caller."""
        self.clear()
        await self.wait()


class Body:
    """DATA that has arrived on a stream and was not taken yet; bounded by the stream's window."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[bytes, int]] = deque()
        self._unseen = 0
        self.ended = False
        self.arrived = Gate()

    def add(self, data: bytes, ack_size: int) -> None:
        """Hold `data`; the peer's window is owed `ack_size` for it, padding included."""
        self._chunks.append((data, ack_size))
        self.arrived.set()

    def eof(self) -> None:
        """The peer has ended its side."""
        self.ended = True
        self.arrived.set()

    def take(self) -> tuple[bytes, int] | None:
        """The oldest chunk and what is owed for it."""
        return self._chunks.popleft() if self._chunks else None

    def unacked_size(self) -> int:
        """Forget what is left, and say what is owed for it; grpclib calls it at the end."""
        owed = sum(ack_size for _, ack_size in self._chunks)
        self._chunks.clear()
        return owed


class H2Wire:
    """A `WireStream` on a grpclib connection, in place of grpclib's own stream."""

    def __init__(self, connection: TrioConnection, stream_id: int) -> None:
        self.id = stream_id
        self.peer = connection.peer
        self.scope = trio.CancelScope()
        self.buffer = Body()
        self.window_updated = Gate()
        self.headers: Headers | None = None
        self.headers_received = Gate()
        self.trailers: Headers | None = None
        self.trailers_received = Gate()
        self.data_received = 0
        self.failure: AnyServeError | None = None
        self._connection = connection
        self._h2 = connection.h2

    async def receive(self) -> list[bytes]:
        """See `WireStream`."""
        chunks: list[bytes] = []
        while True:
            while (chunk := self.buffer.take()) is not None:
                data, ack_size = chunk
                self._connection.ack(self.id, ack_size)
                if data:
                    chunks.append(data)
            if chunks or self.buffer.ended:
                return chunks
            await self._check_alive()
            await self.buffer.arrived.next()

    def send_now(
        self,
        headers: Headers | None = None,
        data: tuple[Buffer, ...] = (),
        trailers: Headers | None = None,
        end: bool = False,
    ) -> bool:
        """See `WireStream`; this one takes the way of `send` always."""
        return False

    async def send(
        self,
        headers: Headers | None = None,
        data: tuple[Buffer, ...] = (),
        trailers: Headers | None = None,
        end: bool = False,
    ) -> None:
        """See `WireStream`."""
        await self._writable()
        if headers:
            self._h2.send_headers(self.id, headers, end_stream=end and not data)
        left = memoryview(b"".join(data))
        unflushed = 0
        while left:
            room = min(
                self._h2.local_flow_control_window(self.id),
                self._h2.max_outbound_frame_size,
                _MAX_WRITE - unflushed,
            )
            if room <= 0:
                self._connection.flush()
                if unflushed == _MAX_WRITE:
                    await trio.lowlevel.checkpoint()
                else:
                    await self.window_updated.next()
                unflushed = 0
                await self._writable()
                continue
            part, left = left[:room], left[room:]
            self._h2.send_data(self.id, part, end_stream=end and not left)
            unflushed += len(part)
        if trailers:
            self._h2.send_headers(self.id, trailers, end_stream=True)
        elif end and not data and not headers:
            self._h2.end_stream(self.id)
        self._connection.flush()

    def flush(self) -> None:
        """Send the headers that wait."""
        self._connection.flush()

    def end_now(self, trailers: Headers) -> None:
        """See `WireStream`."""
        if self.open:
            self._h2.send_headers(self.id, trailers, end_stream=True)
            self._connection.flush()

    def reset(self, code: ErrorCodes = ErrorCodes.CANCEL) -> None:
        """See `WireStream`."""
        if self.open:
            self._h2.reset_stream(self.id, error_code=code)
            self._connection.flush()
        self.fail(Cancelled("the call was given up here"))

    def fail(self, error: AnyServeError) -> None:
        """End every wait at this stream with `error`."""
        if self.failure is None:
            self.failure = error
        for gate in (
            self.buffer.arrived,
            self.window_updated,
            self.headers_received,
            self.trailers_received,
        ):
            gate.set()

    @property
    def open(self) -> bool:
        """Whether anything can still be sent on it."""
        stream = self._h2.streams.get(self.id)
        return not self._connection.is_closing() and stream is not None and not stream.closed

    async def received_headers(self) -> Headers:
        """The answer's headers, on a client; waits for them, raises what the stream failed with."""
        while self.headers is None:
            await self._check_alive()
            await self.headers_received.next()
        return self.headers

    async def received_trailers(self) -> Headers:
        """The answer's trailers, on a client; waits for them, raises what the stream failed with.

        None at all, in a stream that the server has ended, is empty.
        """
        while self.trailers is None and not self.buffer.ended:
            await self._check_alive()
            await self.trailers_received.next()
        return self.trailers or ()

    def __ended__(self) -> None:
        self.buffer.eof()
        self.trailers_received.set()

    def __terminated__(self, reason: str) -> None:
        self.fail(Unavailable(f"the connection to {self.peer} is lost: {reason}"))

    async def _writable(self) -> None:
        await self._connection.write_ready.wait()
        await self._check_alive()
        if not self.open:
            raise Cancelled("the stream is closed")

    async def _check_alive(self) -> None:
        if self.failure is not None:
            # On a server the scope is cancelled too, and that is what its handler is to see.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise self.failure
