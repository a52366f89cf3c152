"""Requests that a replica can't serve: handed back to the scheduler, at most once each.

One that came from the scheduler ends with a status and, in its trailers, with why: the scheduler
takes it elsewhere, and this replica is out of its path. One that a client sent here goes to the
scheduler as a call of its own, whose answers are relayed. The scheduler shows by the link's token
that a call is its own; without that, the metadata named here means nothing.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias

from anyserve_protos.anyserve import v1 as pb
from anyserve_protos.infer_wire import InferRequestHead, join_request
from multidict import MultiDict

from anyserve import traces
from anyserve.capability import Capability, need_of
from anyserve.deadlines import Deadline, Deadlines
from anyserve.errors import AnyServeError, DeadlineExceeded, NotFound, PermissionDenied
from anyserve.needs import from_bytes, to_bytes
from anyserve.region_parameters import REGION as REGION_NAME
from anyserve.traces import Trace
from anyserve.transport.outgoing import Answers, Caller, Ongoing
from anyserve.transport.rpc import Metadata
from anyserve.transport.wire import NotTaken

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
MODEL_STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"

LINK_TOKEN = "anyserve-link-token-bin"
"""From the scheduler: the token that the replica registered with."""
DELEGATIONS = "anyserve-delegations"
"""From the scheduler: how often the request was delegated, 0 or 1."""
NEED = "anyserve-need-bin"
"""From the scheduler: what a request needs that was delegated, as `needs` writes it."""
HANDBACK = "anyserve-handback-bin"
"""To the scheduler, in trailers: a `pb.Handback`."""
DELEGATION = "anyserve-delegation-bin"
"""To the scheduler, with a request that it did not send here: a `pb.Delegation`."""
CONTROL = frozenset({LINK_TOKEN, DELEGATIONS, NEED, HANDBACK, DELEGATION})
"""Metadata that says nothing to anybody where a client has sent it."""

REASON_LIMIT = 500
"""Characters of a reason."""

REGION = REGION_NAME.encode()

RequestMetadata: TypeAlias = Iterable[tuple[str, str | bytes]]


class Link(Protocol):
    """What handing back needs of the scheduler link."""

    handed_back: int
    """Requests of the scheduler that were not served here."""
    relayed: int
    """Requests of clients that the scheduler was given instead."""

    @property
    def replica_id(self) -> str:
        """The replica's own in the fleet."""
        ...

    @property
    def epoch(self) -> int:
        """The last one granted."""
        ...

    @property
    def token(self) -> bytes:
        """What the scheduler's calls carry."""
        ...

    @property
    def channel(self) -> Caller | None:
        """To the scheduler; None while the replica is not registered."""
        ...


