"""ModelStreamInfer: many requests in flight on one stream, each with 0 to n responses."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import trio
from anyserve_protos.infer_wire import InferRequestHead, stream_response
from anyserve_protos.inference import (
    InferParameter,
    ModelInferResponse,
)

from anyserve.burst import nothing
from anyserve.errors import (
    AnyServeError,
    DeadlineExceeded,
    Internal,
    Unavailable,
    elsewhere,
)
from anyserve.link.frames import Buffer
from anyserve.replica.exchange import Reply
from anyserve.replica.handback import MODEL_STREAM_INFER, Relay
from anyserve.replica.inference import Accepted, Inference, scan
from anyserve.replica.unary import UnaryInference
from anyserve.stream_errors import stream_error
from anyserve.traces import Trace, at_door
from anyserve.transport.outbox import Outbox
from anyserve.transport.rpc import Metadata, ServerStream
from anyserve.waiting import Waiter

IN_FLIGHT_LIMIT = 1024
"""Requests of one stream that run or wait, and messages that its client has no room for, at once;
the next request is read when there are fewer."""
EMPTY_FINAL = "triton_enable_empty_final_response"
"""Request parameter that asks for a final, empty response after those of a decoupled handler."""
FINAL = "triton_final_response"
"""Response parameter that says whether this is the request's last response."""

_METHOD = "ModelStreamInfer"
_BATCH = 16
"""Requests that are read before others have a turn, and relayed messages that may be unsent before
more are taken."""


def _flag(value: bool) -> bytes:
    """A ModelInferResponse with nothing but the flag: appended to another, it adds the flag."""
    return bytes(ModelInferResponse(parameters={FINAL: InferParameter(bool_param=value)}))


IS_FINAL = _flag(True)
"""What the last response of a request ends with, where it has this flag."""
IS_NOT_FINAL = _flag(False)
"""And the others."""


