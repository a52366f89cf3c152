"""The scheduler in simulation: the product's registry, router and forwarding."""

from __future__ import annotations

import math
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, cast

import attrs
from anyserve_protos.anyserve import v1 as pb

from anyserve.capability import Capability
from anyserve.errors import AnyServeError
from anyserve.replica.handback import MODEL_INFER
from anyserve.replica.inference import scan
from anyserve.transport.outgoing import Answers
from anyserve.transport.rpc import Buffer, Limits
from anyserve.transport.trio_client import Channel
from anyserve_scheduler.channels import Channels
from anyserve_scheduler.demand import Demand, Verb
from anyserve_scheduler.fleet import ReplicaView
from anyserve_scheduler.gateway.forwarding import Client, Forwarding, Ways
from anyserve_scheduler.gateway.incoming import Incoming, incoming
from anyserve_scheduler.links import Link, Links
from anyserve_scheduler.messages import registration_of, report_of
from anyserve_scheduler.registration import Heard, LeaseTerms
from anyserve_scheduler.registry import MemoryRegistry
from anyserve_scheduler.routing import Decision, Hints, NoRoute, Policy, Router, Sent
from anyserve_scheduler.simulate.attachment import Attachment
from anyserve_scheduler.simulate.ledger import Ledger
from anyserve_scheduler.simulate.loop import Alarm, Loop
from anyserve_scheduler.simulate.network import SCHEDULER, Call, Network
from anyserve_scheduler.simulate.replica import Replica
from anyserve_scheduler.watched import WatchedRegistry

_ROUNDING = 1e-3
"""Seconds by which a lease may seem to be over before it is."""


class MeasuredRouter(Router):
    """A router that says what its decisions cost, and whether what it was told adds up."""

    def __init__(self, policy: Policy, rng: Random, demand: Demand) -> None:
        super().__init__(policy, rng)
        self._demand = demand
        self.costs = array("d")
        """Seconds of this machine's time, of each decision."""
        self.open = 0
        """Requests sent and not ended."""

    def choose(self, need: Capability, hints: Hints, now: float) -> Decision | NoRoute:
        began = time.perf_counter()
        decision = super().choose(need, hints, now)
        self.costs.append(time.perf_counter() - began)
        if isinstance(decision, NoRoute) and decision.loadable is not None:
            self._demand.unserved(decision.loadable, now)
        return decision

    def sent(self, need: Capability, hints: Hints, decision: Decision, now: float) -> Sent:
        self.open += 1
        return super().sent(need, hints, decision, now)

    def ended(self, sent: Sent, now: float, *, served: bool) -> None:
        self.open -= not sent.ended
        super().ended(sent, now, served=served)


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


class _Channels(Channels):
    """Channels over simulated links."""

    def __init__(self, registry: WatchedRegistry, scheduler: Scheduler) -> None:
        super().__init__(registry, Limits())
        self._scheduler = scheduler

    def get(self, replica: ReplicaView) -> Channel:
        return cast(Channel, _Channel(self._scheduler, replica))


