"""What passing requests on needs of the scheduler, and of whoever wants their answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import trio

from anyserve.burst import now
from anyserve.deadlines import Deadlines
from anyserve.errors import AnyServeError, Cancelled, Unavailable
from anyserve.intake import Intake
from anyserve.transport.outgoing import Caller
from anyserve_scheduler.fleet import OfferView, ReplicaView
from anyserve_scheduler.gateway.incoming import Incoming
from anyserve_scheduler.gateway.meter import Meter
from anyserve_scheduler.gateway.resuming import Room
from anyserve_scheduler.gateway.unserved import Unserved
from anyserve_scheduler.links import Link, Links
from anyserve_scheduler.routing import Decision, Router
from anyserve_scheduler.watched import WatchedRegistry

LOAD_WAIT = 30.0
"""Seconds that a request without a deadline waits for what is on demand."""


class Client(Protocol):
    """Whoever wants the answers; it is called in Trio's thread, and never waits."""

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """The next answers, as the replica has sent them."""
        ...

    def on_end(self, error: AnyServeError | None) -> None:
        """There are no more."""
        ...


class OnItsWay(Protocol):
    """A request that is passed on, as whoever looks at those sees it."""

    request: Incoming
    arrived: float
    """When it came, on Trio's clock."""
    replica: str
    """Where it was sent last; nothing before that."""

    @property
    def waiting(self) -> bool:
        """Whether it waits for a capability to be loaded."""
        ...

    def abort(self, error: Cancelled) -> None:
        """Whoever operates this wants it to end; its client hears `error`."""
        ...


class Reach(Protocol):
    """How replicas are reached."""

    def get(self, replica: ReplicaView) -> Caller | None:
        """The channel to a replica, where there is one."""
        ...

    async def open(self, replica: ReplicaView) -> Caller:
        """The channel to a replica, opened where there is none; raises `Unavailable`."""
        ...


class Ways:
    """What forwarding needs of the scheduler."""

    def __init__(
        self,
        registry: WatchedRegistry,
        links: Links,
        channels: Reach,
        router: Router,
        load_wait: float = LOAD_WAIT,
    ) -> None:
        """load_wait: seconds that a request without a deadline waits for what is on demand."""
        self.registry = registry
        self.links = links
        self.channels = channels
        self.router = router
        self.load_wait = load_wait
        self.unserved = Unserved(registry)
        """The requests that wait for what is on demand."""
        self.deadlines = Deadlines()
        """Those of the requests on their way."""
        self.nursery: trio.Nursery
        """For what a request has to wait for."""
        self.intake: Intake[OnItsWay] = Intake()
        """Requests on their way, until the scheduler drains."""
        self.meter: Meter | None = None
        """What measures the requests; None where nobody asks for that."""
        self.decisions = 0
        """Times that the router was asked where a request goes."""
        self.retried = 0
        """Requests that went on since a replica had not taken them."""
        self.delegated = 0
        """Requests that went on since a replica had handed them back."""
        self.resumed = 0
        """Requests that went on since a replica was lost with them."""
        self.room = Room()
        """For what is kept so that they can."""
        self.complete_at = -math.inf
        """On Trio's clock: before that, replicas of an earlier scheduler may still come back."""

    @property
    def in_flight(self) -> int:
        """Requests on their way."""
        return self.intake.in_flight

    def link_of(self, decision: Decision) -> Link | None:
        """That of the replica as it is meant, where it is up."""
        link = self.links.get(decision.replica)
        return link if link is not None and link.epoch == decision.epoch else None

    def offer_of(self, decision: Decision) -> OfferView:
        """The offer that a request is sent to."""
        return self.registry.fleet().replicas[decision.replica].offers[decision.capability.name]

    def missing(self, error: AnyServeError) -> AnyServeError:
        """What to raise where `error` says that the fleet does not have something.

        It is `Unavailable` as long as replicas may still come back: one of them may have it.
        """
        left = self.complete_at - now()
        if left <= 0:
            return error
        return Unavailable(
            f"{error.message}; the scheduler has just started, and replicas have {left:.1f} s left"
            " to come back to it"
        )
