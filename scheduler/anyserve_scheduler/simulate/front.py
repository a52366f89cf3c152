"""One process of the simulated scheduler: the product's registry, router and forwarding."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import attrs
from anyserve_protos.anyserve import v1 as pb

from anyserve.errors import AnyServeError, Unavailable
from anyserve.replica.inference import scan
from anyserve.transport.outgoing import Answers
from anyserve.transport.rpc import Buffer
from anyserve_scheduler.demand import Demand
from anyserve_scheduler.fleet import Change, ChangeKind, Fleet, ReplicaView
from anyserve_scheduler.gateway.forwarding import Forwarding
from anyserve_scheduler.gateway.incoming import Incoming, Metadata, incoming
from anyserve_scheduler.gateway.resuming import ROOM
from anyserve_scheduler.gateway.ways import Client, Ways
from anyserve_scheduler.links import Link, Links
from anyserve_scheduler.messages import registration_of, report_of
from anyserve_scheduler.registration import Heard
from anyserve_scheduler.registry import MemoryRegistry
from anyserve_scheduler.simulate.attachment import Attachment
from anyserve_scheduler.simulate.loop import Alarm
from anyserve_scheduler.simulate.measured import MeasuredRouter
from anyserve_scheduler.simulate.network import SCHEDULER, Call
from anyserve_scheduler.watched import WatchedRegistry

if TYPE_CHECKING:
    from anyserve_scheduler.simulate.scheduler import Scheduler

_ROUNDING = 1e-3
"""Seconds by which a lease may seem to be over before it is."""


class _Links(Links):
    """Links that no call holds: the simulation says when they come and go."""

    def hold(self, id: str, epoch: int, token: bytes) -> None:
        """A replica is registered."""
        link = self._links.get(id)
        if link is None or link.epoch != epoch:
            link = self._links[id] = Link(id, epoch, token)
        link.token = token

    def __len__(self) -> int:
        return len(self._links)


@attrs.define(eq=False)
class _Channels:
    """The ways to simulated replicas. As the product's, a channel ends with its replica's lease."""

    front: Front
    open_calls: dict[str, dict[Call, None]] = attrs.field(factory=dict)
    """By replica."""

    def get(self, replica: ReplicaView) -> _Channel:
        """See `Reach`."""
        return _Channel(self.front, replica, self.open_calls.setdefault(replica.id, {}))

    async def open(self, replica: ReplicaView) -> _Channel:
        """See `Reach`."""
        return self.get(replica)

    def follow(self, news: Sequence[Change] | Fleet) -> None:
        """Close the channels of replicas whose lease is over; those of others end their calls."""
        assert not isinstance(news, Fleet), "more changes at once than the registry keeps"
        for change in news:
            if change.kind in (ChangeKind.LEFT, ChangeKind.JOINED):
                calls = self.open_calls.pop(change.id, None)
                if calls and not change.goodbye:
                    self.front.place.loop.after(0.0, self._close, list(calls))

    def _close(self, calls: list[Call]) -> None:
        for call in calls:
            self.front.place.ledger.lose(call.body)
            call.lose(Unavailable("the connection was closed"))


@attrs.frozen
class _Channel:
    """The way to one replica."""

    front: Front
    replica: ReplicaView
    open_calls: dict[Call, None]

    def call(
        self,
        path: str,
        message: Sequence[Buffer],
        answers: Answers,
        *,
        deadline: float = math.inf,
        metadata: tuple[tuple[str, str | bytes], ...] = (),
    ) -> Call:
        """See `Caller`."""
        self.front.check_lease(self.replica)
        target = self.front.place.replicas[self.replica.id]
        call = target.call(SCHEDULER, path, b"".join(message), answers, deadline, metadata)
        self.open_calls[call] = None
        call.on_closed = partial(self.open_calls.pop, call, None)
        return call


@attrs.define(eq=False)
class Asked:
    """A request in this process, and whoever wants its answers; see `Client`."""

    front: Front
    body: bytes
    client: Client
    forwarding: Forwarding = attrs.field(init=False)

    def on_messages(self, messages: Sequence[bytes]) -> None:
        self.client.on_messages(messages)

    def on_end(self, error: AnyServeError | None) -> None:
        self.front.asked.pop(self, None)
        self.client.on_end(error)

    def cancel(self) -> None:
        """Nobody wants them any more."""
        self.front.asked.pop(self, None)
        self.forwarding.cancel()


class Front:
    """One process, from its start to its crash."""

    def __init__(
        self, place: Scheduler, rng: Random, demand: Demand, costs: array[float], epoch: int
    ) -> None:
        """epoch: the first that it grants."""
        self.place = place
        self.asked: dict[Asked, None] = {}
        self.router = MeasuredRouter(place.policy, rng, costs)
        self.registry = WatchedRegistry(MemoryRegistry(place.terms, next_epoch=epoch))
        self.registry.follow(self.router.follow)
        self.links = _Links(self.registry)
        channels = _Channels(self)
        self.registry.follow(channels.follow)
        self.ways = Ways(self.registry, self.links, channels, self.router)
        loop = place.loop
        self.ways.complete_at = loop.now + place.terms.lease
        self._demand = demand
        self.heard: dict[str, float] = {}
        """When each replica was heard, kept apart from the registry to judge it by."""
        self._draining: set[str] = set()
        """Replicas that have said so, kept in the same way."""
        self._streams: dict[str, tuple[Attachment, int]] = {}
        self._leases = Alarm(loop, self._expire_leases)
        self._deadlines = Alarm(loop, lambda: self.ways.deadlines.expire(loop.now))

    # Requests.

    def serve(
        self,
        path: str,
        body: bytes,
        metadata: Metadata,
        deadline: float,
        client: Client,
        blocks: tuple[bytes, ...] = (),
        session: str | None = None,
    ) -> Asked:
        """A request has come; raises why it can't be passed on.

        blocks, session: what the product reads from the body; a simulated one has no prompt.
        """
        request: Incoming = incoming(path, body, scan(body), metadata, deadline, self.links)
        request.blocks, request.session = blocks, session
        asked = Asked(self, body, client)
        asked.forwarding = Forwarding(self.ways, request, asked)
        asked.forwarding.start()
        self.asked[asked] = None
        self._deadlines.check()
        if self.ways.unserved.take_news():
            self._decide()
        return asked

    def check_lease(self, view: ReplicaView) -> None:
        """Note it where a request goes to a replica that holds no lease, or drains."""
        ledger = self.place.ledger
        silent = self.place.loop.now - self.heard.get(view.id, -math.inf)
        held = self.registry.fleet().replicas.get(view.id)
        ledger.check(
            silent <= self.place.terms.lease + _ROUNDING
            and held is not None
            and held.epoch == view.epoch,
            f"a request went to {view.id}, silent for {silent:.3f} s, whose lease was over",
        )
        ledger.check(
            view.id not in self._draining, f"a request went to {view.id}, which said that it drains"
        )

    # Replicas: see `Registrar`.

    def on_register(self, attachment: Attachment, stream: int, message: pb.Register) -> None:
        id = attachment.replica
        try:
            grant = self.registry.register(registration_of(message), self.place.loop.now)
        except AnyServeError as error:
            self._answer(id, attachment.on_refused, stream, error)
            return
        self._streams[id] = attachment, stream
        self.links.hold(id, grant.epoch, message.link_token)
        self._hear(id, message.draining)
        self._retry()
        self._answer(id, attachment.on_granted, stream, grant)

    def on_report(self, attachment: Attachment, stream: int, message: pb.Report) -> None:
        id = attachment.replica
        link = self.links.get(id)
        if (
            link is None
            or link.token != attachment.token
            or self._streams.get(id) != (attachment, stream)
        ):
            return  # the stream has ended
        try:
            heard = self.registry.report(id, link.epoch, report_of(message), self.place.loop.now)
        except AnyServeError as error:
            self._answer(id, attachment.on_refused, stream, error)
            return
        if heard is not Heard.IGNORED:
            self._hear(id, message.draining)
        self._retry()
        self._answer(id, attachment.on_heard, stream, heard)

    def on_lost(self, attachment: Attachment, stream: int) -> None:
        if self._streams.get(attachment.replica) == (attachment, stream):
            self.registry.suspect(attachment.replica, attachment.epoch)
            self._retry()

    def on_leave(self, attachment: Attachment) -> None:
        self.registry.release(attachment.replica, attachment.epoch)
        self._retry()

    def _hear(self, id: str, draining: bool) -> None:
        self.heard[id] = self.place.loop.now
        if draining:
            self._draining.add(id)
        else:
            self._draining.discard(id)
        self._leases.check()

    def _answer(self, id: str, handle: Callable[..., None], *values: object) -> None:
        self.place.network.send(SCHEDULER, id, handle, *values)

    def keep_demand(self) -> None:
        """Ask replicas for what is wanted, from now on."""
        place = self.place
        if place.front is not self:
            return
        self._decide()
        self.ways.unserved.forget()
        place.loop.after(place.terms.interval, self.keep_demand)

    def _decide(self) -> None:
        place = self.place
        for capability in self.ways.unserved.wanted():
            self._demand.unserved(capability, place.loop.now)
        for action in self._demand.step(self.registry.fleet(), place.loop.now):
            place.actions[action.verb] += 1
            self._answer(action.replica, place.replicas[action.replica].on_action, action)

    def _retry(self) -> None:
        """The fleet may be different: send on what has waited for that."""
        self.ways.unserved.retry()
        self._deadlines.check()

    def _expire_leases(self) -> float:
        self.registry.expire(self.place.loop.now)
        self._retry()
        return self.registry.due()

    # Its end.

    def kill(self) -> None:
        """It is no more; the kernel closes its connections."""
        for asked in list(self.asked):
            self.place.ledger.lose(asked.body)
            asked.cancel()
            asked.client.on_end(Unavailable("the connection was lost"))
        for id, (attachment, stream) in self._streams.items():
            lost = Unavailable("the scheduler ended the link")
            self._answer(id, attachment.on_refused, stream, lost)

    def requests(self) -> dict[str, int]:
        """What it has of requests."""
        return {
            "requests": self.ways.in_flight,
            "deadlines": len(self.ways.deadlines),
            "requests in its router's book": self.router.open,
            "bytes kept of requests": ROOM - self.ways.room.free,
        }

    def leaks(self) -> list[str]:
        """What is left when there are no requests and no replicas any more."""
        counts = {
            **self.requests(),
            "leases": len(self.registry.fleet().replicas),
            "links": len(self.links),
        }
        return [f"the scheduler has {count} {what}" for what, count in counts.items() if count]
