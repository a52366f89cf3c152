"""The replica's end of one worker link: calls out, replies back, by a table of open calls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs
import trio

from anyserve.errors import AnyServeError, ResourceExhausted
from anyserve.link import frames
from anyserve.link.channel import FrameChannel
from anyserve.link.frames import Buffer, Frame, Kind, Part, RequestBody
from anyserve.objects.arena import Arena, ArenaFull
from anyserve.objects.leases import Block, LeaseSet
from anyserve.objects.mapping import Reader
from anyserve.offers import Offer
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Call, Called, Exchange, Listener, Reply, WorkerLost

_CREDIT_BATCH = frames.INITIAL_CREDIT // 2
"""Replies taken before their credit is given back, in one frame."""


class _LinkExchange(Exchange):
    """A call that runs in the worker."""

    def __init__(
        self,
        listener: Listener,
        channel: FrameChannel,
        number: int,
        capability: str,
        call: Call,
        dispatcher: Dispatcher,
    ) -> None:
        super().__init__(listener)
        self.capability = capability
        self.leases: LeaseSet | None = None
        """The blocks that the request is in, where it is in any."""
        self.cancelled_at: float | None = None
        self._channel = channel
        self._number = number
        self._consumed = 0
        self._call = call
        self._dispatcher = dispatcher
        self._called: dict[int, _LinkedCall] = {}
        """What its handler has called, by its number."""

    def on_called(self, frame: Frame) -> None:
        """The handler calls another capability, or says something of what it has called."""
        number, body = frames.decode_called(frame)
        called = self._called.get(number)
        if frame.kind == Kind.CALL:
            if self._closed:
                return  # it is told that it was cancelled
            called = _LinkedCall(self, number)
            self._called[number] = called
            called.start(self._dispatcher, self._call, body)
        elif called is not None:
            if frame.kind == Kind.CALL_CREDIT:
                called.request.consumed(int.from_bytes(body, "little"))
            else:
                del self._called[number]
                called.request.cancel()

    def tell_called(self, kind: Kind, number: int, body: Buffer = b"") -> None:
        """Tell the handler of what it has called."""
        if kind is not Kind.CALLED:
            del self._called[number]
        self._channel.send(frames.encode_called(kind, self._number, number, body))

    def cancel_called(self) -> None:
        """Nobody waits for what the handler has called."""
        while self._called:
            self._called.popitem()[1].request.cancel()

    def release_leases(self) -> None:
        """The worker has no more use for the request's tensors."""
        if self.leases is not None:
            self.leases.release_all()

    def on_cancelled(self) -> None:
        self.cancelled_at = trio.current_time()
        self.cancel_called()
        self._channel.send(frames.encode(Kind.CANCEL, self._number))

    def consumed(self) -> None:
        self._consumed += 1
        if self._consumed == _CREDIT_BATCH and not self.ended:
            self._channel.send(frames.encode_credit(self._number, self._consumed))
            self._consumed = 0


class _LinkedCall:
    """What a handler in the worker has called."""

    request: Called

    def __init__(self, exchange: _LinkExchange, number: int) -> None:
        self._exchange = exchange
        self._number = number

    def start(self, dispatcher: Dispatcher, parent: Call, body: memoryview) -> None:
        """Begin it; the first byte says whether one response is wanted."""
        self.request = dispatcher.calls.request(parent, bytes(body[1:]), bool(body[0]), self)
        self.request.start()

    def on_response(self, message: Buffer) -> None:
        """See `Answered`."""
        self._exchange.tell_called(Kind.CALLED, self._number, message)

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Answered`."""
        if error is None:
            self._exchange.tell_called(Kind.CALL_END, self._number)
        else:
            self._exchange.tell_called(Kind.CALL_ERROR, self._number, frames.error_bytes(error))


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
        self._dispatcher = dispatcher
        self._channel = channel
        self._offers = {offer.name: index for index, offer in enumerate(offers)}
        self._arena = arena
        self._reader = Reader()
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
        exchange = _LinkExchange(listener, self._channel, number, name, call, self._dispatcher)
        body = RequestBody(
            budget=math.inf if call.deadline == math.inf else call.deadline - trio.current_time(),
            offer=self._offers[name],
            request_id=call.request_id,
            extra=_extra(call),
            parts=[
                part if len(part) < frames.LEASE_THRESHOLD else self._place(part, exchange)
                for part in (call.head, *call.raw)
            ],
        )
        try:
            frame = frames.encode_request(number, body)
        except ResourceExhausted:
            exchange.release_leases()
            raise
        self._open[number] = exchange
        self._channel.send(frame)
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
            reply = self._reply(frames.decode_parts(frame))
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
            exchange.on_tokens(frames.decode_tokens(frame))
        elif kind in (Kind.CALL, Kind.CALL_CREDIT, Kind.CALL_CANCEL):
            exchange.on_called(frame)

    def lost(self, reason: str) -> None:
        """The worker is gone: every open call ends with `WorkerLost`, new ones are refused."""
        self._lost = reason
        for number in list(self._open):
            self._end(number, error=WorkerLost(reason))
        self._reader.close()

    def _end(self, number: int, batch: int = 1, error: AnyServeError | None = None) -> None:
        exchange = self._open.pop(number)
        exchange.cancel_called()
        exchange.release_leases()
        exchange.end(batch, error)

    def _place(self, part: Buffer, exchange: _LinkExchange) -> Part:
        if exchange.leases is None:
            exchange.leases = LeaseSet()
        try:
            return exchange.leases.add(self._arena.put([part]))
        except ArenaFull:
            return part  # slower, but not wrong: how much can be in flight is bounded elsewhere

    def _reply(self, parts: Sequence[Part]) -> Reply:
        blocks = [part for part in parts if isinstance(part, Block)]
        pieces = [self._reader.view(part) if isinstance(part, Block) else part for part in parts]
        return Reply(pieces, partial(self._release, blocks))

    def _release(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            self._channel.send(frames.encode_release(block))


def _extra(call: Call) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if call.metadata:
        extra["metadata"] = dict(call.metadata)
    if call.sequence is not None:
        extra["sequence"] = attrs.asdict(call.sequence)
    if call.regions:
        extra["regions"] = call.regions
    return extra