@attrs.frozen
class _Channel:
    """What forwarding needs of a `Channel`."""

    scheduler: Scheduler
    replica: ReplicaView

    def call(
        self,
        path: str,
        message: Sequence[Buffer],
        answers: Answers,
        *,
        deadline: float = math.inf,
        metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> Call:
        """Send a request to the replica."""
        self.scheduler.check_lease(self.replica)
        target = self.scheduler.replicas[self.replica.id]
        return target.call(SCHEDULER, b"".join(message), answers, deadline, metadata)


class Scheduler:
    """The scheduler's process, which does not fail."""

    def __init__(
        self,
        loop: Loop,
        network: Network,
        ledger: Ledger,
        terms: LeaseTerms,
        router: MeasuredRouter,
        demand: Demand,
    ) -> None:
        self.replicas: dict[str, Replica] = {}
        self.router = router
        self.registry = WatchedRegistry(MemoryRegistry(terms))
        self.registry.follow(router.follow)
        self.links = _Links(self.registry)
        self.ways = Ways(self.registry, self.links, _Channels(self.registry, self), router)
        self._loop = loop
        self._network = network
        self._ledger = ledger
        self._demand = demand
        self.actions: Counter[Verb] = Counter()
        """What replicas were asked for."""
        self._lease, self._interval = terms.lease, terms.interval
        self._heard: dict[str, float] = {}
        """When each replica was heard, kept apart from the registry to judge it by."""
        self._streams: dict[str, int] = {}
        self._leases = Alarm(loop, self._expire_leases)
        self._deadlines = Alarm(loop, lambda: self.ways.deadlines.expire(loop.now))

    def receive(self, handle: Callable[..., None], *values: Any) -> None:
        """See `Node`."""
        handle(*values)

    # Requests.

    def serve(
        self,
        body: bytes,
        deadline: float,
        blocks: tuple[bytes, ...],
        session: str | None,
        client: Client,
    ) -> Forwarding:
        """A client's request has come; raises why it can't be passed on.

        blocks, session: what the product reads from the body; a simulated one has no prompt.
        """
        request = incoming(MODEL_INFER, body, scan(body), (), deadline, self.links)
        request.blocks, request.session = blocks, session
        return self._forward(request, client)

    def on_delegated(self, call: Call) -> None:
        """See `Front`."""
        if call.answered:
            return
        deadline = self._loop.now + call.budget
        try:
            request = incoming(
                MODEL_INFER, call.body, scan(call.body), tuple(call.metadata), deadline, self.links
            )
            forwarding = self._forward(request, _Delegated(call))
        except AnyServeError as error:
            call.fail(error)
            return
        call.on_gone = forwarding.cancel

    def _forward(self, request: Incoming, client: Client) -> Forwarding:
        forwarding = Forwarding(self.ways, request, client)
        forwarding.start()
        self._deadlines.check()
        return forwarding

    def check_lease(self, view: ReplicaView) -> None:
        """Note it where a request goes to a replica that holds no lease."""
        silent = self._loop.now - self._heard.get(view.id, -math.inf)
        held = self.registry.fleet().replicas.get(view.id)
        self._ledger.check(
            silent <= self._lease + _ROUNDING and held is not None and held.epoch == view.epoch,
            f"a request went to {view.id}, silent for {silent:.3f} s, whose lease was over",
        )

    # Replicas.

    def on_register(self, attachment: Attachment, stream: int, message: pb.Register) -> None:
        """See `Front`."""
        id = attachment.replica
        try:
            grant = self.registry.register(registration_of(message), self._loop.now)
        except AnyServeError as error:
            self._network.send(SCHEDULER, id, attachment.on_refused, stream, error)
            return
        self._heard[id] = self._loop.now
        self._streams[id] = stream
        self.links.hold(id, grant.epoch, message.link_token)
        self._leases.check()
        self._network.send(SCHEDULER, id, attachment.on_granted, stream, grant)

    def on_report(self, attachment: Attachment, stream: int, message: pb.Report) -> None:
        """See `Front`."""
        id = attachment.replica
        link = self.links.get(id)
        if link is None or link.token != attachment.token or self._streams.get(id) != stream:
            return  # the stream has ended
        try:
            heard = self.registry.report(id, link.epoch, report_of(message), self._loop.now)
        except AnyServeError as error:
            self._network.send(SCHEDULER, id, attachment.on_refused, stream, error)
            return
        if heard is not Heard.IGNORED:
            self._heard[id] = self._loop.now
        self._leases.check()
        self._network.send(SCHEDULER, id, attachment.on_heard, stream, heard)

    def on_lost(self, replica: str, epoch: int, stream: int) -> None:
        """See `Front`."""
        if self._streams.get(replica) == stream:
            self.registry.suspect(replica, epoch)

    def keep_demand(self) -> None:
        """Ask replicas for what is wanted, from now on."""
        for action in self._demand.step(self.registry.fleet(), self._loop.now):
            self.actions[action.verb] += 1
            self._network.send(
                SCHEDULER, action.replica, self.replicas[action.replica].on_action, action
            )
        self._loop.after(self._interval, self.keep_demand)

    def _expire_leases(self) -> float:
        self.registry.expire(self._loop.now)
        return self.registry.due()

    def leaks(self) -> list[str]:
        """What is left in a scheduler that has no requests and no replicas any more."""
        counts = {
            "requests": self.ways.in_flight,
            "deadlines": len(self.ways.deadlines),
            "requests in its router's book": self.router.open,
            "leases": len(self.registry.fleet().replicas),
            "links": len(self.links),
        }
        return [f"the scheduler has {count} {what}" for what, count in counts.items() if count]


@attrs.define(eq=False)
class _Delegated:
    """The client of a request that a replica has handed over."""

    _call: Call

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """See `Client`."""
        if not self._call.answered:
            self._call.answer(messages)

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Client`."""
        if error is not None:
            self._call.fail(error)
