"""The replica's end of one worker link: calls out, replies back, by a table of open calls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import attrs
import trio

from anyserve.errors import AnyServeError, ResourceExhausted
from anyserve.link import frames
from anyserve.link.channel import FrameChannel
from anyserve.link.frames import Buffer, Frame, Kind, Part, RequestBody
from anyserve.objects.arena import Arena, ArenaFull
from anyserve.objects.leases import Block, Lease, LeaseSet
from anyserve.offers import Offer
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Call, Exchange, Listener, Reply, WorkerLost
from anyserve.replica.linked_calls import LinkedCalls, LinkEnd, lent_reply

_CREDIT_BATCH = frames.INITIAL_CREDIT // 2
"""Replies taken before their credit is given back, in one frame."""


class _LinkExchange(Exchange):
    """A call that runs in the worker."""

    calls: LinkedCalls | None = None
    """What its handler calls, once it does."""
    leases: LeaseSet | None = None
    """The blocks that the request is in, where it is in any."""
    cancelled_at: float | None = None
    _consumed = 0

    def __init__(
        self, listener: Listener, link: LinkEnd, number: int, capability: str, call: Call
    ) -> None:
        super().__init__(listener)
        self.capability = capability
        self._link = link
        self._number = number
        self._call = call

    def on_called(self, frame: Frame) -> None:
        """The handler calls another capability, or says something of what it has called."""
        if self.calls is None:
            self.calls = LinkedCalls(self._link, self._number, self._call)
        if frame.kind != Kind.CALL:
            self.calls.on_frame(frame)
        elif self._closed:
            self.calls.refuse(frame)
        else:
            self.calls.begin(frame)

    def hold(self, lease: Lease) -> Block:
        """Have the worker read what lies there, until its handler has ended."""
        if self.leases is None:
            self.leases = LeaseSet()
        return self.leases.add(lease)

    def let_go(self) -> None:
        """The worker has no more use for the request's tensors, nor for what it has called."""
        if self.calls is not None:
            self.calls.close()
        if self.leases is not None:
            self.leases.release_all()

    def on_cancelled(self) -> None:
        self.cancelled_at = trio.current_time()
        if self.calls is not None:
            self.calls.cancel()
        self._link.channel.send(frames.encode(Kind.CANCEL, self._number))

    def consumed(self) -> None:
        self._consumed += 1
        if self._consumed == _CREDIT_BATCH and not self.ended:
            self._link.channel.send(frames.encode_credit(self._number, self._consumed))
            self._consumed = 0


class Connection:
    """An `Executor` over the link of a worker that is ready.

    The worker link's reader feeds it frames. `lost` ends every call when the worker is gone.
    """

    def __init__(
        self,
        name: str,
        channel: FrameChannel,
        offers: Sequence[Offer],
        arena: Arena,
        dispatcher: Dispatcher,
    ) -> None:
        """dispatcher: which runs what the handlers call."""
        self._name = name
        self._link = LinkEnd(channel, dispatcher)
        self._offers = {offer.name: index for index, offer in enumerate(offers)}
        self._arena = arena
        self._open: dict[int, _LinkExchange] = {}
        self._calls = itertools.count(1)
        self._lost: str | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def running(self) -> list[str]:
        """The capabilities of the calls that have not ended."""
        return [call.capability for call in self._open.values()]

    def overdue(self, before: float) -> list[str]:
        """The capabilities of calls that were cancelled before that time and still run."""
        return [
            call.capability
            for call in self._open.values()
            if call.cancelled_at is not None and call.cancelled_at < before
        ]

    def submit(self, call: Call, offer: Offer, listener: Listener) -> Exchange:
        """See `Executor`: sends `call` to the worker."""
        if self._lost is not None:
            raise WorkerLost(self._lost)
        number = next(self._calls)
        name = offer.name
        exchange = _LinkExchange(listener, self._link, number, name, call)
        body = RequestBody(
            budget=math.inf if call.deadline == math.inf else call.deadline - trio.current_time(),
            offer=self._offers[name],
            request_id=call.request_id,
            extra=_extra(call),
            parts=self._passed_on(call, exchange)
            if call.lent
            else [self._part(part, exchange) for part in (call.head, *call.raw)],
        )
        try:
            frame = frames.encode_request(number, body)
        except ResourceExhausted:
            exchange.let_go()
            raise
        self._open[number] = exchange
        self._link.channel.send(frame)
        return exchange

    def on_frame(self, frame: Frame) -> None:
        """Act on a frame of a call; those of calls that have ended are of no interest."""
        exchange = self._open.get(frame.call)
        kind = frame.kind
        if kind == Kind.ANSWER:
            if exchange is not None:
                batch, message = frames.decode_answer(frame)
                exchange.deliver(Reply((message,)))
                self._end(frame.call, batch)
        elif kind == Kind.RESPONSE:
            if exchange is not None:
                exchange.deliver(Reply((frame.body,)))
        elif kind == Kind.PARTS:
            reply = lent_reply(self._link, frames.decode_parts(frame))
            if exchange is None:
                reply.release()
            else:
                exchange.deliver(reply)
        elif exchange is None:
            return
        elif kind == Kind.END:
            self._end(frame.call, frames.decode_end(frame))
        elif kind == Kind.ERROR:
            self._end(frame.call, error=frames.decode_error(frame))
        elif kind == Kind.TOKENS:
            exchange.on_tokens(*frames.decode_tokens(frame))
        elif kind in (Kind.CALL, Kind.CALL_CREDIT, Kind.CALL_CANCEL, Kind.CALL_TAKEN):
            exchange.on_called(frame)

    def lost(self, reason: str) -> None:
        """The worker is gone: every open call ends with `WorkerLost`, new ones are refused."""
        self._lost = reason
        for number in list(self._open):
            self._end(number, error=WorkerLost(reason))
        self._link.reader.close()

    def _end(self, number: int, batch: int = 1, error: AnyServeError | None = None) -> None:
        exchange = self._open.pop(number)
        exchange.let_go()
        exchange.end(batch, error)

    def _part(self, part: Buffer, exchange: _LinkExchange) -> Part:
        if len(part) < frames.LEASE_THRESHOLD:
            return part
        try:
            return exchange.hold(self._arena.put([part]))
        except ArenaFull:
            return part  # slower, but not wrong: how much can be in flight is bounded elsewhere

    def _passed_on(self, call: Call, exchange: _LinkExchange) -> list[Part]:
        """The parts of a call some of which lie in another worker's arena, and stay there."""
        return [
            self._part(call.head, exchange),
            *[
                self._part(part, exchange) if lease is None else exchange.hold(lease.retain())
                for part, lease in zip(call.raw, call.lent, strict=True)
            ],
        ]


def _extra(call: Call) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if call.metadata:
        extra["metadata"] = dict(call.metadata)
    if call.sequence is not None:
        extra["sequence"] = attrs.asdict(call.sequence)
    if call.regions:
        extra["regions"] = call.regions
    return extra
