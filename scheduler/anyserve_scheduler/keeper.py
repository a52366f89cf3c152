"""The lease keeper: the actor that lets time pass for the registry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import trio
from anyserve_actors import Actor, Context, Detail

from anyserve_scheduler.leases import LATE
from anyserve_scheduler.registration import LeaseTerms
from anyserve_scheduler.watched import WatchedRegistry


class LeaseKeeper(Actor[None]):
    """Suspects who is silent and ends leases, when that is due on Trio's clock."""

    def __init__(self, registry: WatchedRegistry, terms: LeaseTerms) -> None:
        self._registry = registry
        self._terms = terms

    def details(self) -> Mapping[str, Detail]:
        fleet = self._registry.fleet()
        states = Counter(view.state.value for view in fleet.replicas.values())
        return {"replicas": len(fleet.replicas), **states, "version": fleet.version}

    async def run(self, context: Context[None]) -> None:
        """Keep leases until stopped."""
        context.started()
        while True:
            now = trio.current_time()
            # Whoever is heard for the first time meanwhile is not suspect before the interval ends.
            due = min(max(self._registry.due(), now), now + self._terms.suspicion)
            await trio.sleep_until(due)
            late = trio.current_time() - due
            if late > LATE:
                context.log.warning("stood still for %.1f s, and so do the leases", late)
            self._registry.expire(due + late)
