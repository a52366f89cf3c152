"""Who may take a request: the fleet as routing looks at it, kept up to date change by change."""

from __future__ import annotations

import attrs

from anyserve.pairs import is_half
from anyserve_scheduler.fleet import Change, ChangeKind, Fleet, OfferView, ReplicaState, ReplicaView
from anyserve_scheduler.routing.index import Index
from anyserve_scheduler.routing.inflight import InFlight, Key
from anyserve_scheduler.routing.pools import Candidate, Home


@attrs.define
class Candidates:
    """All offers of the fleet, and what this scheduler has sent to each."""

    live: Index = attrs.field(init=False, factory=Index)
    suspect: Index = attrs.field(init=False, factory=Index)
    draining: Index = attrs.field(init=False, factory=Index)
    loadable: Index = attrs.field(init=False, factory=Index)
    """Offers on demand that are not loaded, of replicas that do not drain."""
    halves: Index = attrs.field(init=False, factory=Index)
    """Those of live replicas that are of use in a pair alone."""
    suspect_halves: Index = attrs.field(init=False, factory=Index)
    _homes: dict[str, Home] = attrs.field(init=False, factory=dict)
    _in_flight: dict[Key, InFlight] = attrs.field(init=False, factory=dict)
    """Of all candidates, and of those that left while requests are open there."""

    def __len__(self) -> int:
        """How many replicas there are."""
        return len(self._homes)

    def indexes(self) -> tuple[Index, ...]:
        """Every candidate is in one of these."""
        alone = self.live, self.suspect, self.draining, self.loadable
        return (*alone, self.halves, self.suspect_halves)

    def get(self, key: Key) -> Candidate | None:
        """The candidate of this replica and capability."""
        home = self._homes.get(key[0])
        return None if home is None else home.candidates.get(key[1])

    def replica(self, id: str) -> ReplicaView | None:
        """A replica as it was in the last change."""
        home = self._homes.get(id)
        return None if home is None else home.view

    def replicas(self) -> list[ReplicaView]:
        """All of them."""
        return [home.view for home in self._homes.values()]

    def apply(self, change: Change) -> None:
        """Let the fleet's next change happen here."""
        view, home = change.replica, self._homes.get(change.id)
        if home is not None and (view is None or view.epoch != home.view.epoch):
            self._leave(home)
            home = None
        if view is None:
            return
        if home is None:
            home = self._homes[view.id] = Home(view)
        elif change.kind is ChangeKind.REPORTED:
            self._report(home, view)
            return
        self._change(home, view)

    def replace(self, fleet: Fleet) -> None:
        """Be what `fleet` is, whatever has happened in between."""
        for id in [id for id in self._homes if id not in fleet.replicas]:
            self._leave(self._homes[id])
        for id, view in fleet.replicas.items():
            self.apply(Change(fleet.version, ChangeKind.CHANGED, id, view))

    def sent(self, key: Key) -> Key:
        """This scheduler has sent a request to `key`; the candidate's own object for it.

        Where all use that one, keys are compared by identity.
        """
        in_flight = self._in_flight.get(key)
        if in_flight is None:
            in_flight = self._in_flight[key] = InFlight()
        in_flight.sent()
        candidate = self._update(key)
        return key if candidate is None else candidate.key

    def ended(self, key: Key, service: float | None) -> None:
        """A request that was sent to `key` is over. `service`: as `InFlight.ended`."""
        in_flight = self._in_flight[key]
        in_flight.ended(service)
        if self._update(key) is None and not in_flight.open:
            del self._in_flight[key]

    def _update(self, key: Key) -> Candidate | None:
        candidate = self.get(key)
        if candidate is not None:
            candidate.update()
        return candidate

    def _report(self, home: Home, view: ReplicaView) -> None:
        """New loads, and nothing else."""
        home.view = view
        offers = view.offers
        for name, candidate in home.candidates.items():
            offer = offers[name]
            in_flight = candidate.in_flight
            if offer is not candidate.offer or in_flight.since_report:
                candidate.offer = offer
                in_flight.reported()
                candidate.update()

    def _change(self, home: Home, view: ReplicaView) -> None:
        """Anything may be different, but not the epoch."""
        before, home.view = home.view, view
        heard = view.reported > before.reported
        for name in [name for name in home.candidates if name not in view.offers]:
            self._drop(home.candidates[name], before)
        for name, offer in view.offers.items():
            candidate = home.candidates.get(name)
            if candidate is None:
                key = (view.id, name)
                in_flight = self._in_flight.setdefault(key, InFlight())
                in_flight.reported()
                candidate = home.candidates[name] = Candidate(key, home, offer, in_flight)
                candidate.update()
                self._index(view, offer).add(candidate)
                continue
            if heard:
                candidate.in_flight.reported()
            old, new = self._index(before, candidate.offer), self._index(view, offer)
            if old is not new or offer.capability != candidate.offer.capability:
                old.remove(candidate)
                candidate.offer = offer
                candidate.update()
                new.add(candidate)
            else:
                candidate.offer = offer
                candidate.update()

    def _leave(self, home: Home) -> None:
        for candidate in list(home.candidates.values()):
            self._drop(candidate, home.view)
        del self._homes[home.view.id]

    def _drop(self, candidate: Candidate, view: ReplicaView) -> None:
        """The candidate is no more; `view` is its replica as its index knows it."""
        self._index(view, candidate.offer).remove(candidate)
        del candidate.home.candidates[candidate.key[1]]
        if not candidate.in_flight.open:
            del self._in_flight[candidate.key]

    def _index(self, view: ReplicaView, offer: OfferView) -> Index:
        if view.state is ReplicaState.DRAINING:
            return self.draining
        if offer.loadable:
            return self.loadable
        if is_half(offer.capability):
            return self.halves if view.state is ReplicaState.LIVE else self.suspect_halves
        return self.live if view.state is ReplicaState.LIVE else self.suspect
