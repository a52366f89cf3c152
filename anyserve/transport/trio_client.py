"""A gRPC channel on Trio's own sockets."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from anyserve.burst import woke
from anyserve.errors import AnyServeError, Unavailable
from anyserve.transport import channel, http2
from anyserve.transport.address import Address, TcpAddress, parse_address
from anyserve.transport.channel import ClientConnection
from anyserve.transport.framing import pack
from anyserve.transport.headers import TIMEOUT, Headers, encode_timeout
from anyserve.transport.outgoing import Answers, Outgoing, call_headers
from anyserve.transport.rpc import Buffer, Limits
from anyserve.transport.trio_connection import Connection
from anyserve.transport.trio_stream import Stream
from anyserve.transport.wire import NotTaken

_MAX_CONCURRENT_STREAMS = 3
_CONNECT_TIMEOUT = 3.0
"""Seconds for a server to take the connection of a call that no task waits for."""
_CLOSE_GRACE = 0.1
"""Seconds for a server's socket to take the last resets."""


class _Wire(Stream):
    """The client's end of a stream."""

    def __init__(self, connection: Connection, stream_id: int) -> None:
        super().__init__(connection, stream_id)
        self.headers: Headers | None = None
        self.trailers: Headers | None = None

    async def received_headers(self) -> Headers:
        """See `ClientWire`."""
        while self.headers is None:
            await self.news()
        return self.headers

    async def received_trailers(self) -> Headers:
        """See `ClientWire`."""
        while self.trailers is None and not self.peer_ended:
            await self.news()
        return self.trailers or ()

    def flush(self) -> None:
        """See `ClientWire`."""
        self._connection.wake()


