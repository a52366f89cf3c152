"""Serves gRPC services on Trio through grpclib's connections: the reference."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import trio
from anyserve_actors.asyncio_bridge import Bridge
from grpclib.protocol import AbstractHandler
from h2.errors import ErrorCodes

from anyserve.transport import headers as h
from anyserve.transport.address import Address
from anyserve.transport.call import run_call
from anyserve.transport.grpclib_connection import TrioProtocol, use_bridge
from anyserve.transport.grpclib_stream import H2Wire
from anyserve.transport.rpc import Limits, Service
from anyserve.transport.server import CLOSE_GRACE, Server, serve_connections


class _Connection(AbstractHandler):
    """One connection of a server with its calls, and what grpclib tells about them."""

    def __init__(self, server: Server, bridge: Bridge) -> None:
        self.protocol = TrioProtocol(
            self, bridge.loop, client=False, limits=server.calls.limits, on_made=self._made
        )
        self._server = server
        self._bridge = bridge
        self._calls: trio.Nursery
        self._releases: dict[H2Wire, Callable[[], None]] = {}

    async def run(self, sock: socket.socket) -> None:
        """Own the connection until it is closed and its calls have ended.

        Cancelled, it cancels the calls, and closes the connection once they have ended.
        """
        bridge = self._bridge
        connect = partial(bridge.loop.connect_accepted_socket, lambda: self.protocol, sock)
        try:
            async with trio.open_nursery() as self._calls:
                with trio.CancelScope(shield=True):
                    # Waits for the loop's turn, not for the peer; cut short, the socket would
                    # belong to nobody.
                    await bridge.run_asyncio(connect)
                await self.protocol.closed.wait()
        finally:
            with trio.CancelScope(shield=True):
                await self.protocol.shut("the server is stopping", CLOSE_GRACE)
            self._server.connections.discard(self)

    def accept(self, stream: Any, headers: Any, release_stream: Callable[[], None]) -> None:
        """A call begins; refused as never begun where this server or connection has no room."""
        server = self._server
        if server.draining or len(self._releases) >= server.calls.limits.max_streams:
            stream.reset(ErrorCodes.REFUSED_STREAM)
            release_stream()
            return
        self._releases[stream] = release_stream
        server.call_began()
        self._calls.start_soon(self._run_call, stream, tuple(headers))

    def cancel(self, stream: Any) -> None:
        """The client has reset the call."""
        stream.scope.cancel()

    def close(self) -> None:
        """The connection is closed."""
        for wire in self._releases:
            wire.scope.cancel()

    def go_away(self) -> None:
        """Tell the client to take its next calls elsewhere."""
        self.protocol.connection.go_away()

    def _made(self) -> None:
        self._server.connected(self)

    async def _run_call(self, wire: H2Wire, headers: h.Headers) -> None:
        try:
            timeout = h.parse_timeout(headers)
            head, calls = h.parse_request(headers), self._server.calls
            await run_call(calls.begin(wire, head, timeout, calls.method(head)))
        except h.Refusal as refusal:
            wire.end_now(refusal.answer)
        finally:
            # The answer is complete; what the client still sends has no reader.
            wire.reset(ErrorCodes.NO_ERROR)
            self._releases.pop(wire)()
            self._server.call_ended()


async def serve(
    services: Iterable[Service],
    address: Address,
    *,
    limits: Limits | None = None,
    bridge: Bridge | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve as `trio_server.serve` does, on `bridge`, or on one of its own."""

    async def run_connection(server: Server, sock: socket.socket) -> None:
        await _Connection(server, used).run(sock)

    async with use_bridge(bridge) as used:
        await serve_connections(services, address, limits or Limits(), run_connection, task_status)
