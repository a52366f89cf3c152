"""A gRPC channel on Trio through grpclib's connections: the reference."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from anyserve_actors.asyncio_bridge import Bridge
from grpclib.protocol import AbstractHandler
from h2.exceptions import NoAvailableStreamIDError, TooManyStreamsError

from anyserve.transport import channel
from anyserve.transport import headers as h
from anyserve.transport.address import Address, TcpAddress, parse_address
from anyserve.transport.channel import ClientConnection
from anyserve.transport.grpclib_connection import TrioConnection, TrioProtocol, use_bridge
from anyserve.transport.grpclib_stream import H2Wire
from anyserve.transport.rpc import Limits
from anyserve.transport.wire import NotTaken


class Channel(channel.Channel):
    """Calls to one server over grpclib's connections; see `open_channel`."""

    def __init__(self, address: Address, bridge: Bridge, limits: Limits) -> None:
        super().__init__(address, limits)
        self._bridge = bridge
        self._open: set[_Connection] = set()

    async def connect(self) -> ClientConnection:
        """See `channel.Channel`."""
        return await self._bridge.run_asyncio(self._connect)

    async def _connect(self) -> _Connection:
        """Make a connection (asyncio)."""
        connection = _Connection(self._bridge.loop, self.limits, self._open)
        loop, address = self._bridge.loop, self.address
        if isinstance(address, TcpAddress):
            await loop.create_connection(lambda: connection.protocol, address.host, address.port)
        else:
            await loop.create_unix_connection(lambda: connection.protocol, address.path)
        return connection

    async def _close(self) -> None:
        """Close all connections at once."""
        for connection in tuple(self._open):
            await connection.protocol.shut("the channel is closed", grace=0.0)


class _Connection(AbstractHandler):
    """One connection of a channel; in its set of open ones from its making to its end."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limits: Limits, registry: set[_Connection]
    ) -> None:
        self.usable = True
        """Whether it takes new calls."""
        self.protocol = TrioProtocol(
            self,
            loop,
            client=True,
            limits=limits,
            on_made=lambda: registry.add(self),
            on_goaway=self._goaway,
        )
        self._registry = registry
        self._releases: dict[H2Wire, Callable[[], None]] = {}

    @property
    def http2(self) -> TrioConnection:
        """grpclib's part of it."""
        return self.protocol.connection

    async def begin(self, headers: h.Headers) -> H2Wire | None:
        """See `ClientConnection`."""
        while True:
            await self.http2.write_ready.wait()
            if not self.usable:
                return None
            try:
                return self._open_stream(headers)
            except TooManyStreamsError:
                await self.http2.stream_close_waiter.next()
            except NoAvailableStreamIDError:
                self.retire()

    def _open_stream(self, headers: h.Headers) -> H2Wire:
        """Open a stream; its headers go out with the next flush."""
        h2 = self.http2.h2
        stream_id = h2.get_next_available_stream_id()
        h2.send_headers(stream_id, headers)
        wire = self.http2.create_stream(stream_id=stream_id)
        self._releases[wire] = self.protocol.processor.register(wire)  # type: ignore[arg-type]
        return wire

    def release(self, wire: H2Wire) -> None:
        """See `ClientConnection`."""
        self._releases.pop(wire)()
        self._close_if_done()

    def retire(self) -> None:
        """Take no more calls, and close once those in flight have ended."""
        self.usable = False
        self._close_if_done()

    def accept(self, stream: Any, headers: Any, release_stream: Callable[[], None]) -> None:
        """Servers do not call."""
        raise NotImplementedError

    def cancel(self, stream: Any) -> None:
        """The server has reset a call; its waits have been told."""

    def close(self) -> None:
        """The connection is closed."""
        self.usable = False
        self._registry.discard(self)

    def _goaway(self, last: int) -> None:
        for wire in self._releases:
            if wire.id > last:
                wire.fail(NotTaken("the server is stopping and did not take the call"))
        self.retire()

    def _close_if_done(self) -> None:
        if not self.usable and not self._releases:
            self.protocol.processor.close("it is done")


@asynccontextmanager
async def open_channel(
    address: str | Address, *, limits: Limits | None = None, bridge: Bridge | None = None
) -> AsyncIterator[Channel]:
    """What `trio_client.open_channel` gives, on `bridge`, or on one of its own."""
    target = parse_address(address) if isinstance(address, str) else address
    async with use_bridge(bridge) as used:
        channel = Channel(target, used, limits or Limits())
        try:
            yield channel
        finally:
            with trio.CancelScope(shield=True):
                await channel._close()
