"""One call on the server: from its headers through its handler to its status, on any wire."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import trio
from grpclib.const import Handler as Method
from grpclib.const import Status as GrpclibStatus
from grpclib.exceptions import GRPCError
from multidict import MultiDict

from anyserve.errors import AnyServeError, Internal, InvalidArgument, Status, innermost
from anyserve.transport import headers as h
from anyserve.transport.framing import MessageReader, pack
from anyserve.transport.rpc import Buffer, Limits, Metadata, MetadataLike, decode, encode
from anyserve.transport.wire import WireStream

_End: TypeAlias = tuple[Status, str | None, MetadataLike | None]
"""The status that ends a call, its message, and its metadata."""

_BURST = 16
"""Messages that a task sends before others have a turn."""

_log = logging.getLogger("anyserve.transport")


class ServerCall:
    """The `ServerStream` that handlers get."""

    def __init__(
        self,
        wire: WireStream,
        head: h.RequestHead,
        timeout: float,
        method: Method,
        max_message_bytes: int,
    ) -> None:
        self.metadata: Metadata = MultiDict(head.metadata)
        self.deadline = math.inf if timeout == math.inf else trio.current_time() + timeout
        self.peer = wire.peer
        self.cardinality = method.cardinality
        self.method = method
        self.path = head.path
        self.wire = wire
        self._reader = MessageReader(wire.receive, head.encoding, max_message_bytes)
        self._sending: trio.Lock | None = None
        self._reply: tuple[Buffer, ...] = ()
        self._burst = 0
        self._received_any = False
        self._sent_headers = False
        self.ended = False
        """Whether the call has a status, or was reset."""

    async def recv_message(self) -> Any:
        """See `ServerStream`."""
        data = await self._reader.read()
        if data is None:
            if not self._received_any and not self.cardinality.client_streaming:
                raise InvalidArgument("the request ends without a message")
            return None
        self._received_any = True
        return decode(data, self.method.request_type)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self.recv_message()
        if message is None:
            raise StopAsyncIteration
        return message

    async def send_message(self, message: Any) -> None:
        """See `ServerStream`."""
        data = pack(encode(message, self.method.reply_type))
        if self.cardinality.server_streaming:
            await self._send(data=data)
        elif self._reply:
            raise Internal("a unary call was given a second reply")
        else:
            self._reply = data

    def send_messages_now(self, messages: Sequence[Any]) -> bool:
        """See `ServerStream`."""
        if self._sending is not None:
            return False
        reply_type = self.method.reply_type
        data = [part for message in messages for part in pack(encode(message, reply_type))]
        return self._send_now(data=(b"".join(data),))

    async def send_initial_metadata(self, *, metadata: MetadataLike | None = None) -> None:
        """See `ServerStream`."""
        if self._sent_headers:
            raise Internal("the initial metadata of a call was sent twice")
        await self._send(metadata=metadata)

    async def send_trailing_metadata(
        self,
        *,
        status: Status | GrpclibStatus = Status.OK,
        status_message: str | None = None,
        metadata: MetadataLike | None = None,
    ) -> None:
        """See `ServerStream`."""
        code = Status(status.value)
        if code is not Status.OK:
            await self._send(end=(code, status_message, metadata))
        elif self._reply or self.cardinality.server_streaming:
            await self._send(data=self._reply, end=(code, status_message, metadata))
        else:
            raise Internal("a unary call ended with OK and without a reply")
        self.ended = True

    async def cancel(self) -> None:
        """See `ServerStream`."""
        self.ended = True
        self.wire.reset()
        await trio.lowlevel.checkpoint()

    def fail_now(self, status: Status, message: str) -> None:
        """End the call with an error, without waiting, where it has not ended."""
        if not self.ended:
            self.ended = True
            form = h.trailers if self._sent_headers else h.trailers_only
            self.wire.end_now(form(status, message))

    async def _send(
        self,
        *,
        metadata: MetadataLike | None = None,
        data: tuple[Buffer, ...] = (),
        end: _End | None = None,
    ) -> None:
        """Send, after the answer's headers where those have not gone yet.

        Without a lock where nothing has to be waited for, and mostly without a turn of the loop.
        """
        if self._sending is None:
            self._burst += 1
            if self._burst == _BURST:
                self._burst = 0
                await trio.lowlevel.checkpoint()
            if self._sending is None and self._send_now(metadata, data, end):
                return
        if self._sending is None:
            self._sending = trio.Lock()
        sending = self._sending
        async with sending:
            parts = self._parts(metadata, data, end)
            self._sent_headers = True
            await self.wire.send(*parts)
        if self._sending is sending and not sending.locked():
            self._sending = None

    def _send_now(
        self,
        metadata: MetadataLike | None = None,
        data: tuple[Buffer, ...] = (),
        end: _End | None = None,
    ) -> bool:
        if not self.wire.send_now(*self._parts(metadata, data, end)):
            return False
        self._sent_headers = True
        return True

    def _parts(
        self, metadata: MetadataLike | None, data: tuple[Buffer, ...], end: _End | None
    ) -> tuple[h.Headers | None, tuple[Buffer, ...], h.Headers | None]:
        """What is to be sent as headers, data and trailers."""
        if self.ended:
            raise Internal("the handler sends on a call that has ended")
        if end is not None and end[0] is not Status.OK and not self._sent_headers:
            return None, data, h.trailers_only(*end)
        headers = None if self._sent_headers else h.response_headers(metadata)
        return headers, data, None if end is None else h.trailers(*end)


@attrs.frozen
class Calls:
    """Makes the calls of a server."""

    methods: Mapping[str, Method]
    limits: Limits

    def method(self, head: h.RequestHead) -> Method:
        """The method that is called; raises `Refusal` for an unknown one."""
        method = self.methods.get(head.path)
        if method is None:
            raise h.Refusal(h.trailers_only(Status.UNIMPLEMENTED, f"no method {head.path[:200]!r}"))
        return method

    def begin(
        self, wire: WireStream, head: h.RequestHead, timeout: float, method: Method
    ) -> ServerCall:
        """The call, which `run_call` is to run."""
        return ServerCall(wire, head, timeout, method, self.limits.max_message_bytes)


async def run_call(call: ServerCall) -> None:
    """Answer one call; returns when its handler has ended and its answer is on the way.

    Waits for the handler, bounded by the call's deadline and the wire's scope. Cancelled from
    outside, it tells the client UNAVAILABLE. Raises only Cancelled: whatever a handler raises
    becomes a status.
    """
    scope = call.wire.scope
    if call.deadline != math.inf:
        scope.deadline = call.deadline
    try:
        with scope:
            await _run_handler(call)
        if scope.cancelled_caught:
            # Either the client has gone, and then nobody reads this, or its time is over.
            call.fail_now(Status.DEADLINE_EXCEEDED, "the deadline passed on the server")
    finally:
        call.fail_now(Status.UNAVAILABLE, "the server is stopping")


async def _run_handler(call: ServerCall) -> None:
    try:
        await call.method.func(call)
        if not call.ended:
            await call.send_trailing_metadata()
    except Exception as error:
        if call.ended:
            _log.exception("the handler of %s failed after its call had ended", call.path)
            return
        call.fail_now(*status_of(error, call.path))
    except BaseExceptionGroup as group:
        # A handler's nursery that was cancelled while a child failed. The call is over: keep the
        # error in the log and the cancellation on its way.
        errors, rest = group.split(Exception)
        if errors is not None:
            _log.error("the handler of %s failed while cancelled", call.path, exc_info=errors)
        try:
            if rest is not None:
                raise rest from None
        finally:
            del errors, rest  # this frame is in their tracebacks


def status_of(error: Exception, path: str) -> tuple[Status, str]:
    """The one place that turns what a handler raised into a status and its message.

    What it did not raise on purpose is logged.
    """
    cause = innermost(error)
    if isinstance(cause, AnyServeError):
        return cause.status, cause.message
    if isinstance(cause, GRPCError):
        return Status(cause.status.value), cause.message or ""
    _log.error("the handler of %s failed", path, exc_info=error)
    return Status.INTERNAL, f"{type(cause).__name__}: {cause}"