class StreamedInference:
    """One ModelStreamInfer call.

    All its requests run at once. Handlers that answer exactly once are answered for in the order
    in which their requests came; the responses of decoupled ones go out as they come. An error
    ends its request and not the stream.
    """

    def __init__(self, inference: Inference, stream: ServerStream) -> None:
        self._inference = inference
        self._stream = stream
        self._running: set[_Request] = set()
        self._in_order: deque[_Ordered] = deque()
        self._progress = Waiter()
        self._outbox = Outbox(stream, self._progress.wake)
        self._requests = 0
        """That were read."""
        self._handed_back: tuple[AnyServeError, InferRequestHead | None, Trace | None] | None = None
        """Why the call ends without an answer, and its only request."""

    async def run(self) -> None:
        """Serve until the client has ended the stream and everything that is due is sent.

        Once the replica drains, no more requests are read, and the stream ends after the answers
        to those before: raises `Unavailable`. Cancelled, it cancels its requests. A call of the
        scheduler with one request, which can't be served here, ends with why.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._outbox.run)
                with self._inference.accepting() as scope:
                    for number in itertools.count(1):
                        body = await self._stream.recv_message()
                        if body is None:
                            break
                        self._begin(body)
                        if number % _BATCH == 0:  # many may be here at once
                            await trio.lowlevel.checkpoint()
                        while len(self._running) + len(self._outbox) >= IN_FLIGHT_LIMIT:
                            await self._progress.wait()
                while self._running or self._outbox or self._outbox.behind:
                    await self._progress.wait()
                nursery.cancel_scope.cancel()
        finally:
            for request in tuple(self._running):  # one that has its turn now may end at once
                request.cancel()
            self._running.clear()
            self._in_order.clear()
            self._outbox.drop()
        if scope.cancelled_caught:
            draining = elsewhere(Unavailable("the replica is draining"))
            if self._requests or not self._hand_back(draining, None, None):
                raise draining
        if self._handed_back is not None:
            await self._send_back(*self._handed_back)

    def emit(self, message: Sequence[Buffer], sent: Callable[[], None] = nothing) -> None:
        """Send a message of these pieces after those before it; `sent` is called when it is."""
        self._outbox.put(message, sent)

    def ends_with(self, error: AnyServeError | None) -> bool:
        """Whether the whole call ends by what a request ended with, and its status says so."""
        return ends_call(error, self._stream)

    def answered(self) -> None:
        """Send the answers whose turn it is."""
        while self._in_order and (answer := self._in_order[0].answer) is not None:
            request = self._in_order.popleft()
            self.emit(*answer)
            self.ended(request)

    def leave(self, request: _Ordered) -> None:
        """A request has its answers elsewhere, in no order; those behind it have their turn."""
        self._in_order.remove(request)
        self._running.discard(request)
        self.answered()

    def hand_on(
        self,
        error: AnyServeError,
        head: InferRequestHead,
        ordered: _Ordered | None,
        trace: Trace | None,
    ) -> bool:
        """Have a request served elsewhere, where it can be; `error` is why it is not served here.

        ordered: its place among the answers, where it has one.
        """
        handback = self._inference.handback
        if handback is None or not error.elsewhere:
            return False
        if self._hand_back(error, head, trace):
            return True
        stream = self._stream
        relayed = _Relayed(self, head.id, ordered)
        relay = handback.relay(
            MODEL_STREAM_INFER,
            head,
            error,
            stream.metadata.items(),
            stream.deadline,
            relayed,
            trace,
        )
        if relay is None:
            return False
        relayed.relay = relay
        self._running.add(relayed)
        return True

    def _hand_back(
        self, error: AnyServeError, head: InferRequestHead | None, trace: Trace | None
    ) -> bool:
        """End a call of the scheduler's, where this is all there is in it."""
        handback = self._inference.handback
        metadata = self._stream.metadata.items()
        if handback is None or self._requests > 1 or not handback.trusts(metadata):
            return False
        self._handed_back = error, head, trace
        self._running.clear()
        self._in_order.clear()
        self._progress.wake()
        return True

    async def _send_back(
        self, error: AnyServeError, head: InferRequestHead | None, trace: Trace | None
    ) -> None:
        handback = self._inference.handback
        assert handback is not None
        await self._stream.send_trailing_metadata(
            status=error.status,
            status_message=error.message,
            metadata=handback.trailers(error, head, self._stream.metadata.items(), trace),
        )

    def ended(self, request: _Request) -> None:
        """A request has ended, and all that it had to say is sent or waits for that."""
        self._running.discard(request)
        self._progress.wake()

    def _begin(self, body: bytes) -> None:
        self._requests += 1
        head: InferRequestHead | None = None
        stream = self._stream
        metadata = stream.metadata.items()
        trace = at_door(metadata)
        try:
            head = scan(body)
            accepted = self._inference.accept(head, metadata, stream.deadline, trace)
        except AnyServeError as error:
            if head is None or not self.hand_on(error, head, None, trace):
                self._add_ordered("" if head is None else head.id).done(error)
            return
        if accepted.offer.decoupled:
            decoupled = _Decoupled(self, self._inference, accepted)
            self._running.add(decoupled)
            decoupled.start()
        else:
            self._add_ordered(head.id).start(self._inference, accepted)

    def _add_ordered(self, identity: str) -> _Ordered:
        request = _Ordered(self, identity)
        self._running.add(request)
        self._in_order.append(request)
        return request


class _Ordered:
    """A request with one answer, which is given in its turn."""

    def __init__(self, stream: StreamedInference, identity: str) -> None:
        self.answer: tuple[Sequence[Buffer], Callable[[], None]] | None = None
        """The message and what is to be called when it is sent; None until there is one."""
        self._stream = stream
        self._identity = identity
        self._accepted: Accepted | None = None
        self._inference: UnaryInference | None = None

    def start(self, inference: Inference, accepted: Accepted) -> None:
        """Begin."""
        self._accepted = accepted
        self._inference = UnaryInference(inference, accepted, _METHOD, self.done)
        try:
            self._inference.start()
        except AnyServeError as error:
            self.done(error)

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        if self.answer is not None:
            self.answer[1]()
        elif self._inference is not None:
            self._inference.cancel()
            self._inference = None

    def done(self, result: Reply | AnyServeError) -> None:
        """It has its answer."""
        self._inference = None
        accepted, self._accepted = self._accepted, None
        if isinstance(result, AnyServeError):
            if self._stream.ends_with(result):
                return
            if accepted is not None and self._stream.hand_on(
                result, accepted.head, self, accepted.call.trace
            ):
                return
            self.answer = (stream_error(result, self._identity),), nothing
        else:
            self.answer = stream_response(*result.pieces, IS_FINAL), result.release
        self._stream.answered()


