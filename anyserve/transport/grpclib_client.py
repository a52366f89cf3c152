"""A gRPC channel on Trio through grpclib's connections."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar, cast

import trio
from anyserve_actors.asyncio_bridge import Bridge
from grpclib.protocol import AbstractHandler
from h2.exceptions import NoAvailableStreamIDError, TooManyStreamsError

from anyserve.errors import AnyServeError, Internal, Unavailable
from anyserve.transport import headers as h
from anyserve.transport.address import Address, TcpAddress, parse_address
from anyserve.transport.framing import MessageReader, pack
from anyserve.transport.grpclib_connection import TrioConnection, TrioProtocol, use_bridge
from anyserve.transport.grpclib_stream import H2Wire
from anyserve.transport.rpc import Limits, Metadata, MetadataLike, decode, encode

_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")


class ClientStream(Generic[_Request, _Reply]):
    """One call, as its caller sees it; one task may send while another receives."""

    initial_metadata: Metadata | None = None
    """What the answer's headers carry; None until they are here."""
    trailing_metadata: Metadata | None = None
    """What the answer's trailers carry; None until the answer has ended."""

    def __init__(
        self,
        wire: H2Wire,
        request_type: type[_Request],
        reply_type: type[_Reply],
        max_message_bytes: int,
    ) -> None:
        self._wire = wire
        self._request_type = request_type
        self._reply_type = reply_type
        self._max_message_bytes = max_message_bytes
        self._reader: MessageReader | None = None
        self._sending = trio.Lock()

    async def send(self, message: _Request, *, end: bool = False) -> None:
        """Send one message, the last one where `end` says so.

        Waits while the server does not read. Raises the error that the call has ended with, if it
        has. Cancelled while it waits, the call can only be left.
        """
        await self._send(pack(encode(message, self._request_type)), end)

    async def end(self) -> None:
        """Send no more messages; waits, raises and is cancelled as `send`."""
        await self._send(b"", True)

    async def recv(self) -> _Reply | None:
        """The next message, None once the call has ended with OK.

        Waits for the server. Raises the error that the call has ended with: that of the status,
        `Unavailable` for a lost connection. A cancelled one may lose a message.
        """
        if self._reader is None:
            headers = await self._wire.received_headers()
            self.initial_metadata = h.decode_metadata(headers)
            error = h.error_in_response(headers)
            if error is not None:
                raise error
            encoding = dict(headers).get("grpc-encoding", "identity")
            self._reader = MessageReader(self._wire.receive_some, encoding, self._max_message_bytes)
        data = await self._reader.read()
        if data is not None:
            return cast(_Reply, decode(data, self._reply_type))
        trailers = await self._wire.received_trailers()
        if not trailers and self._wire.headers:
            trailers = self._wire.headers
        self.trailing_metadata = h.decode_metadata(trailers)
        error = h.error_in_trailers(trailers)
        if error is not None:
            raise error
        return None

    def __aiter__(self) -> AsyncIterator[_Reply]:
        return self

    async def __anext__(self) -> _Reply:
        message = await self.recv()
        if message is None:
            raise StopAsyncIteration
        return message

    async def _send(self, data: bytes, end: bool) -> None:
        async with self._sending:
            try:
                await self._wire.send(data=data, end=end)
            except AnyServeError as error:
                # A server may answer before it has heard the end; its answer says why.
                trailers = self._wire.trailers or self._wire.headers or []
                raise h.error_in_trailers(trailers) or error from None


