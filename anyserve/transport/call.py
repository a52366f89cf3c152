"""One call on the server: from its headers through its handler to its status, on any wire."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

import trio
from grpclib.const import Handler as Method
from grpclib.const import Status as GrpclibStatus
from grpclib.exceptions import GRPCError

from anyserve.errors import AnyServeError, Internal, InvalidArgument, Status
from anyserve.transport import headers as h
from anyserve.transport.framing import MessageReader, pack
from anyserve.transport.rpc import Limits, MetadataLike, decode, encode
from anyserve.transport.wire import WireStream

_log = logging.getLogger("anyserve.transport")


class ServerCall:
    """The `ServerStream` that handlers get."""

    def __init__(
        self,
        wire: WireStream,
        head: h.RequestHead,
        method: Method,
        *,
        deadline: float,
        max_message_bytes: int,
    ) -> None:
        self.metadata = head.metadata
        self.deadline = deadline
        self.peer = wire.peer
        self.cardinality = method.cardinality
        self._wire = wire
        self._request_type = method.request_type
        self._reply_type = method.reply_type
        self._reader = MessageReader(wire.receive_some, head.encoding, max_message_bytes)
        self._sending = trio.Lock()
        self._reply: bytes | None = None
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
        return decode(data, self._request_type)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self.recv_message()
        if message is None:
            raise StopAsyncIteration
        return message

    async def send_message(self, message: Any) -> None:
        """See `ServerStream`."""
        data = pack(encode(message, self._reply_type))
        if not self.cardinality.server_streaming:
            if self._reply is not None:
                raise Internal("a unary call was given a second reply")
            self._reply = data
            await trio.lowlevel.checkpoint()
            return
        async with self._sending:
            self._check_open()
            await self._wire.send(headers=self._headers(None), data=data)

    async def send_initial_metadata(self, *, metadata: MetadataLike | None = None) -> None:
        """See `ServerStream`."""
        async with self._sending:
            self._check_open()
            if self._sent_headers:
                raise Internal("the initial metadata of a call was sent twice")
            await self._wire.send(headers=self._headers(metadata))

    async def send_trailing_metadata(
        self,
        *,
        status: Status | GrpclibStatus = Status.OK,
        status_message: str | None = None,
        metadata: MetadataLike | None = None,
    ) -> None:
        """See `ServerStream`."""
        async with self._sending:
            self._check_open()
            code = Status(status.value)
            data = self._reply or b""
            if code is Status.OK and not data and not self.cardinality.server_streaming:
                raise Internal("a unary call ended with OK and without a reply")
            if code is Status.OK or self._sent_headers:
                await self._wire.send(
                    headers=self._headers(None),
                    data=data if code is Status.OK else b"",
                    trailers=h.trailers(code, status_message, metadata),
                )
            else:
                await self._wire.send(trailers=h.trailers_only(code, status_message, metadata))
            self.ended = True

    async def cancel(self) -> None:
        """See `ServerStream`."""
        self.ended = True
        self._wire.reset()
        await trio.lowlevel.checkpoint()

    def fail_now(self, status: Status, message: str) -> None:
        """End the call with an error, without waiting, where it has not ended."""
        if not self.ended:
            self.ended = True
            form = h.trailers if self._sent_headers else h.trailers_only
            self._wire.end_now(form(status, message))

    def _headers(self, metadata: MetadataLike | None) -> h.Headers | None:
        if self._sent_headers:
            return None
        self._sent_headers = True
        return h.response_headers(metadata)

    def _check_open(self) -> None:
        if self.ended:
            raise Internal("the handler sends on a call that has ended")


async def run_call(
    wire: WireStream, headers: h.Headers, methods: Mapping[str, Method], limits: Limits
) -> None:
    """Answer one call; returns when its handler has ended and its answer is on the way.

    Waits for the handler, bounded by the call's deadline and the wire's scope. Cancelled from
    outside, it tells the client UNAVAILABLE. Raises only Cancelled: whatever a handler raises
    becomes a status.
    """
    now = trio.current_time()
    try:
        head = h.parse_request(headers)
        method = methods.get(head.path)
        if method is None:
            raise h.Refusal(h.trailers_only(Status.UNIMPLEMENTED, f"no method {head.path[:200]!r}"))
    except h.Refusal as refusal:
        wire.end_now(refusal.answer)
        return
    deadline = now + head.timeout
    call = ServerCall(
        wire, head, method, deadline=deadline, max_message_bytes=limits.max_message_bytes
    )
    if deadline != math.inf:
        wire.scope.deadline = deadline
    try:
        with wire.scope:
            await _run_handler(call, method, head.path)
        if wire.scope.cancelled_caught:
            # Either the client has gone, and then nobody reads this, or its time is over.
            call.fail_now(Status.DEADLINE_EXCEEDED, "the deadline passed on the server")
    finally:
        call.fail_now(Status.UNAVAILABLE, "the server is stopping")


async def _run_handler(call: ServerCall, method: Method, path: str) -> None:
    try:
        await method.func(call)
        if not call.ended:
            await call.send_trailing_metadata()
    except Exception as error:
        status, message = status_of(error)
        if call.ended:
            _log.exception("the handler of %s failed after its call had ended", path)
            return
        if not isinstance(_only(error), AnyServeError | GRPCError):
            _log.exception("the handler of %s failed", path)
        call.fail_now(status, message)
    except BaseExceptionGroup as group:
        # A handler's nursery that was cancelled while a child failed. The call is over: keep the
        # error in the log and the cancellation on its way.
        errors, rest = group.split(Exception)
        if errors is not None:
            _log.error("the handler of %s failed while cancelled", path, exc_info=errors)
        if rest is not None:
            raise rest from None


def status_of(error: Exception) -> tuple[Status, str]:
    """The one place that turns what a handler raised into a status and its message."""
    cause = _only(error)
    if isinstance(cause, AnyServeError):
        return cause.status, cause.message
    if isinstance(cause, GRPCError):
        return Status(cause.status.value), cause.message or ""
    return Status.INTERNAL, f"{type(cause).__name__}: {cause}"


def _only(error: Exception) -> Exception:
    """The single exception in the groups that a handler's nurseries have put around it."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