class Handback:
    """The way back to the scheduler."""

    def __init__(self, link: Callable[[], Link | None], deadlines: Deadlines) -> None:
        """link: None before the replica serves. deadlines: where those of relays are kept."""
        self._link = link
        self._deadlines = deadlines

    def trusts(self, metadata: RequestMetadata) -> bool:
        """Whether a call comes from the scheduler."""
        link = self._link()
        return link is not None and any(
            key == LINK_TOKEN
            and isinstance(value, bytes)
            and hmac.compare_digest(value, link.token)
            for key, value in metadata
        )

    def channel_for(self, metadata: RequestMetadata) -> Caller | None:
        """The channel to the scheduler for what a client can't be told here; None without one.

        Not for what the scheduler asks itself, which would come back.
        """
        link = self._link()
        return None if link is None or self.trusts(metadata) else link.channel

    def need(self, metadata: RequestMetadata) -> Capability | None:
        """What the scheduler says that a request needs; None where the request says so itself."""
        for key, value in metadata:
            if key == NEED and isinstance(value, bytes) and self.trusts(metadata):
                return from_bytes(value)
        return None

    def trailers(
        self,
        error: AnyServeError,
        head: InferRequestHead | None,
        metadata: RequestMetadata,
        trace: Trace | None = None,
    ) -> Mapping[str, bytes]:
        """What ends a call of the scheduler, so that it takes the request elsewhere.

        error: why it is not served here. head: None where the request was not read. Empty for a
        request that only this replica can serve. The call is one that `trusts`.
        """
        if head is not None and not _may_move(head, error):
            return {}
        link = self._link()
        assert link is not None
        link.handed_back += 1
        span = traces.begin("hand back", trace, reason=error.message)
        if span is not None:
            span.close()
        need = None if head is None else self.need(metadata) or request_need(head, metadata)
        return {HANDBACK: bytes(_message(error, need))}

    def relay(
        self,
        path: str,
        head: InferRequestHead,
        error: AnyServeError,
        metadata: RequestMetadata,
        deadline: float,
        answers: Answers,
        trace: Trace | None = None,
    ) -> Relay | None:
        """Have the scheduler serve a client's request; None where that can't be.

        path: of the method that the client called. error: why it is not served here. answers:
        hears of the request as of any call, and of its deadline. trace: in the place of what the
        metadata say of one.
        """
        link = self._link()
        if link is None or link.channel is None or not _may_move(head, error):
            return None
        passed = without_control(metadata if trace is None else trace.onto(metadata))
        delegation = pb.Delegation(
            replica_id=link.replica_id,
            epoch=link.epoch,
            link_token=link.token,
            handback=_message(error, request_need(head, passed)),
        )
        link.relayed += 1
        span = traces.begin("relay", trace, reason=error.message)
        relay = Relay(answers, error, self._deadlines, deadline, span)
        relay.call = link.channel.call(
            path,
            (join_request(head.head, head.raw),),
            relay,
            deadline=deadline,
            metadata=(*passed, (DELEGATION, bytes(delegation))),
        )
        return relay


class Relay:
    """A client's request that the scheduler has served elsewhere, and its answers on their way."""

    call: Ongoing

    def __init__(
        self,
        answers: Answers,
        refused: AnyServeError,
        deadlines: Deadlines,
        deadline: float,
        span: traces.Span | None,
    ) -> None:
        """refused: what the client is told where the scheduler does not take the request.

        span: what is recorded of it.
        """
        self._span = span
        self._answers = answers
        self._refused = refused
        self._deadlines = deadlines
        self._deadline: Deadline | None = None
        if deadline != math.inf:
            self._deadline = deadlines.add(deadline, self._expire)

    def cancel(self) -> None:
        """Nobody wants the answers any more."""
        self._drop()
        self.call.cancel()

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """See `Answers`."""
        self._answers.on_messages(messages)

    def on_end(self, error: AnyServeError | None, metadata: Metadata) -> None:
        """See `Answers`."""
        self._drop()
        if isinstance(error, NotTaken | PermissionDenied):
            error = self._refused
        self._answers.on_end(error, metadata)

    def _expire(self) -> None:
        self._drop()
        self.call.cancel()
        self._answers.on_end(
            DeadlineExceeded("the deadline passed before the request was answered"), MultiDict()
        )

    def _drop(self) -> None:
        if self._deadline is not None:
            self._deadlines.drop(self._deadline)
        if self._span is not None:
            self._span.close()


def request_need(head: InferRequestHead, metadata: RequestMetadata) -> Capability:
    """What a request needs by its own word; raises `InvalidArgument` for what nothing can."""
    return need_of(head.model_name, head.parameters, metadata, head.model_version)


def without_control(metadata: RequestMetadata) -> tuple[tuple[str, str | bytes], ...]:
    """A request's metadata without what only scheduler and replicas may say."""
    return tuple([entry for entry in metadata if entry[0] not in CONTROL])


def _may_move(head: InferRequestHead, error: AnyServeError) -> bool:
    """Whether another replica can serve a request that this one does not.

    Not with memory that was registered here, nor in the midst of a sequence that was begun here.
    """
    if REGION in head.head:
        return False
    return isinstance(error, NotFound) or "sequence_id" not in head.parameters


def _message(error: AnyServeError, need: Capability | None) -> pb.Handback:
    return pb.Handback(
        need=b"" if need is None else to_bytes(need), reason=error.message[:REASON_LIMIT]
    )