class _Decoupled:
    """A request with any number of responses, which are passed on as they come."""

    def __init__(self, stream: StreamedInference, inference: Inference, accepted: Accepted) -> None:
        self._stream = stream
        self._accepted = accepted
        self._execution = inference.execution(accepted, self, _METHOD)

    def start(self) -> None:
        """Begin."""
        try:
            self._execution.start()
        except AnyServeError as error:
            self.on_end(error)

    def cancel(self) -> None:
        """Nobody reads what it says any more."""
        self._execution.cancel()

    def on_reply(self, reply: Reply) -> None:
        """See `Consumer`."""
        message = stream_response(*reply.pieces, IS_NOT_FINAL)
        self._stream.emit(message, partial(self._sent, reply))

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Consumer`."""
        if self._stream.ends_with(error):
            return
        if error is not None:
            head, trace = self._accepted.head, self._accepted.call.trace
            if not self._stream.hand_on(error, head, None, trace):
                self._stream.emit((stream_error(error, head.id),))
        elif self._accepted.head.parameters.get(EMPTY_FINAL) is True:
            self._stream.emit(stream_response(_empty_final(self._accepted)))
        self._stream.ended(self)

    def _sent(self, reply: Reply) -> None:
        reply.release()
        self._execution.consumed()


class _Relayed:
    """A request that is served elsewhere, whose answers are passed on.

    Where it has a place among those with one answer, that is given in its turn. What serves it may
    answer more often, though: then it gives its place up.
    """

    relay: Relay

    def __init__(self, stream: StreamedInference, identity: str, ordered: _Ordered | None) -> None:
        self._stream = stream
        self._identity = identity
        self._ordered = ordered
        self._first: bytes | None = None
        """Its answer so far, where it has a place."""
        self._unsent = 0

    def cancel(self) -> None:
        """Nobody reads what it says any more."""
        self.relay.cancel()

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """See `Answers`."""
        if self._ordered is not None:
            if self._first is None and len(messages) == 1:
                self._first = messages[0]
                return
            self._stream.leave(self._ordered)
            self._ordered = None
            if self._first is not None:
                messages = [self._first, *messages]
        self._unsent += len(messages)
        if self._unsent > _BATCH:
            self.relay.call.hold()
        for message in messages:
            self._stream.emit((message,), self._sent)

    def on_end(self, error: AnyServeError | None, metadata: Metadata) -> None:
        """See `Answers`."""
        if self._ordered is not None:
            if error is not None or self._first is None:
                self._ordered.done(error or Internal("the scheduler gave no answer"))
            else:
                self._ordered.answer = (self._first,), nothing
                self._stream.answered()
        elif error is not None and not self._stream.ends_with(error):
            self._stream.emit((stream_error(error, self._identity),))
        self._stream.ended(self)

    def _sent(self) -> None:
        self._unsent -= 1
        if not self._unsent:
            self.relay.call.resume()


_Request: TypeAlias = _Ordered | _Decoupled | _Relayed


def _empty_final(accepted: Accepted) -> bytes:
    offer = accepted.offer
    response = ModelInferResponse(
        model_name=offer.name, model_version=offer.version, id=accepted.head.id
    )
    return bytes(response) + IS_FINAL


def ends_call(error: AnyServeError | None, stream: ServerStream) -> bool:
    """Whether a whole call ends by what one of its requests did, and its status says so."""
    return isinstance(error, DeadlineExceeded) and trio.current_time() >= stream.deadline
