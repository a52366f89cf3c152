"""Serves gRPC services on Trio's own sockets."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial

import attrs
import trio
from grpclib.const import Handler as Method

from anyserve.burst import nothing
from anyserve.errors import AnyServeError, Status
from anyserve.transport import headers as h
from anyserve.transport import http2
from anyserve.transport.address import Address
from anyserve.transport.call import run_call, status_of
from anyserve.transport.callback import Callback
from anyserve.transport.framing import only_message, pack
from anyserve.transport.http2 import RawHeaders
from anyserve.transport.rpc import Buffer, Limits, MetadataLike, ServerStream, Service
from anyserve.transport.server import CLOSE_GRACE, Server, serve_connections
from anyserve.transport.trio_connection import Connection
from anyserve.transport.trio_stream import Stream
from anyserve.transport.wire import ErrorCode


@attrs.define
class _Request:
    """What a call's headers say."""

    head: h.RequestHead
    timeout: float
    """Seconds from now on, `inf` for none."""
    method: Method


_TIMEOUT = h.TIMEOUT.encode()
_REMEMBERED = 64
"""Heads of requests that are kept parsed; most calls of a client send the same."""


class _Wire(Stream):
    """The server's end of a stream."""

    scope: trio.CancelScope
    """Of a call that runs as a task."""

    def __init__(self, connection: _Connection, stream_id: int) -> None:
        super().__init__(connection, stream_id)
        self.on_lost: Callable[[], None] = nothing

    def only_message(self, max_bytes: int) -> bytes | None:
        """The message of a unary call, where all of it came at once; else None, and it stays."""
        if not self.peer_ended or len(self._chunks) != 1:
            return None
        message = only_message(self._chunks[0], max_bytes)
        if message is not None:
            self.take()
        return message

    def lost(self, error: AnyServeError) -> None:
        # First the cancellation, so that a handler that waits for its client sees that.
        self.on_lost()
        super().lost(error)


class _CallWithoutTask:
    """A `UnaryCall` that is no task of its own, until its answer has to wait for the client."""

    def __init__(self, connection: _Connection, wire: _Wire, request: _Request) -> None:
        self.metadata = request.head.metadata
        self.deadline = (
            math.inf if request.timeout == math.inf else trio.current_time() + request.timeout
        )
        self.on_gone: Callable[[], None] = nothing
        self._connection = connection
        self._wire = wire
        self._request = request
        self._over = False
        wire.on_lost = self._gone

    def answer(self, pieces: Sequence[Buffer], release: Callable[[], None] = nothing) -> None:
        """See `UnaryCall`."""
        wire = self._wire
        if self._over:
            release()
        elif wire.send_now(h.RESPONSE_HEADERS, pack(pieces), h.OK):
            release()
            self._end()
            self._connection.call_ended()
        else:
            self._end()
            method = self._request.method
            sending = method._replace(func=partial(_send, pieces))
            timeout = self.deadline - trio.current_time()
            request = attrs.evolve(self._request, method=sending, timeout=timeout)
            self._connection.start_task(wire, request, release)

    def fail(self, error: AnyServeError, metadata: MetadataLike | None = None) -> None:
        """See `UnaryCall`."""
        self.end_with(error.status, error.message, metadata)

    def end_with(self, status: Status, message: str, metadata: MetadataLike | None = None) -> None:
        """End with a status, where it has not ended."""
        if not self._over:
            self._wire.end_now(h.trailers_only(status, message, metadata))
            self._end()
            self._connection.call_ended()

    def stop(self) -> None:
        """The server is stopping."""
        on_gone = self.on_gone
        self.end_with(Status.UNAVAILABLE, "the server is stopping")
        on_gone()

    def _gone(self) -> None:
        on_gone = self.on_gone
        self._end()
        self._connection.call_ended()
        on_gone()

    def _end(self) -> None:
        self._over = True
        self.on_gone = self._wire.on_lost = nothing
        self._connection.without_task.discard(self)


async def _send(pieces: Sequence[Buffer], stream: ServerStream) -> None:
    await stream.send_message(pieces)


class _Connection(Connection):
    """One connection of a server with its calls."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._max_calls = server.calls.limits.max_streams
        super().__init__(sock, client=False, max_streams=self._max_calls)
        self.without_task: set[_CallWithoutTask] = set()
        """Calls that have begun, not ended, and are no tasks."""
        self._server = server
        self._calls: trio.Nursery
        self._running = 0
        self._leaving = False
        self._undecided: dict[_Wire, _Request] = {}
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
                    try:
                        await self.read()
                    finally:
                        for call in tuple(self.without_task):
                            call.stop()
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

    def start_task(
        self, wire: _Wire, request: _Request, done: Callable[[], None] = nothing
    ) -> None:
        """Run a call as a task; `done` is called when that has ended."""
        wire.scope = trio.CancelScope()
        wire.on_lost = wire.scope.cancel
        self._calls.start_soon(self._run_call, wire, request, done)

    def call_ended(self) -> None:
        """A call has its answer, which is on the way, or needs none."""
        self._running -= 1
        self._server.call_ended()

    def _feed(self, data: memoryview) -> int:
        events = super()._feed(data)
        for wire in tuple(self._undecided):
            # Its message does not come with its headers.
            self.start_task(wire, self._decided(wire))
        return events

    def _on_request(self, event: http2.RequestReceived) -> None:
        wire = _Wire(self, event.stream_id)
        wire.peer_ended = event.end_stream
        self.streams[event.stream_id] = wire
        if self._server.draining or self._running >= self._max_calls:
            wire.reset(ErrorCode.REFUSED_STREAM)
            return
        try:
            head, timeout = _read_head(event.headers)
            method = self._server.calls.method(head)
        except h.Refusal as refusal:
            wire.end_now(refusal.answer)
            wire.reset(ErrorCode.NO_ERROR)
            return
        self._running += 1
        self._server.call_began()
        request = _Request(head, timeout, method)
        if isinstance(method.func, Callback):
            self._undecided[wire] = request
            # The first bytes of its message decide how it begins.
            wire.on_news = partial(self._begin, wire, method.func)
        else:
            self.start_task(wire, request)

    def _decided(self, wire: _Wire) -> _Request:
        wire.on_news = None
        return self._undecided.pop(wire)

    def _begin(self, wire: _Wire, callback: Callback) -> None:
        """Call a method back, where its message is here; else have it run as a task."""
        request = self._decided(wire)
        message = wire.only_message(self._server.calls.limits.max_message_bytes)
        if message is None:
            self.start_task(wire, request)
            return
        call = _CallWithoutTask(self, wire, request)
        self.without_task.add(call)
        try:
            callback.begin(call, message)
        except Exception as error:
            call.end_with(*status_of(error, request.head.path))

    def _on_trailers(self, event: http2.TrailersReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            stream.arrived(b"", ended=True)

    async def _run_call(self, wire: _Wire, request: _Request, done: Callable[[], None]) -> None:
        try:
            if not wire.closed:
                head, timeout, method = request.head, request.timeout, request.method
                await run_call(self._server.calls.begin(wire, head, timeout, method))
        finally:
            done()
            # The answer is complete; what the client still sends has no reader.
            wire.reset(ErrorCode.NO_ERROR)
            self.call_ended()


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

    async def run_connection(server: Server, sock: socket.socket) -> None:
        await _Connection(server, sock).run()

    await serve_connections(services, address, limits or Limits(), run_connection, task_status)
