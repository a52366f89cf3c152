"""A scheduler and its fleet from inside, as the console sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from anyserve_actors import Node

from anyserve.http.console.inside import (
    MOST_REPLICAS,
    MOST_REQUESTS,
    Abortable,
    CapabilitySeen,
    ReplicaSeen,
    RequestSeen,
    about,
)
from anyserve_scheduler.fleet import OfferView
from anyserve_scheduler.gateway.ways import Ways


class SchedulerInside:
    """See `Inside`."""

    kind = name = "scheduler"

    def __init__(
        self, ways: Ways, address: Callable[[], str], snapshot: Callable[[float], Node]
    ) -> None:
        self._ways = ways
        self._address = address
        self._snapshot = snapshot

    @property
    def address(self) -> str:
        """See `Inside`."""
        return self._address()

    @property
    def draining(self) -> bool:
        """See `Inside`."""
        return self._ways.intake.draining

    @property
    def in_flight(self) -> int:
        """See `Inside`."""
        return self._ways.in_flight

    def replicas(self, now: float) -> tuple[Sequence[ReplicaSeen], int]:
        """See `Inside`."""
        views = self._ways.registry.fleet().replicas
        seen = [
            ReplicaSeen(
                view.id,
                view.address,
                view.state.value,
                [_capability(offer) for _, offer in sorted(view.offers.items())],
                max(0.0, now - view.reported),
            )
            for view in islice(views.values(), MOST_REPLICAS)
        ]
        return seen, len(views)

    def requests(self, now: float) -> Mapping[Abortable, RequestSeen]:
        """See `Inside`."""
        found: dict[Abortable, RequestSeen] = {}
        for forwarding in islice(self._ways.intake.requests, MOST_REQUESTS):
            request = forwarding.request
            found[forwarding] = RequestSeen(
                id=request.id,
                capability=str(request.need),
                state="queued" if forwarding.waiting else "running",
                place="" if forwarding.waiting else forwarding.replica,
                age=now - forwarding.arrived,
                remaining=request.deadline - now,
            )
        return found

    def tree(self, now: float) -> Node:
        """See `Inside`."""
        return self._snapshot(now)


def _capability(offer: OfferView) -> CapabilitySeen:
    load = offer.load
    state = "loading" if offer.loading else "on demand" if offer.loadable else "ready"
    return CapabilitySeen(
        name=offer.capability.name,
        about=about(offer.capability),
        state=state,
        reason=offer.failure,
        running=load.running,
        waiting=load.queued,
        slots=load.slots,
        tokens_per_second=load.tokens_per_second,
    )
