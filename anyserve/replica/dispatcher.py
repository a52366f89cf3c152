"""The dispatcher: what is offered, by whom, and which requests are in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import trio
from anyserve_actors import Actor, Context, Detail

from anyserve.app import Condition
from anyserve.capability import Capability, explain_absence, least, satisfying
from anyserve.deadlines import Deadlines
from anyserve.errors import NotFound, Unavailable, elsewhere
from anyserve.intake import Intake
from anyserve.offers import Offer
from anyserve.replica.exchange import Calls, Executor
from anyserve.replica.pool import Pool, State
from anyserve.replica.sequences import Sequences
from anyserve.replica.timings import Timings

if TYPE_CHECKING:
    from anyserve.replica.execution import Execution

_MATCHES = 256
"""Needs whose matches are remembered."""


class Dispatcher(Actor[None]):
    """Pools of workers by capability, and the requests in them.

    It is called directly, in Trio's thread: a request takes no mailbox on its way.
    """

    def __init__(
        self, on_change: Callable[[], None] = lambda: None, *, is_timed: bool = False
    ) -> None:
        """on_change: called after what is served may have changed.

        is_timed: whether the times of requests are kept for metrics.
        """
        self._on_change = on_change
        self._is_timed = is_timed
        self._pools: dict[str, Pool] = {}
        self._sequences: dict[str, Sequences] = {}
        self._matches: dict[tuple[object, ...], list[Pool]] = {}
        """By name, version and attributes of needs that something satisfies."""
        self._intake: Intake[Execution] = Intake()
        self.turned_away = 0
        """Requests that no capability was found for, or that came while it drains."""
        self.deadlines = Deadlines()
        """Those of the requests in flight."""
        self.calls: Calls
        """What runs the handlers' own calls; set by whoever puts the parts together."""

    async def run(self, context: Context[None]) -> None:
        """Keep deadlines until stopped."""
        context.started()
        await self.deadlines.run()

    def details(self) -> Mapping[str, Detail]:
        details: dict[str, Detail] = {"in_flight": self.in_flight}
        for pool in self.pools:
            if pool.running or pool.waiting:
                details[pool.offer.name] = f"{pool.running} running, {pool.waiting} waiting"
        return details

    # What is offered.

    @property
    def pools(self) -> list[Pool]:
        """All capabilities that the apps declare, loaded or not, by name."""
        return [self._pools[name] for name in sorted(self._pools)]

    @property
    def in_flight(self) -> int:
        """Requests that have come and not ended."""
        return self._intake.in_flight

    @property
    def requests(self) -> Iterable[Execution]:
        """Those, the oldest first."""
        return self._intake.requests

    def knows(self, name: str) -> bool:
        """Whether a capability of that name is declared."""
        return name in self._pools

    def pool(self, name: str) -> Pool:
        """The pool of exactly `name`; raises `NotFound` naming what there is."""
        pool = self._pools.get(name)
        if pool is None:
            raise NotFound(explain_absence(Capability(name), self._loaded()))
        return pool

    def declare(self, offer: Offer) -> Pool:
        """Make a capability known; it is not loaded by that."""
        if offer.name not in self._pools:
            self._pools[offer.name] = Pool(offer, Timings() if self._is_timed else None)
            self._matches.clear()
        return self._pools[offer.name]

    def set_state(self, name: str, state: State, reason: str = "") -> None:
        """Move a declared capability on in its life."""
        self._pools[name].set_state(state, reason)
        self._matches.clear()
        self._on_change()

    def explain(self, name: str, reason: str) -> None:
        """Say why a declared capability has no worker, for whoever asks for it."""
        self._pools[name].reason = reason

    def worker_up(self, executor: Executor, offers: Iterable[Offer]) -> None:
        """A worker is ready to serve `offers`."""
        for offer in offers:
            self.declare(offer).add(executor, offer)
            self._sequences.setdefault(offer.name, Sequences(offer.sequence_idle))
        self._matches.clear()
        self._on_change()

    def worker_retiring(self, executor: Executor, reason: str) -> None:
        """A worker finishes what it has and takes no more."""
        for pool in self._pools.values():
            pool.retire(executor, reason)
        self._on_change()

    def worker_down(self, executor: Executor, reason: str) -> None:
        """A worker is gone; it has ended its calls itself."""
        for pool in self._pools.values():
            pool.remove(executor, reason)
        self._on_change()

    def worker_condition(self, executor: Executor, name: str, condition: Condition) -> None:
        """What the capability `name` of a worker depends on is like that now."""
        self._pools[name].set_condition(executor, condition)
        self._on_change()

    def match(self, need: Capability) -> list[Pool]:
        """The pools that satisfy `need`, loaded or loading, least powerful first.

        Raises `NotFound` in words when there is none.
        """
        key: tuple[object, ...] = need.name, need.version, *need.attributes.items()
        found = self._matches.get(key)
        if found is None:
            found = self._search(need)
            if len(self._matches) >= _MATCHES:
                self._matches.clear()  # a limit may be any number
            self._matches[key] = found
        return found

    def _search(self, need: Capability) -> list[Pool]:
        offers = self._loaded()
        names = [offer.name for offer in satisfying(need, offers)]
        if not names:
            message = explain_absence(need, offers)
            loadable = self.loadable(need)
            if loadable is not None:
                what = loadable.offer.capability
                message = f"{what} is on demand, and not loaded: RepositoryModelLoad loads it"
            raise elsewhere(NotFound(message))
        return [self._pools[name] for name in names]

    def loadable(self, need: Capability) -> Pool | None:
        """The least powerful on demand that satisfies `need` and is not loaded, if there is one."""
        pools = [
            pool
            for pool in self._pools.values()
            if pool.on_demand and pool.state in (State.UNAVAILABLE, State.UNLOADING)
        ]
        found = least(need, [pool.offer.capability for pool in pools])
        return None if found is None else self._pools[found.name]

    def _loaded(self) -> list[Capability]:
        return [
            pool.offer.capability
            for pool in self._pools.values()
            if pool.state in (State.READY, State.LOADING)
        ]

    # What is asked.

    def sequences(self, name: str) -> Sequences:
        """The open sequences of a capability that has a worker."""
        return self._sequences[name]

    def accepting(self) -> AbstractContextManager[trio.CancelScope]:
        """A scope for reading requests, cancelled once no more are taken."""
        return self._intake.accepting()

    def stop_accepting(self) -> None:
        """See `Intake`."""
        self._intake.stop_accepting()

    async def drain(self) -> None:
        """See `Intake`."""
        await self._intake.drain()

    def begin(self, request: Execution) -> None:
        """A request has come; raises `Unavailable` where none is taken any more."""
        if self._intake.draining:
            self.turned_away += 1
            raise elsewhere(Unavailable("the replica is draining"))
        self._intake.begin(request)

    def finish(self, request: Execution) -> None:
        """A request has ended."""
        self._intake.finish(request)
