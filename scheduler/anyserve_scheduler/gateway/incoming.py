"""A request as it came in by the front door, read as far as it must be to be routed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import attrs
from anyserve_protos.anyserve import v1 as pb
from anyserve_protos.infer_wire import InferRequestHead, Parameter

from anyserve.capability import Capability
from anyserve.errors import InvalidArgument
from anyserve.needs import from_bytes
from anyserve.pairs import check_client
from anyserve.replica.handback import DELEGATION, request_need, without_control
from anyserve.replica.inference import deadline_of
from anyserve.traces import Trace, at_door, without_trace
from anyserve.transport.rpc import decode
from anyserve_scheduler.delegation import Handback, Permit
from anyserve_scheduler.links import Links
from anyserve_scheduler.routing import block_hashes
from anyserve_scheduler.routing.prefix import BLOCK

SESSION = "session"
"""Request parameter: requests of one session go to one replica where they can."""

_LENGTH = 4
"""Bytes before each element of a BYTES tensor, which say how long it is."""

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]


@attrs.define(eq=False)
class Incoming:
    """One request."""

    path: str
    """Of the method: ModelInfer or ModelStreamInfer."""
    body: bytes
    """The ModelInferRequest."""
    need: Capability
    metadata: Metadata
    """Of the client's, what is passed on."""
    deadline: float
    """On Trio's clock."""
    session: str | None
    blocks: tuple[bytes, ...]
    """Hashes of its prompt."""
    permit: Permit
    """Spent, where a replica handed the request over."""
    id: str = ""
    """The client's own for it."""
    trace: Trace | None = None
    """Where it is in a trace; `metadata` says nothing of that."""
    parameters: Mapping[str, Parameter] = attrs.field(factory=dict)
    """Its own."""


def incoming(
    path: str,
    body: bytes,
    head: InferRequestHead,
    metadata: Metadata,
    deadline: float,
    links: Links,
) -> Incoming:
    """What a client sends, or a replica that hands a request over.

    head: what was read of `body`. metadata, deadline: those of the call. Raises `InvalidArgument`
    for a need that can't be, and for a client that tells halves of a pair where to meet;
    `PermissionDenied` for one who hands a request over and is no replica of this fleet.
    """
    check_client(head.parameters)
    permit = Permit()
    for key, value in metadata:
        if key == DELEGATION and isinstance(value, bytes):
            permit = _delegated(value, links)
            break
    passed = without_control(metadata)
    need = request_need(head, passed)
    if permit.spent is not None:
        need = narrowed(need, permit.spent)
    trace = at_door(passed)
    return Incoming(
        path=path,
        body=body,
        need=need,
        metadata=passed if trace is None else without_trace(passed),
        deadline=deadline_of(head, deadline),
        session=_session(head) if head.parameters else None,
        blocks=_blocks(head.raw),
        permit=permit,
        id=head.id,
        trace=trace,
        parameters=head.parameters,
    )


def narrowed(need: Capability, handback: Handback) -> Capability:
    """The need that a hand-back asks for, where it asks for no less than before."""
    return handback.need if handback.need.satisfies(need) else need


def handback_of(replica: str, message: pb.Handback, need: Capability) -> Handback:
    """What a replica says; `need`: what it was asked for. Raises `InvalidArgument`."""
    return Handback(replica, from_bytes(message.need) if message.need else need, message.reason)


def _delegated(value: bytes, links: Links) -> Permit:
    message: pb.Delegation = decode(value, pb.Delegation)
    link = links.verified(message.replica_id, message.epoch, message.link_token)
    if message.handback is None or not message.handback.need:
        raise InvalidArgument("a delegation says what is needed, and why it is not served")
    link.delegations += 1
    need = from_bytes(message.handback.need)
    return Permit(handback_of(link.replica_id, message.handback, need))


def _session(head: InferRequestHead) -> str | None:
    sequence = head.parameters.get("sequence_id")
    if sequence:
        return f"sequence {sequence}"
    session = head.parameters.get(SESSION)
    return session_key(str(session)) if session else None


def session_key(session: str) -> str:
    """What routing knows a session by."""
    return f"session {session}"


def _blocks(raw: Sequence[memoryview]) -> tuple[bytes, ...]:
    """The hashes of a prompt: of a first tensor that is one text, as its length shows."""
    if not raw or len(raw[0]) < _LENGTH + BLOCK:
        return ()
    text = raw[0]
    if int.from_bytes(text[:_LENGTH], "little") != len(text) - _LENGTH:
        return ()
    return block_hashes(text[_LENGTH:])
