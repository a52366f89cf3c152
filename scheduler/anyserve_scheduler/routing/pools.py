"""Candidates of equal power, kept so that the best one is found without a scan."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Container, Iterator

import attrs

from anyserve.capability import Capability
from anyserve_scheduler.fleet import OfferView, ReplicaView
from anyserve_scheduler.routing.inflight import InFlight, Key, estimate

_HEAP_SLACK = 64
"""Entries of the past that a heap may hold beyond as many as there are members."""

next_stamp = itertools.count(1).__next__
"""Numbers for the changes of candidates, each larger than the last."""


@attrs.define(eq=False)
class Home:
    """A replica that candidates belong to."""

    view: ReplicaView
    """As the fleet has it now."""
    candidates: dict[str, Candidate] = attrs.field(factory=dict)
    """By the capability's name."""


@attrs.define(eq=False)
class Candidate:
    """One offer of one replica."""

    key: Key
    home: Home
    offer: OfferView
    in_flight: InFlight
    requests: int = 0
    """Running and waiting. This, `wait` and `pressure` are those of `inflight.Estimate`."""
    slots: int = 0
    wait: float = math.inf
    pressure: float = math.inf
    stamp: int = attrs.field(factory=next_stamp)
    """Another one after each change. Among equals, the one unchanged for longest is first."""
    kind: Kind | None = None
    """Where it stands; None while it is being moved."""

    def update(self) -> None:
        """Estimate its load anew, and give it its place by it."""
        load = self.offer.load
        requests, wait, pressure = estimate(load, self.offer.queue_limit, self.in_flight)
        more_requests, more_slots = requests - self.requests, load.slots - self.slots
        if not (more_requests or more_slots) and wait == self.wait:
            return
        self.requests, self.slots = requests, load.slots
        self.wait, self.pressure = wait, pressure
        self.stamp = next_stamp()
        if self.kind is not None:
            for pool in self.kind.pools:
                pool.changed(self, more_requests, more_slots)


@attrs.define(eq=False)
class Kind:
    """The candidates that offer exactly the same capability."""

    capability: Capability
    tier: tuple[object, ...]
    """Sorts by power; equal for capabilities of equal power."""
    members: dict[Candidate, None] = attrs.field(factory=dict)
    pools: list[Pool] = attrs.field(factory=list)
    """Those that its members are in too."""


class Pool:
    """All candidates of some kinds, ranked by wait and then by pressure.

    Ranks are kept in a heap that is brought up to date when it is asked: candidates that have
    changed get a new entry, and those whose stamp has changed since are passed over.
    """

    def __init__(self, kinds: tuple[Kind, ...]) -> None:
        self.kinds = kinds
        self.members: list[Candidate] = []
        self._places: dict[Candidate, int] = {}
        self._heap: list[tuple[float, float, int, Candidate]] = []
        self._changed: dict[Candidate, None] = {}
        self._requests = 0
        self._slots = 0
        for kind in kinds:
            for candidate in kind.members:
                self.add(candidate)

    def __contains__(self, candidate: Candidate) -> bool:
        return candidate in self._places

    @property
    def mean(self) -> float:
        """Requests for each slot, over all members."""
        return self._requests / self._slots if self._slots else 0.0

    @property
    def slots(self) -> int:
        """Of all members."""
        return self._slots

    def add(self, candidate: Candidate) -> None:
        """Take a member in."""
        self._places[candidate] = len(self.members)
        self.members.append(candidate)
        self._requests += candidate.requests
        self._slots += candidate.slots
        self._changed[candidate] = None

    def remove(self, candidate: Candidate) -> None:
        """Let a member go. Its heap entries must be made old by a new stamp."""
        place = self._places.pop(candidate)
        last = self.members.pop()
        if last is not candidate:
            self.members[place] = last
            self._places[last] = place
        self._requests -= candidate.requests
        self._slots -= candidate.slots
        self._changed.pop(candidate, None)

    def changed(self, candidate: Candidate, requests: int, slots: int) -> None:
        """A member has another rank, and so many `requests` and `slots` more."""
        self._requests += requests
        self._slots += slots
        self._changed[candidate] = None

    def least(self, excluded: Container[str]) -> Candidate | None:
        """The member with the least wait, then the least pressure, of replicas not `excluded`."""
        self._bring_up_to_date()
        heap = self._heap
        aside = []
        found = None
        while heap:
            top = heap[0]
            if top[3].stamp != top[2]:
                heapq.heappop(heap)
            elif top[3].key[0] in excluded:
                aside.append(heapq.heappop(heap))
            else:
                found = top[3]
                break
        for entry in aside:
            heapq.heappush(heap, entry)
        return found

    def __iter__(self) -> Iterator[Candidate]:
        """All members, the best first. Sorts them."""
        return iter(sorted(self.members, key=lambda each: (each.wait, each.pressure, each.stamp)))

    def _bring_up_to_date(self) -> None:
        if not self._changed:
            return
        if len(self._heap) + len(self._changed) > 2 * len(self.members) + _HEAP_SLACK:
            self._heap = [(each.wait, each.pressure, each.stamp, each) for each in self.members]
            heapq.heapify(self._heap)
        else:
            for each in self._changed:
                heapq.heappush(self._heap, (each.wait, each.pressure, each.stamp, each))
        self._changed.clear()
