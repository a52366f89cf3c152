"""What handlers call: run here where it is offered, and else by the scheduler, once."""

from __future__ import annotations

import attrs
from anyserve_protos.infer_wire import InferRequestHead

from anyserve.capability import need_of
from anyserve.errors import (
    AnyServeError,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)
from anyserve.pairs import check_client, check_paired
from anyserve.replica.anywhere import AnywhereRequest
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Answered, Asked, Call, Called, Reply
from anyserve.replica.handback import Handback
from anyserve.replica.inference import scan
from anyserve.replica.sequences import sequence_of
from anyserve.traces import Trace, at_door

DEPTH = "anyserve-call-depth"
"""Metadata: how many handlers have called one another to make this request."""
MAX_DEPTH = 8
MAX_OPEN = 64
"""Calls of one request's handler that have not ended."""


class HandlerRequests:
    """The `Calls` of a replica."""

    def __init__(self, dispatcher: Dispatcher, handback: Handback | None = None) -> None:
        """handback: where what nobody offers here goes; None without a scheduler."""
        self.dispatcher = dispatcher
        self.handback = handback

    def request(self, parent: Call, asked: Asked, answered: Answered) -> Called:
        """See `Calls`."""
        return CalledRequest(self, parent, asked, answered)


class CalledRequest(AnywhereRequest):
    """One request of a handler. It has the deadline of the caller's own request."""

    def __init__(
        self, calls: HandlerRequests, parent: Call, asked: Asked, answered: Answered
    ) -> None:
        """parent: the request whose handler calls."""
        trace = at_door(()) if parent.trace is None else parent.trace.child()
        super().__init__(
            calls.dispatcher,
            calls.handback,
            once=asked.once,
            metadata=_metadata(parent, trace),
            deadline=parent.deadline,
            trace=trace,
            name="call",
        )
        self._parent = parent
        self._asked = asked
        self._answered = answered

    def start(self) -> None:
        """Begin it; what is wrong with it is told as its end."""
        self._parent.open_calls += 1
        asked = self._asked
        try:
            head = scan(asked.head)
        except InvalidArgument as error:
            self._end(error)
        else:
            self.begin(attrs.evolve(head, raw=asked.raw) if asked.raw else head)

    def accept(self, head: InferRequestHead) -> Call:
        """See `AnywhereRequest`."""
        parent = self._parent
        if parent.open_calls > MAX_OPEN:
            raise ResourceExhausted(
                f"the handler of {parent.need.name!r} has {MAX_OPEN} calls open, which is the limit"
            )
        if _depth(parent) >= MAX_DEPTH:
            raise FailedPrecondition(
                f"handlers have called one another {MAX_DEPTH} deep, which is the limit:"
                f" {parent.need.name!r} may call nothing more"
            )
        need = need_of(head.model_name, head.parameters, version=head.model_version)
        offer = self._dispatcher.match(need)[0].offer
        check_client(head.parameters)
        check_paired(offer.capability, head.parameters)
        return Call(
            need=need,
            head=head.head,
            raw=head.raw,
            request_id=parent.request_id,
            deadline=parent.deadline,
            metadata=self._metadata,
            sequence=sequence_of(head.parameters) if offer.sequence else None,
            trace=self._trace,
            lent=self._asked.lent,
        )

    def respond(self, reply: Reply) -> None:
        """See `AnywhereRequest`."""
        self._answered.on_reply(reply)

    def finish(self, error: AnyServeError | None) -> None:
        """See `AnywhereRequest`."""
        self._answered.on_end(error)

    def _close(self) -> None:
        super()._close()
        self._parent.open_calls -= 1


def _depth(call: Call) -> int:
    """How deep a request is; what is no small number is as deep as can be."""
    text = call.metadata.get(DEPTH, "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 3 else MAX_DEPTH


def _metadata(parent: Call, trace: Trace | None) -> dict[str, str]:
    """What goes along with what a request's handler calls."""
    return {DEPTH: str(_depth(parent) + 1), **dict(() if trace is None else trace.headers)}
