"""A channel to a server, whatever carries its calls: unary calls, streams, and its connections."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar, cast

import trio

from anyserve.errors import AnyServeError, Internal, Unavailable
from anyserve.transport import headers as h
from anyserve.transport.address import Address, TcpAddress
from anyserve.transport.framing import MessageReader, pack
from anyserve.transport.rpc import Buffer, Limits, Metadata, MetadataLike, decode, encode
from anyserve.transport.wire import NotTaken

_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")


CONNECTIONS = 4
"""Connections that one call tries, where a server closes them before they are of use."""


class ClientWire(Protocol):
    """The client's end of one HTTP/2 stream; what `WireStream` says holds for `send` and the rest.

    What waits raises the `AnyServeError` that the stream has failed with.
    """

    headers: h.Headers | None
    """The answer's first headers, once they are here."""
    trailers: h.Headers | None
    """Its trailers, once they are here."""

    def send_now(
        self,
        headers: h.Headers | None = None,
        data: tuple[Buffer, ...] = (),
        trailers: h.Headers | None = None,
        end: bool = False,
    ) -> bool: ...

    async def send(
        self,
        headers: h.Headers | None = None,
        data: tuple[Buffer, ...] = (),
        trailers: h.Headers | None = None,
        end: bool = False,
    ) -> None: ...

    async def receive(self) -> list[bytes]: ...

    async def received_headers(self) -> h.Headers:
        """The answer's first headers; waits for them."""
        ...

    async def received_trailers(self) -> h.Headers:
        """The answer's trailers; waits for them. None at all are an empty tuple."""
        ...

    def flush(self) -> None:
        """Send the headers that wait for company."""
        ...

    def reset(self) -> None: ...


class ClientConnection(Protocol):
    """One connection of a channel."""

    usable: bool
    """Whether it takes new calls."""

    async def begin(self, headers: h.Headers) -> ClientWire | None:
        """A new call, whose headers may wait for what is sent next.

        Waits until the server allows one more. None where the connection has become unusable.
        """
        ...

    def release(self, wire: Any) -> None:
        """The call has been left, after its reset."""
        ...


class ClientStream(Generic[_Request, _Reply]):
    """One call, as its caller sees it; one task may send while another receives."""

    initial_metadata: Metadata | None = None
    """What the answer's headers carry; None until they are here."""
    trailing_metadata: Metadata | None = None
    """What the answer's trailers carry; None until the answer has ended."""

    def __init__(
        self,
        wire: ClientWire,
        request_type: type[_Request],
        reply_type: type[_Reply],
        max_message_bytes: int,
    ) -> None:
        self._wire = wire
        self._request_type = request_type
        self._reply_type = reply_type
        self._max_message_bytes = max_message_bytes
        self._reader: MessageReader | None = None
        self._sending: trio.Lock | None = None

    async def send(self, message: _Request, *, end: bool = False) -> None:
        """Send one message, the last one where `end` says so.

        Waits while the server does not read. Raises the error that the call has ended with, if it
        has. Cancelled while it waits, the call can only be left.
        """
        await self._send(pack(encode(message, self._request_type)), end)

    async def end(self) -> None:
        """Send no more messages; waits, raises and is cancelled as `send`."""
        await self._send((), True)

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
            self._reader = MessageReader(self._wire.receive, encoding, self._max_message_bytes)
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

    async def _send(self, data: tuple[Buffer, ...], end: bool) -> None:
        """Send without a lock and a turn of the loop where nothing has to be waited for."""
        if self._sending is None:
            if self._wire.send_now(None, data, None, end):
                return
            self._sending = trio.Lock()
        sending = self._sending
        async with sending:
            try:
                await self._wire.send(None, data, None, end)
            except AnyServeError as error:
                # A server may answer before it has heard the end; its answer says why.
                trailers = self._wire.trailers or self._wire.headers or ()
                raise h.error_in_trailers(trailers) or error from None
        if self._sending is sending and not sending.locked():
            self._sending = None


class Channel:
    """Calls to one server, over one connection at a time; see the `open_channel` of each wire.

    The wire's channel makes the connections.
    """

    def __init__(self, address: Address, limits: Limits) -> None:
        self.address = address
        self.limits = limits
        self._connection: ClientConnection | None = None
        self._connecting = trio.Lock()
        self._authority = str(address) if isinstance(address, TcpAddress) else "localhost"

    async def connect(self) -> ClientConnection:
        """A new connection that takes calls; raises OSError where there is nobody."""
        raise NotImplementedError

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
        server ends the call by then. A call that the server says it has not begun is made again,
        once. Cancelled, it resets the call. Raises the `AnyServeError` of the answer's status,
        `Unavailable` when the server cannot be reached or the connection is lost.
        """
        try:
            return await self._unary(path, request, reply_type, metadata)
        except NotTaken:
            return await self._unary(path, request, reply_type, metadata)

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
        end. The deadline goes along as with `unary`; errors come out of the stream's methods, and
        a call that the server has not begun is not made again, since its messages are gone.
        """
        connection, wire = await self._begin(path, metadata)
        try:
            wire.flush()
            yield ClientStream(wire, request_type, reply_type, self.limits.max_message_bytes)
        finally:
            wire.reset()
            connection.release(wire)

    async def _unary(
        self,
        path: str,
        request: _Request,
        reply_type: type[_Reply],
        metadata: MetadataLike | None,
    ) -> _Reply:
        connection, wire = await self._begin(path, metadata)
        try:
            call = ClientStream(wire, type(request), reply_type, self.limits.max_message_bytes)
            await call.send(request, end=True)
            reply = await call.recv()
            if reply is None:
                raise Internal(f"{path} ended with OK and without a reply")
            if await call.recv() is not None:
                raise Internal(f"{path} sent a second reply")
            return reply
        finally:
            wire.reset()
            connection.release(wire)

    async def _begin(
        self, path: str, metadata: MetadataLike | None
    ) -> tuple[ClientConnection, ClientWire]:
        """A call on a connection that works, with the deadline of the caller."""
        deadline = trio.current_effective_deadline()
        for _ in range(CONNECTIONS):
            connection = await self._connected()
            timeout = deadline if deadline == math.inf else deadline - trio.current_time()
            headers = h.request_headers(path, self._authority, timeout, metadata)
            wire = await connection.begin(headers)
            if wire is not None:
                return connection, wire
        raise Unavailable(f"{self.address} takes connections and no calls")

    async def _connected(self) -> ClientConnection:
        """The connection for a new call, made where there is none."""
        async with self._connecting:
            if self._connection is None or not self._connection.usable:
                try:
                    self._connection = await self.connect()
                except OSError as error:
                    raise Unavailable(
                        f"cannot connect to {self.address}: {error.strerror or error}"
                    ) from error
            return self._connection
