"""Serves gRPC services on Trio through grpclib's connections."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import trio
from anyserve_actors.asyncio_bridge import Bridge
from grpclib.const import Handler as Method
from grpclib.protocol import AbstractHandler
from h2.errors import ErrorCodes

from anyserve.transport.address import Address, TcpAddress, UnixAddress
from anyserve.transport.call import run_call
from anyserve.transport.grpclib_connection import TrioProtocol, use_bridge
from anyserve.transport.grpclib_stream import Gate, H2Wire
from anyserve.transport.headers import Headers
from anyserve.transport.rpc import Limits, Service

_BACKLOG = 1024
_CLOSE_GRACE = 1.0
"""Seconds for a client to read its last answers when the server stops."""


class CannotListen(OSError):
    """The address cannot be listened on; the message is one line that says why."""


@attrs.frozen
class ServerStatistics:
    """What a server holds at the moment."""

    connections: int
    calls: int
    draining: bool


@attrs.define(eq=False)
class Server:
    """A server that runs; see `serve`."""

    address: Address
    """Where clients reach it; the port is the real one."""
    _bridge: Bridge
    _methods: Mapping[str, Method]
    _limits: Limits
    _accepting: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _connections: set[_Connection] = attrs.field(factory=set)
    _running: int = 0
    _idle: Gate = attrs.field(factory=Gate)
    _draining: bool = False

    async def drain(self) -> None:
        """Take no more connections and calls, and wait until the calls in flight have ended.

        Clients are told by GOAWAY, so that they take later calls elsewhere; those that still
        arrive are refused as never begun. Nothing bounds the wait but the caller. Cancelled, the
        server goes on draining. May be called again.
        """
        if not self._draining:
            self._draining = True
            self._accepting.cancel()
            for connection in self._connections:
                connection.go_away()
        await trio.lowlevel.checkpoint()
        while self._running:
            await self._idle.next()

    def statistics(self) -> ServerStatistics:
        """What the server holds now."""
        return ServerStatistics(len(self._connections), self._running, self._draining)

    async def _accept(self, listeners: list[trio.SocketListener], owner: trio.Nursery) -> None:
        with self._accepting:
            await trio.serve_listeners(self._serve_connection, listeners, handler_nursery=owner)

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        await _Connection(self).run(socket.socket(fileno=stream.socket.detach()))


class _Connection(AbstractHandler):
    """One connection of a server with its calls, and what grpclib tells about them."""

    def __init__(self, server: Server) -> None:
        self.protocol = TrioProtocol(
            self, server._bridge.loop, client=False, limits=server._limits, on_made=self._made
        )
        self._server = server
        self._calls: trio.Nursery
        self._releases: dict[H2Wire, Callable[[], None]] = {}

    async def run(self, sock: socket.socket) -> None:
        """Own the connection until it is closed and its calls have ended.

        Cancelled, it cancels the calls, and closes the connection once they have ended.
        """
        bridge = self._server._bridge
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
                await self.protocol.shut("the server is stopping", _CLOSE_GRACE)
            self._server._connections.discard(self)

    def accept(self, stream: Any, headers: Any, release_stream: Callable[[], None]) -> None:
        """A call begins; refused as never begun where this server or connection has no room."""
        server = self._server
        if server._draining or len(self._releases) >= server._limits.max_streams:
            stream.reset(ErrorCodes.REFUSED_STREAM)
            release_stream()
            return
        self._releases[stream] = release_stream
        server._running += 1
        self._calls.start_soon(self._run_call, stream, headers)

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
        self._server._connections.add(self)
        if self._server._draining:
            self.go_away()

    async def _run_call(self, wire: H2Wire, headers: Headers) -> None:
        server = self._server
        try:
            await run_call(wire, headers, server._methods, server._limits)
        finally:
            # The answer is complete; what the client still sends has no reader.
            wire.reset(ErrorCodes.NO_ERROR)
            self._releases.pop(wire)()
            server._running -= 1
            if not server._running:
                server._idle.set()


async def serve(
    services: Iterable[Service],
    address: Address,
    *,
    limits: Limits | None = None,
    bridge: Bridge | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `task_status` gets the `Server` once clients can connect.

    Runs on `bridge`, or on one of its own. Each call is a Trio task of this one, and has ended
    when this returns: cancelled, it cancels the calls, tells their clients UNAVAILABLE, gives them
    a second to read that, and closes the connections. A Unix socket is unlinked at the end. Raises
    `CannotListen`, before it has started, for an address that is taken or not ours.
    """
    methods: dict[str, Method] = {}
    for service in services:
        methods.update(service.__mapping__())
    sockets, address = await _listen(address)
    try:
        async with use_bridge(bridge) as bridge, trio.open_nursery() as connections:
            server = Server(address, bridge, methods, limits or Limits())
            listeners = [
                trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets
            ]
            connections.start_soon(server._accept, listeners, connections)
            task_status.started(server)
            await trio.sleep_forever()
    finally:
        for sock in sockets:
            sock.close()
        if isinstance(address, UnixAddress):
            with suppress(FileNotFoundError):
                os.unlink(address.path)


async def _listen(address: Address) -> tuple[list[socket.socket], Address]:
    """Sockets that listen on `address`, one for each IP address of its host, and where they do."""
    sockets: list[socket.socket] = []
    try:
        if isinstance(address, UnixAddress):
            sockets.append(socket.socket(socket.AF_UNIX))
            sockets[0].bind(address.path)
            os.chmod(address.path, 0o600)
        else:
            address = await _bind_tcp(address, sockets)
        for sock in sockets:
            sock.listen(_BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise CannotListen(f"cannot listen on {address}: {error.strerror or error}") from error
    return sockets, address


async def _bind_tcp(address: TcpAddress, sockets: list[socket.socket]) -> TcpAddress:
    """Bind one socket for each IP address of the host, all to the same port; add to `sockets`."""
    found = await trio.socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    port = address.port
    for family, _, _, _, place in found:
        sock = socket.socket(family)
        sockets.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((place[0], port, *place[2:]))
        port = sock.getsockname()[1]
    return TcpAddress(address.host, port)
