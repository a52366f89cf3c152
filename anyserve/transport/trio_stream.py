"""One HTTP/2 stream on Trio's sockets: what has arrived on it, and its turns at sending."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from anyserve.burst import woke
from anyserve.errors import AnyServeError, Cancelled
from anyserve.transport.headers import Headers
from anyserve.transport.http2 import StreamGone
from anyserve.transport.rpc import Buffer
from anyserve.transport.wire import ErrorCode
from anyserve.waiting import Waiter

if TYPE_CHECKING:
    from anyserve.transport.trio_connection import Connection

PART = 64 * 1024
"""Bytes of one stream in one output of its connection, so that other streams come between."""
_PUSHES = 4
"""Such parts that a stream writes at once before others have a turn."""


class Stream:
    """A `WireStream`, but for what makes it a server's or a client's."""

    # What most streams change once, if at all.
    closed = False
    """Whether HTTP/2 knows it no more."""
    peer_ended = False
    """Whether the peer has said all it had to say."""
    left = False
    """Whether nobody here wants anything of it any more."""
    failure: AnyServeError | None = None
    """What it has failed with, which ends every wait at it."""
    on_news: Callable[[], None] | None = None
    """Called when something has arrived, or the stream has failed; must not wait."""
    _begun = False
    _ended = False

    def __init__(self, connection: Connection, stream_id: int) -> None:
        self.id = stream_id
        self.peer = connection.peer
        self.may_send = Waiter()
        """Where the sender waits, for the stream's window or for its turn at the connection."""
        self._connection = connection
        self._http2 = connection.http2
        self._chunks: list[bytes] = []
        self._news = Waiter()

    async def receive(self) -> list[bytes]:
        """See `WireStream`; returns without a turn of the loop where something is here."""
        while not self._chunks and not self.peer_ended:
            await self.news()
        return self.take()

    async def news(self) -> None:
        """Wait until something has arrived; raises what the stream has failed with."""
        await self._check_alive()
        await self._news.wait()

    def send_now(
        self,
        headers: Headers | None = None,
        data: tuple[Buffer, ...] = (),
        trailers: Headers | None = None,
        end: bool = False,
    ) -> bool:
        """See `WireStream`."""
        if self.closed or self._ended:
            return False
        connection = self._connection
        if data:
            size = len(data[0]) if len(data) == 1 else sum(map(len, data))
            if size > PART or size > connection.room(self):
                return False
            connection.flood.sent(size)
        try:
            if headers is not None:
                self._begin(headers)
            for part in data:
                self._http2.send_data(self.id, part)
            if trailers is not None or end:
                self._end(trailers, end)
        except StreamGone:
            # The peer has reset it, and that event is still on its way here.
            return False
        connection.wake()
        return True

    async def send(
        self,
        headers: Headers | None = None,
        data: tuple[Buffer, ...] = (),
        trailers: Headers | None = None,
        end: bool = False,
    ) -> None:
        """See `WireStream`."""
        await self._check_alive()
        connection = self._connection
        if headers is not None:
            self._begin(headers)
            connection.wake()
        pushed = 0
        for part in data:
            left = memoryview(part)
            while left:
                room = await self._room()
                self._http2.send_data(self.id, left[:room])
                connection.flood.sent(min(room, len(left)))
                left = left[room:]
                if left:
                    connection.push()
                    pushed += 1
                    if pushed % _PUSHES == 0:
                        await trio.lowlevel.checkpoint()
                else:
                    connection.wake()
                connection.share_room()
        if trailers is not None or end:
            await self._check_alive()
            self._end(trailers, end)
            connection.wake()

    def end_now(self, trailers: Headers) -> None:
        """See `WireStream`."""
        if self.open:
            # What the peer has reset may have that event still before it.
            with suppress(StreamGone):
                self._end(trailers, True)
            self._connection.wake()

    def reset(self, code: int = ErrorCode.CANCEL) -> None:
        """See `WireStream`; an answer that is complete is sent before."""
        self.left = True
        self.take()
        if self.closed or (self._ended and self.peer_ended):
            return
        self._connection.reset(self.id, code, after_output=self._ended)
        self._ended = True

    @property
    def open(self) -> bool:
        """Whether anything can still be sent on it."""
        return not self.closed and not self._ended

    def arrived(self, data: bytes, ended: bool) -> None:
        """The peer has sent DATA."""
        if not self.left:
            if data:
                self._chunks.append(data)
        elif data:
            self._connection.consume(self.id, len(data))
        if ended:
            self.peer_ended = True
        self._news.wake()
        if self.on_news is not None:
            self.on_news()

    def lost(self, error: AnyServeError) -> None:
        """It has failed with `error`, which ends every wait at it."""
        self.closed = True
        woke()  # a server has cancelled the call
        if self.failure is None:
            self.failure = error
        self._news.wake()
        self.may_send.wake()
        if self.on_news is not None:
            self.on_news()

    def take(self) -> list[bytes]:
        """The bytes that have arrived, whose window is given back by that."""
        chunks = self._chunks
        if chunks:
            self._chunks = []
            size = len(chunks[0]) if len(chunks) == 1 else sum(map(len, chunks))
            self._connection.consume(self.id, size)
        return chunks

    def _begin(self, headers: Headers) -> None:
        self._begun = True
        self._http2.respond(self.id, headers)

    def _end(self, trailers: Headers | None, end: bool) -> None:
        if trailers is not None:
            self._ended = True
            if self._begun:
                self._http2.send_trailers(self.id, trailers)
            else:
                self._http2.respond(self.id, trailers, end=True)
        elif end:
            self._ended = True
            self._http2.end(self.id)

    async def _room(self) -> int:
        """Bytes that may be queued now, at least one; waits for the peer and for others' turns."""
        connection = self._connection
        while True:
            try:
                await self._check_alive()
                room = min(connection.room(self), PART - self._http2.queued(self.id))
            except BaseException:
                # Whoever waits behind this one may have what it cannot use.
                connection.share_room()
                raise
            if room > 0:
                return room
            await connection.wait_for_room(self)

    async def _check_alive(self) -> None:
        if self.failure is not None:
            # On a server the scope is cancelled too, and that is what its handler is to see.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise self.failure
        if self.closed:
            raise Cancelled("the stream is closed")
