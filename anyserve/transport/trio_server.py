"""Serves gRPC services on Trio's own sockets."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterable
from functools import lru_cache

import trio

from anyserve.errors import AnyServeError
from anyserve.transport import headers as h
from anyserve.transport import http2
from anyserve.transport.address import Address
from anyserve.transport.call import ServerCall, run_call
from anyserve.transport.http2 import RawHeaders
from anyserve.transport.rpc import Limits, Service
from anyserve.transport.server import CLOSE_GRACE, Server, serve_connections
from anyserve.transport.trio_connection import READ_BUFFER, Connection
from anyserve.transport.trio_stream import Stream
from anyserve.transport.wire import ErrorCode

_TIMEOUT = h.TIMEOUT.encode()
_REMEMBERED = 64
"""Heads of requests that are kept parsed; most calls of a client send the same."""


class _Wire(Stream):
    """The server's end of a stream."""

    def __init__(self, connection: Connection, stream_id: int) -> None:
        super().__init__(connection, stream_id)
        self.scope = trio.CancelScope()

    def lost(self, error: AnyServeError) -> None:
        # First the cancellation, so that a handler that waits for its client sees that.
        self.scope.cancel()
        super().lost(error)


class _Connection(Connection):
    """One connection of a server with its calls."""

    def __init__(self, server: Server, sock: socket.socket, buffer: memoryview) -> None:
        self._max_calls = server.calls.limits.max_streams
        super().__init__(sock, buffer, client=False, max_streams=self._max_calls)
        self._server = server
        self._calls: trio.Nursery
        self._running = 0
        self._leaving = False
        self._handlers[http2.RequestReceived] = self._on_request
        self._handlers[http2.TrailersReceived] = self._on_trailers

    async def run(self) -> None:
        """Own the connection until it is closed and its calls have ended.

        Cancelled, it cancels the calls, and closes the connection once they have ended.
        """
        self._server.connected(self)
        try:
            async with trio.open_nursery() as io:
                io.start_soon(self.write)
                async with trio.open_nursery() as self._calls:
                    await self.read()
                io.cancel_scope.cancel()
        finally:
            self.go_away()
            await self.close(CLOSE_GRACE)
            self._server.connections.discard(self)

    def go_away(self) -> None:
        """Tell the client to take its next calls elsewhere."""
        if self.ended is None and not self._leaving:
            self._leaving = True
            self.http2.go_away()
            self.wake()

    def retire(self) -> None:
        """See `Connection`."""
        self.go_away()

    def _on_request(self, event: http2.RequestReceived) -> None:
        wire = _Wire(self, event.stream_id)
        wire.peer_ended = event.end_stream
        self.streams[event.stream_id] = wire
        if self._server.draining or self._running >= self._max_calls:
            wire.reset(ErrorCode.REFUSED_STREAM)
            return
        try:
            head, timeout = _read_head(event.headers)
            call = self._server.calls.begin(wire, head, timeout)
        except h.Refusal as refusal:
            wire.end_now(refusal.answer)
            wire.reset(ErrorCode.NO_ERROR)
            return
        self._running += 1
        self._server.call_began()
        self._calls.start_soon(self._run_call, wire, call)

    def _on_trailers(self, event: http2.TrailersReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            stream.arrived(b"", ended=True)

    async def _run_call(self, wire: _Wire, call: ServerCall) -> None:
        try:
            if not wire.closed:
                await run_call(call)
        finally:
            # The answer is complete; what the client still sends has no reader.
            wire.reset(ErrorCode.NO_ERROR)
            self._running -= 1
            self._server.call_ended()


def _read_head(raw: RawHeaders) -> tuple[h.RequestHead, float]:
    """What a call's headers say; raises `Refusal`. Only the time that is left is never the same."""
    for field in raw:
        if field[0] == _TIMEOUT:
            rest = tuple(field for field in raw if field[0] != _TIMEOUT)
            return _parse_head(rest), h.parse_timeout(http2.decode(raw))
    return _parse_head(raw), math.inf


@lru_cache(_REMEMBERED)
def _parse_head(raw: RawHeaders) -> h.RequestHead:
    return h.parse_request(http2.decode(raw))


async def serve(
    services: Iterable[Service],
    address: Address,
    *,
    limits: Limits | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `task_status` gets the `Server` once clients can connect.

    Each call is a Trio task of this one, and has ended when this returns: cancelled, it cancels
    the calls, tells their clients UNAVAILABLE, gives them a second to read that, and closes the
    connections. A Unix socket is unlinked at the end. Raises `CannotListen`, before it has
    started, for an address that is taken or not ours.
    """
    buffer = memoryview(bytearray(READ_BUFFER))

    async def run_connection(server: Server, sock: socket.socket) -> None:
        await _Connection(server, sock, buffer).run()

    await serve_connections(services, address, limits or Limits(), run_connection, task_status)
