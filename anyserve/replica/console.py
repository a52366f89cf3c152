"""A replica from inside, as the console sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from anyserve_actors import Node

from anyserve.admin.service import About
from anyserve.http.console.inside import (
    MOST_REQUESTS,
    Abortable,
    CapabilitySeen,
    ReplicaSeen,
    RequestSeen,
    about,
)
from anyserve.load import Load
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.pool import Pool
from anyserve.replica.reports import standing

_IDLE = Load(0, 0, 0, 0.0)


class ReplicaInside:
    """See `Inside`; its fleet is itself."""

    kind = "replica"

    def __init__(
        self,
        dispatcher: Dispatcher,
        about: Callable[[], About],
        is_draining: Callable[[], bool],
        snapshot: Callable[[float], Node],
    ) -> None:
        self._dispatcher = dispatcher
        self._about = about
        self._is_draining = is_draining
        self._snapshot = snapshot

    @property
    def name(self) -> str:
        """See `Inside`."""
        return self._about().replica_id or self.kind

    @property
    def address(self) -> str:
        """See `Inside`."""
        return self._about().address

    @property
    def draining(self) -> bool:
        """See `Inside`."""
        return self._is_draining()

    @property
    def in_flight(self) -> int:
        """See `Inside`."""
        return self._dispatcher.in_flight

    def replicas(self, now: float) -> tuple[Sequence[ReplicaSeen], int]:
        """See `Inside`."""
        pools = self._dispatcher.pools
        loads = standing(pools, self.draining, now).loads
        seen = ReplicaSeen(
            self.name,
            self.address,
            "draining" if self.draining else "live",
            [_capability(pool, loads.get(pool.offer.name, _IDLE)) for pool in pools],
        )
        return [seen], 1

    def requests(self, now: float) -> Mapping[Abortable, RequestSeen]:
        """See `Inside`."""
        found: dict[Abortable, RequestSeen] = {}
        for request in islice(self._dispatcher.requests, MOST_REQUESTS):
            worker = request.worker
            found[request] = RequestSeen(
                id=request.call.request_id,
                capability=request.offer.name,
                state="queued" if worker is None else "running",
                place=worker or "",
                age=now - request.arrived,
                remaining=request.call.deadline - now,
            )
        return found

    def tree(self, now: float) -> Node:
        """See `Inside`."""
        return self._snapshot(now)


def _capability(pool: Pool, load: Load) -> CapabilitySeen:
    state = pool.seen_state
    return CapabilitySeen(
        name=pool.offer.name,
        about=about(pool.offer.capability),
        state=state.value.lower(),
        reason="" if pool.serving else pool.reason,
        running=load.running,
        waiting=load.queued,
        slots=load.slots,
        tokens_per_second=load.tokens_per_second,
    )