class _Connection(Connection):
    """One connection of a channel with its calls."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, client=True, max_streams=0)
        self.usable = True
        """Whether it takes new calls."""
        self._allowed: float = math.inf
        self._greeted = trio.Event()
        self._room_for_calls = trio.lowlevel.ParkingLot()
        self._handlers[http2.ResponseReceived] = self._on_response
        self._handlers[http2.TrailersReceived] = self._on_trailers
        self._handlers[http2.GoAwayReceived] = self._on_goaway

    async def run(self) -> None:
        """Own the connection until it is closed; cancelled, its calls fail."""
        try:
            async with trio.open_nursery() as io:
                io.start_soon(self.write)
                await self.read()
                io.cancel_scope.cancel()
        finally:
            await self.close(_CLOSE_GRACE)

    async def greeted(self) -> None:
        """Wait for the server's settings, which say how many calls it allows; raises if it ends."""
        await self._greeted.wait()
        if self.ended is not None:
            raise Unavailable(f"the connection to {self.peer} is lost: {self.ended}")

    async def begin(self, headers: Headers) -> _Wire | None:
        """See `ClientConnection`."""
        while self.usable:
            wire = self.begin_now(headers)
            if wire is not None:
                return wire
            if self.usable:
                await self._room_for_calls.park()
        return None

    def begin_now(self, headers: Headers) -> _Wire | None:
        """A new call as `begin` gives it; None where the server allows no more, or none at all."""
        if not self.usable or len(self.streams) >= self._allowed:
            return None
        try:
            wire = _Wire(self, self.http2.request(headers))
        except http2.NoMoreStreams:
            self.retire()
            return None
        self.streams[wire.id] = wire
        # Not before it has put the headers in its output does HTTP/2 know the stream.
        self._early.append(self._output())
        return wire

    def release(self, wire: _Wire) -> None:
        """See `ClientConnection`."""
        self._end_if_done()

    def retire(self) -> None:
        """See `Connection`; it closes once the calls in flight have ended."""
        self.usable = False
        self._room_for_calls.unpark_all()
        woke()
        self._end_if_done()

    def end(self, reason: str) -> None:
        """See `Connection`."""
        self.usable = False
        super().end(reason)
        self._greeted.set()
        self._room_for_calls.unpark_all()

    def _end_if_done(self) -> None:
        if not self.usable and not self.streams:
            self.end("it is done")

    def _on_stream_closed(self, event: http2.StreamClosed) -> None:
        super()._on_stream_closed(event)
        self._room_for_calls.unpark()
        woke()
        self._end_if_done()

    def _on_settings(self, event: http2.SettingsReceived) -> None:
        super()._on_settings(event)
        self._allowed = event.settings.get(_MAX_CONCURRENT_STREAMS, self._allowed)
        self._greeted.set()
        self._room_for_calls.unpark_all()

    def _on_response(self, event: http2.ResponseReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if isinstance(stream, _Wire):
            stream.headers = http2.decode(event.headers)
            stream.arrived(b"", event.end_stream)

    def _on_trailers(self, event: http2.TrailersReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if isinstance(stream, _Wire):
            stream.trailers = http2.decode(event.headers)
            stream.arrived(b"", ended=True)

    def _on_goaway(self, event: http2.GoAwayReceived) -> None:
        if event.error_code:
            self.end(f"the server ended it with error {event.error_code}")
        else:
            self.retire()


class Channel(channel.Channel):
    """Calls to one server; see `open_channel`."""

    def __init__(self, address: Address, limits: Limits, connections: trio.Nursery) -> None:
        super().__init__(address, limits)
        self._connections = connections

    async def connect(self) -> ClientConnection:
        """See `channel.Channel`."""
        try:
            if isinstance(self.address, TcpAddress):
                stream = await trio.open_tcp_stream(self.address.host, self.address.port)
            else:
                stream = await trio.open_unix_socket(self.address.path)
        except OSError as error:
            # Trio says that all attempts failed, and in the cause how.
            cause = error.__cause__
            raise (cause if isinstance(cause, OSError) else error) from None
        sock = socket.socket(fileno=stream.socket.detach())
        connection = _Connection(sock)
        self._connections.start_soon(connection.run)
        try:
            await connection.greeted()
        except BaseException:
            connection.end("nobody waits for it")
            raise
        return connection

    def call(
        self,
        path: str,
        message: Sequence[Buffer],
        answers: Answers,
        *,
        deadline: float = math.inf,
        metadata: tuple[tuple[str, str | bytes], ...] = (),
    ) -> Outgoing:
        """Begin a call of one message, which `answers` hears of later.

        Where it has to wait, for a connection or for the server to read, a task of the channel
        does. `NotTaken` says that there was nobody to take it, too.

        deadline: on Trio's clock; it goes along, and the caller keeps it.
        """
        outgoing = Outgoing(answers, self.limits.max_message_bytes)
        connection = self._connection
        if isinstance(connection, _Connection):
            wire = connection.begin_now(self._headers(path, deadline, metadata))
            if wire is not None:
                outgoing.begin(wire, partial(connection.release, wire))
                if not wire.send_now(None, pack(message), None, True):
                    self._start(outgoing, partial(outgoing.send, wire, message))
                return outgoing
        self._start(
            outgoing, partial(self._call_later, outgoing, path, message, deadline, metadata)
        )
        return outgoing

    def _headers(
        self, path: str, deadline: float, metadata: tuple[tuple[str, str | bytes], ...]
    ) -> Headers:
        headers = call_headers(path, self._authority, metadata)
        if deadline == math.inf:
            return headers
        return (*headers, (TIMEOUT, encode_timeout(deadline - trio.current_time())))

    def _start(self, outgoing: Outgoing, task: Callable[[], Awaitable[None]]) -> None:
        """Let a task do for a call what has to wait, for as long as the call lasts."""

        async def run() -> None:
            closed = True
            try:
                with scope:
                    await task()
                closed = False
            finally:
                if closed:  # whatever is raised for that: Trio has groups of Cancelled, too
                    why = f"the channel to {self.address} is closed"
                    outgoing.fail(Unavailable(why) if outgoing.begun else NotTaken(why))

        scope = outgoing.scope = trio.CancelScope()
        self._connections.start_soon(run)

    async def _call_later(
        self,
        outgoing: Outgoing,
        path: str,
        message: Sequence[Buffer],
        deadline: float,
        metadata: tuple[tuple[str, str | bytes], ...],
    ) -> None:
        try:
            connection, wire = await self._begin_in_time(path, deadline, metadata)
        except AnyServeError as error:
            outgoing.fail(NotTaken(error.message))
            return
        if outgoing.over:
            wire.reset()
            return
        outgoing.begin(wire, partial(connection.release, wire))
        await outgoing.send(wire, message)

    async def _begin_in_time(
        self, path: str, deadline: float, metadata: tuple[tuple[str, str | bytes], ...]
    ) -> tuple[_Connection, _Wire]:
        """A call on a connection that is there within some seconds; raises `Unavailable`."""
        for _ in range(channel.CONNECTIONS):
            connection: ClientConnection | None = None
            with trio.move_on_after(_CONNECT_TIMEOUT):
                connection = await self._connected()
            if connection is None:
                raise Unavailable(f"{self.address} does not answer")
            assert isinstance(connection, _Connection)
            wire = await connection.begin(self._headers(path, deadline, metadata))
            if wire is not None:
                return connection, wire
        raise Unavailable(f"{self.address} takes connections and no calls")


@asynccontextmanager
async def open_channel(
    address: str | Address, *, limits: Limits | None = None
) -> AsyncIterator[Channel]:
    """A channel to `host:port` or `unix:/path`; it connects at its first call, and again when lost.

    Leaving the block ends the calls that are still open with `Unavailable` and closes the
    connection. Raises `InvalidArgument` for what is no address.
    """
    target = parse_address(address) if isinstance(address, str) else address
    failure: Exception | None = None
    async with trio.open_nursery() as connections:
        try:
            yield Channel(target, limits or Limits(), connections)
        except Exception as error:
            # It leaves as it is, not in a group that the block knows nothing of.
            failure = error
        connections.cancel_scope.cancel()
    if failure is not None:
        raise failure
