"""A server's life, whatever carries its calls: its connections, its calls in flight, its drain."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import attrs
import trio
from grpclib.const import Handler as Method

from anyserve.transport.address import Address
from anyserve.transport.call import Calls
from anyserve.transport.listening import listen
from anyserve.transport.rpc import Limits, Service

CLOSE_GRACE = 1.0
"""Seconds for a client to read its last answers when the server stops."""


class Connection(Protocol):
    """One connection of a server."""

    def go_away(self) -> None:
        """Tell the client to take its next calls elsewhere."""
        ...


@attrs.frozen
class ServerStatistics:
    """What a server holds at the moment."""

    connections: int
    calls: int
    draining: bool


@attrs.define(eq=False)
class Server:
    """A server that runs; see the `serve` of each wire."""

    address: Address
    """Where clients reach it; the port is the real one."""
    calls: Calls
    connections: set[Connection] = attrs.field(factory=set)
    draining: bool = False
    """Whether it takes no more calls."""
    _accepting: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _running: int = 0
    _idle: trio.Event = attrs.field(factory=trio.Event)

    async def drain(self) -> None:
        """Take no more connections and calls, and wait until the calls in flight have ended.

        Clients are told by GOAWAY, so that they take later calls elsewhere; those that still
        arrive are not begun. Nothing bounds the wait but the caller. Cancelled, the server goes
        on draining. May be called again.
        """
        if not self.draining:
            self.draining = True
            self._accepting.cancel()
            for connection in tuple(self.connections):
                connection.go_away()
        await trio.lowlevel.checkpoint()
        if self._running:
            await self._idle.wait()

    def statistics(self) -> ServerStatistics:
        """What the server holds now."""
        return ServerStatistics(len(self.connections), self._running, self.draining)

    def connected(self, connection: Connection) -> None:
        """A connection is there."""
        self.connections.add(connection)
        if self.draining:
            connection.go_away()

    def call_began(self) -> None:
        """A call is taken."""
        self._running += 1

    def call_ended(self) -> None:
        """Its handler has ended, and its answer is on the way."""
        self._running -= 1
        if self.draining and not self._running:
            self._idle.set()

    async def accept(
        self,
        listeners: list[trio.SocketListener],
        handler: Callable[[trio.SocketStream], Awaitable[None]],
        owner: trio.Nursery,
    ) -> None:
        """Start a task of `owner` for each connection, until the server drains."""
        with self._accepting:
            await trio.serve_listeners(handler, listeners, handler_nursery=owner)


async def serve_connections(
    services: Iterable[Service],
    address: Address,
    limits: Limits,
    run_connection: Callable[[Server, socket.socket], Awaitable[None]],
    task_status: trio.TaskStatus[Server],
) -> None:
    """Serve until cancelled: what the `serve` of each wire promises.

    `run_connection` owns its socket and ends with the calls of its connection.
    """
    methods: dict[str, Method] = {}
    for service in services:
        methods.update(service.__mapping__())
    async with listen(address) as (listeners, place), trio.open_nursery() as connections:
        server = Server(place, Calls(methods, limits))

        async def run(stream: trio.SocketStream) -> None:
            await run_connection(server, socket.socket(fileno=stream.socket.detach()))

        connections.start_soon(server.accept, listeners, run, connections)
        task_status.started(server)
        await trio.sleep_forever()
