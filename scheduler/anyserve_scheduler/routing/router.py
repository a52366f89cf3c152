"""Routing as the scheduler uses it: decisions, and the memory of what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import attrs

from anyserve.capability import Capability
from anyserve.pairs import MODEL
from anyserve_scheduler.fleet import Change, Fleet
from anyserve_scheduler.routing.candidates import Candidates
from anyserve_scheduler.routing.choose import Known
from anyserve_scheduler.routing.decision import Decision, Hints, NoRoute
from anyserve_scheduler.routing.explain import Explanation, explain
from anyserve_scheduler.routing.inflight import Key
from anyserve_scheduler.routing.pairing import prefill_need, route
from anyserve_scheduler.routing.policy import Policy
from anyserve_scheduler.routing.prefix import PrefixTable
from anyserve_scheduler.routing.sessions import Sessions


@attrs.define(eq=False)
class Sent:
    """A request on its way: given by `Router.sent`, to be given back to `Router.ended`."""

    key: Key
    at: float
    """When it was sent, in seconds on the scheduler's clock."""
    waits: bool
    """Whether it was expected to wait before it starts."""
    ended: bool = False
    prefill: Sent | None = None
    """The same at the prefill half, where a pair serves it; it may end sooner."""


class Router:
    """Where requests go, with all that is learned on the way.

    It follows a registry by the changes of its fleet, and is told of each request that is sent
    and that ends. No I/O; times are seconds on the scheduler's clock.
    """

    def __init__(
        self,
        policy: Policy,
        rng: Random,
        *,
        prefixes: PrefixTable | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        self._rng = rng
        self._known = Known(
            Candidates(),
            PrefixTable() if prefixes is None else prefixes,
            Sessions() if sessions is None else sessions,
            policy,
        )
        self._version = 0

    @property
    def version(self) -> int:
        """The fleet's version that it knows."""
        return self._version

    def follow(self, news: Sequence[Change] | Fleet) -> None:
        """Take in what `Registry.since(router.version)` gives."""
        if isinstance(news, Fleet):
            for view in self._known.candidates.replicas():
                now = news.replicas.get(view.id)
                if now is None or now.epoch != view.epoch:
                    self._forget(view.id)
            self._known.candidates.replace(news)
            self._version = news.version
            return
        for change in news:
            old = self._known.candidates.replica(change.id)
            if old is not None and (change.replica is None or change.replica.epoch != old.epoch):
                self._forget(change.id)
            self._known.candidates.apply(change)
            self._version = change.version

    def choose(self, need: Capability, hints: Hints, now: float) -> Decision | NoRoute:
        """Where a request goes. What is sent there has to be told by `sent`."""
        return route(need, hints, self._known, now, self._rng)

    def explain(self, need: Capability, hints: Hints, now: float) -> Explanation:
        """Where it would go, and why; the next decision stays what it would have been."""
        return explain(need, hints, self._known, now, self._rng)

    def sent(self, need: Capability, hints: Hints, decision: Decision, now: float) -> Sent:
        """A request is sent where `decision` says. Its end has to be told by `ended`."""
        known, prefill = self._known, None
        if decision.prefill is not None:
            model = str(decision.prefill.capability.attributes[MODEL])
            prefill = self.sent(prefill_need(model), hints, decision.prefill, now)
            hints = attrs.evolve(hints, session=None, blocks=())
        key = known.candidates.sent((decision.replica, decision.capability.name))
        if hints.blocks and known.policy.prefix:
            known.prefixes.stored(key, hints.blocks)
        if hints.session is not None:
            known.sessions.moved(need.name, hints.session, key, decision.epoch, now)
        return Sent(key, now, decision.expected_wait > 0, prefill=prefill)

    def ended(self, sent: Sent, now: float, *, served: bool) -> None:
        """A request is over, and with it its prefill half; told again, nothing happens.

        served: it ran to its end, so that its time says how long requests take there.
        """
        if sent.ended:
            return
        if sent.prefill is not None:
            self.ended(sent.prefill, now, served=False)
        sent.ended = True
        known_service = served and not sent.waits
        self._known.candidates.ended(sent.key, now - sent.at if known_service else None)

    def blocks_stored(self, key: Key, blocks: Sequence[bytes]) -> None:
        """A replica reports the blocks of one prompt that it has in its cache, the first first.

        Ignored for an offer that is not in the fleet.
        """
        if self._known.candidates.get(key) is not None:
            self._known.prefixes.stored(key, blocks)

    def blocks_evicted(self, key: Key, blocks: Sequence[bytes]) -> None:
        """A replica reports that it has these blocks no more."""
        self._known.prefixes.evicted(key, blocks)

    def _forget(self, id: str) -> None:
        """The replica's process is gone, and its caches with it."""
        view = self._known.candidates.replica(id)
        for name in () if view is None else view.offers:
            self._known.prefixes.forget((id, name))
