"""What handlers call: run here where it is offered, and else by the scheduler, once."""

from __future__ import annotations

from collections.abc import Sequence

from anyserve_protos import codec
from anyserve_protos.infer_wire import InferRequestHead
from anyserve_protos.inference import ModelStreamInferResponse

from anyserve.capability import check_name, need_of
from anyserve.errors import AnyServeError, FailedPrecondition, Unimplemented, Unknown
from anyserve.link.frames import INITIAL_CREDIT
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Answered, Call, Called, Reply
from anyserve.replica.execution import Execution
from anyserve.replica.handback import MODEL_INFER, MODEL_STREAM_INFER, Handback, Relay
from anyserve.replica.inference import scan
from anyserve.replica.sequences import sequence_of
from anyserve.transport.rpc import Metadata

DEPTH = "anyserve-call-depth"
"""Metadata: how many handlers have called one another to make this request."""
MAX_DEPTH = 8
_TRACE = "traceparent"


class HandlerRequests:
    """The `Calls` of a replica."""

    def __init__(self, dispatcher: Dispatcher, handback: Handback | None = None) -> None:
        """handback: where what nobody offers here goes; None without a scheduler."""
        self.dispatcher = dispatcher
        self.handback = handback

    def request(self, parent: Call, body: bytes, once: bool, answered: Answered) -> Called:
        """See `Calls`."""
        return CalledRequest(self, parent, body, once, answered)


class CalledRequest:
    """One request of a handler: a `Consumer` here, and `Answers` of the scheduler elsewhere.

    It ends once: by `on_end` of whoever called, or by `cancel`. It has the deadline of the
    caller's own request.
    """

    _execution: Execution | None = None
    _relay: Relay | None = None
    _over = False
    _responses = 0
    _unread = 0

    def __init__(
        self, calls: HandlerRequests, parent: Call, body: bytes, once: bool, answered: Answered
    ) -> None:
        """parent: the request whose handler calls. once: whether one response is wanted."""
        self._calls = calls
        self._parent = parent
        self._body = body
        self._once = once
        self._answered = answered
        self._head: InferRequestHead | None = None

    def start(self) -> None:
        """Begin it; what is wrong with it is told as its end."""
        try:
            self._start()
        except AnyServeError as error:
            self._refused(error)

    def consumed(self, responses: int) -> None:
        """The handler has taken so many."""
        self._unread -= responses
        if self._execution is not None:
            for _ in range(responses):
                self._execution.consumed()
        elif self._relay is not None and not self._over and self._unread < INITIAL_CREDIT:
            self._relay.call.resume()

    def cancel(self) -> None:
        """Nobody wants the rest; nothing happens where it has ended."""
        if not self._over:
            self._over = True
            self._stop()

    def on_reply(self, reply: Reply) -> None:
        """See `Consumer`."""
        message = b"".join(reply.pieces)
        reply.release()
        self._deliver(message)

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """See `Answers`."""
        for message in messages:
            if self._over:
                return
            if self._once:
                self._deliver(message)
                continue
            reply = codec.decode(ModelStreamInferResponse, message)
            if reply.error_message or reply.infer_response is None:
                self._stop()
                self._end(Unknown(reply.error_message))
            else:
                self._deliver(bytes(reply.infer_response))
        if not self._over and self._unread >= INITIAL_CREDIT:
            assert self._relay is not None
            self._relay.call.hold()

    def on_end(self, error: AnyServeError | None, metadata: Metadata | None = None) -> None:
        """See `Consumer` and `Answers`."""
        if error is not None and self._relay is None and not self._responses:
            self._refused(error)
        else:
            self._end(error)

    def _start(self) -> None:
        parent = self._parent
        depth = _depth(parent) + 1
        if depth > MAX_DEPTH:
            raise FailedPrecondition(
                f"handlers have called one another {MAX_DEPTH} deep, which is the limit:"
                f" {parent.need.name!r} may call nothing more"
            )
        head = self._head = scan(self._body)
        if not self._calls.dispatcher.knows(head.model_name):
            check_name(head.model_name)
        need = need_of(head.model_name, head.parameters)
        offer = self._calls.dispatcher.match(need)[0].offer
        call = Call(
            need=need,
            head=head.head,
            raw=head.raw,
            request_id=parent.request_id,
            deadline=parent.deadline,
            metadata=_metadata(parent),
            sequence=sequence_of(head.parameters) if offer.sequence else None,
        )
        self._execution = Execution(self._calls.dispatcher, call, self, "call")
        self._execution.start()

    def _refused(self, error: AnyServeError) -> None:
        """It is not served here: the scheduler may know who does."""
        handback, parent, head = self._calls.handback, self._parent, self._head
        if error.elsewhere and handback is not None and head is not None:
            path = MODEL_INFER if self._once else MODEL_STREAM_INFER
            metadata = tuple(_metadata(parent).items())
            self._execution = None
            self._relay = handback.relay(path, head, error, metadata, parent.deadline, self)
            if self._relay is not None:
                return
        self._end(error)

    def _deliver(self, message: bytes) -> None:
        self._responses += 1
        if self._once and self._responses > 1:
            self._stop()
            self._end(Unimplemented("what was called answers more than once: use stream"))
            return
        self._unread += 1
        self._answered.on_response(message)

    def _stop(self) -> None:
        if self._execution is not None:
            self._execution.cancel()
        if self._relay is not None:
            self._relay.cancel()

    def _end(self, error: AnyServeError | None) -> None:
        if not self._over:
            self._over = True
            self._answered.on_end(error)


def _depth(call: Call) -> int:
    """How deep a request is; what is no small number is as deep as can be."""
    text = call.metadata.get(DEPTH, "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 3 else MAX_DEPTH


def _metadata(parent: Call) -> dict[str, str]:
    """What goes along with what a request's handler calls."""
    metadata = {DEPTH: str(_depth(parent) + 1)}
    if _TRACE in parent.metadata:
        metadata[_TRACE] = parent.metadata[_TRACE]
    return metadata