class Channel:
    """Calls to one server, over one connection at a time; see `open_channel`."""

    def __init__(self, address: Address, bridge: Bridge, limits: Limits) -> None:
        self._address = address
        self._bridge = bridge
        self._limits = limits
        self._connection: _Connection | None = None
        self._connecting = trio.Lock()
        self._open: set[_Connection] = set()
        self._authority = str(address) if isinstance(address, TcpAddress) else "localhost"

    async def unary(
        self,
        path: str,
        request: _Request,
        reply_type: type[_Reply],
        *,
        metadata: MetadataLike | None = None,
    ) -> _Reply:
        """Call `path` with one message and return the one that answers it.

        Waits for the answer; the deadline of the caller's cancel scopes goes along, so that the
        server ends the call by then. Cancelled, it resets the call. Raises the `AnyServeError` of
        the answer's status, `Unavailable` when the server cannot be reached or the connection is
        lost.
        """
        async with self._call(path, type(request), reply_type, metadata) as call:
            await call.send(request, end=True)
            reply = await call.recv()
            if reply is None:
                raise Internal(f"{path} ended with OK and without a reply")
            if await call.recv() is not None:
                raise Internal(f"{path} sent a second reply")
            return reply

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        request_type: type[_Request],
        reply_type: type[_Reply],
        *,
        metadata: MetadataLike | None = None,
    ) -> AsyncIterator[ClientStream[_Request, _Reply]]:
        """Call `path` with a stream of messages; leaving the block before its end resets the call.

        Entering waits for the connection, and where the server allows no more calls, for one to
        end. The deadline goes along as with `unary`; errors come out of the stream's methods.
        """
        async with self._call(path, request_type, reply_type, metadata) as call:
            call._wire.flush()
            yield call

    @asynccontextmanager
    async def _call(
        self,
        path: str,
        request_type: type[_Request],
        reply_type: type[_Reply],
        metadata: MetadataLike | None,
    ) -> AsyncIterator[ClientStream[_Request, _Reply]]:
        """A call whose headers wait to be sent with whatever is sent next on its connection."""
        deadline = trio.current_effective_deadline()
        while True:
            connection = await self._connected()
            await connection.http2.write_ready.wait()
            if not connection.usable:
                continue
            timeout = deadline if deadline == math.inf else deadline - trio.current_time()
            headers = h.request_headers(path, self._authority, timeout, metadata)
            try:
                wire = connection.begin(headers)
                break
            except TooManyStreamsError:
                await connection.http2.stream_close_waiter.next()
            except NoAvailableStreamIDError:
                connection.retire()
        try:
            yield ClientStream(wire, request_type, reply_type, self._limits.max_message_bytes)
        finally:
            wire.reset()
            connection.release(wire)

    async def _connected(self) -> _Connection:
        """The connection for a new call, made where there is none."""
        async with self._connecting:
            if self._connection is None or not self._connection.usable:
                try:
                    self._connection = await self._bridge.run_asyncio(self._connect)
                except OSError as error:
                    raise Unavailable(
                        f"cannot connect to {self._address}: {error.strerror or error}"
                    ) from error
            return self._connection

    async def _connect(self) -> _Connection:
        """Make a connection (asyncio)."""
        connection = _Connection(self._bridge.loop, self._limits, self._open)
        loop, address = self._bridge.loop, self._address
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

    def begin(self, headers: h.Headers) -> H2Wire:
        """Open a stream; its headers go out with the next flush."""
        h2 = self.http2.h2
        stream_id = h2.get_next_available_stream_id()
        h2.send_headers(stream_id, headers)
        wire = self.http2.create_stream(stream_id=stream_id)
        self._releases[wire] = self.protocol.processor.register(wire)  # type: ignore[arg-type]
        return wire

    def release(self, wire: H2Wire) -> None:
        """The call has been left."""
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
                wire.fail(Unavailable("the server is stopping and did not take the call"))
        self.retire()

    def _close_if_done(self) -> None:
        if not self.usable and not self._releases:
            self.protocol.processor.close("it is done")


@asynccontextmanager
async def open_channel(
    address: str | Address, *, limits: Limits | None = None, bridge: Bridge | None = None
) -> AsyncIterator[Channel]:
    """A channel to `host:port` or `unix:/path`; it connects at its first call, and again when lost.

    Runs on `bridge`, or on one of its own. Leaving the block ends the calls that are still open
    with `Unavailable` and closes the connection.
    """
    target = parse_address(address) if isinstance(address, str) else address
    async with use_bridge(bridge) as used:
        channel = Channel(target, used, limits or Limits())
        try:
            yield channel
        finally:
            with trio.CancelScope(shield=True):
                await channel._close()
