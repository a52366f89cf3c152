"""An actor that serves HTTP on one address: its connections, their bound, their drain."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

import trio
from anyserve_actors import Actor, Context, Detail

from anyserve.deadlines import Deadlines
from anyserve.http.connection import READ_BUFFER, Connection, Site
from anyserve.http.parser import HttpLimits
from anyserve.transport.address import Address
from anyserve.transport.listening import listen

_FULL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"

_log = logging.getLogger("anyserve.http")


class HttpServer(Actor[None]):
    """Serves a `Site`.

    One connection more than there may be takes the place of the one that has been without a
    request for longest.
    """

    def __init__(self, site: Site, address: Address, limits: HttpLimits) -> None:
        self.site = site
        self.limits = limits
        self.timers = Deadlines()
        """Those of the answers on their way."""
        self.draining = False
        """Whether each connection closes after the answer that it waits for."""
        self.address = address
        """Where clients reach it, once it serves; the port is then the real one."""
        self._accepting = trio.CancelScope()
        self._idle: dict[Connection, None] = {}
        """Those without a request, in the order in which they became so."""
        self._busy: set[Connection] = set()
        self._requests = 0
        self._none_busy = trio.Event()

    async def run(self, context: Context[None]) -> None:
        """Serve until stopped; raises `CannotListen` when the address is taken."""
        buffer = memoryview(bytearray(READ_BUFFER))
        async with listen(self.address) as (listeners, self.address):
            context.nursery.start_soon(self.timers.run)
            context.nursery.start_soon(self._accept, listeners, buffer, context.nursery)
            context.started()
            await trio.sleep_forever()

    def details(self) -> Mapping[str, Detail]:
        return {
            "address": str(self.address),
            "connections": len(self._idle) + len(self._busy),
            "in_flight": len(self._busy),
            "requests": self._requests,
        }

    def leave(self) -> None:
        """Have each connection close after the answer that it waits for; new ones are taken."""
        self.draining = True
        for connection in tuple(self._idle):
            connection.go_away()

    async def drain(self) -> None:
        """Take no more connections, and wait until the requests in flight are answered.

        Nothing bounds the wait but the caller. Cancelled, it goes on draining.
        """
        self.leave()
        self._accepting.cancel()
        while self._busy:
            self._none_busy = trio.Event()
            await self._none_busy.wait()

    # See `Owner`.

    def busy(self, connection: Connection) -> None:
        """See `Owner`."""
        self._requests += 1
        self._idle.pop(connection, None)
        self._busy.add(connection)

    def idle(self, connection: Connection) -> None:
        """See `Owner`."""
        self._busy.discard(connection)
        self._idle[connection] = None
        if not self._busy:
            self._none_busy.set()

    async def _accept(
        self, listeners: list[trio.SocketListener], buffer: memoryview, nursery: trio.Nursery
    ) -> None:
        with self._accepting:
            await trio.serve_listeners(
                partial(self._serve, buffer), listeners, handler_nursery=nursery
            )

    async def _serve(self, buffer: memoryview, stream: trio.SocketStream) -> None:
        sock = socket.socket(fileno=stream.socket.detach())
        if not self._has_room():
            with sock, suppress(OSError):
                sock.send(_FULL)
            return
        connection = Connection(self, sock, buffer)
        self._idle[connection] = None
        try:
            await connection.run()
        except Exception:
            _log.exception("the connection of %s failed", connection.peer)
        finally:
            self._idle.pop(connection, None)
            self._busy.discard(connection)

    def _has_room(self) -> bool:
        """Whether one more connection may be served; one without a request makes room for it."""
        if len(self._idle) + len(self._busy) < self.limits.connections:
            return True
        if not self._idle:
            return False
        oldest = next(iter(self._idle))
        del self._idle[oldest]
        oldest.evict()
        return True
