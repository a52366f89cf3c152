"""The actor that has replicas load what is wanted, and make room for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import trio
from anyserve_actors import Actor, Context, Detail
from anyserve_protos.anyserve import v1 as pb

from anyserve_scheduler.demand import Action, Demand, DemandTerms, Verb
from anyserve_scheduler.gateway.unserved import Unserved
from anyserve_scheduler.links import Links
from anyserve_scheduler.watched import WatchedRegistry


class OnDemand(Actor[None]):
    """Decides each interval, and at once when something is wanted for the first time in it."""

    def __init__(
        self,
        registry: WatchedRegistry,
        links: Links,
        unserved: Unserved,
        terms: DemandTerms,
        interval: float,
    ) -> None:
        """unserved: what requests could not be served with. interval: in seconds."""
        self._registry = registry
        self._links = links
        self._unserved = unserved
        self._interval = interval
        self._demand = Demand(terms)
        self._ordered: Counter[Verb] = Counter()

    def details(self) -> Mapping[str, Detail]:
        ordered = self._ordered
        return {
            "loads": ordered[Verb.LOAD],
            "unloads": ordered[Verb.UNLOAD],
            "waiting": len(self._unserved),
        }

    async def run(self, context: Context[None]) -> None:
        """Give orders until stopped."""
        context.started()
        while True:
            with trio.move_on_after(self._interval):
                while True:
                    await self._unserved.news()
                    self._decide(context)
            self._decide(context)
            self._unserved.forget()

    def _decide(self, context: Context[None]) -> None:
        now = trio.current_time()
        for capability in self._unserved.wanted():
            self._demand.unserved(capability, now)
        for action in self._demand.step(self._registry.fleet(), now):
            name = action.capability.name
            if self._order(action):
                self._ordered[action.verb] += 1
                context.log.info(
                    "replica %s is to %s %s: %s", action.replica, action.verb, name, action.reason
                )
            else:
                context.log.warning(
                    "replica %s can't be told to %s %s", action.replica, action.verb, name
                )

    def _order(self, action: Action) -> bool:
        """Tell the replica; False where it can't be told now."""
        link = self._links.get(action.replica)
        if link is None or link.epoch != action.epoch:
            return False
        order = pb.Order(name=action.capability.name, reason=action.reason)
        load = action.verb is Verb.LOAD
        return link.tell(pb.ToReplica(want=order) if load else pb.ToReplica(unwant=order))
