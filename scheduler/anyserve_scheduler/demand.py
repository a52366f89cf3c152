"""Capabilities on demand: which one is to be loaded where, and which one makes room for it.

Pure: `Demand.step` takes the fleet and the time, and says what replicas are to be asked for. A
replica that was asked shows in the fleet what it has loaded; nothing else is believed.
"""

from __future__ import annotations

import enum
import math

import attrs

from anyserve.capability import Capability
from anyserve_scheduler.fleet import Fleet, OfferView, ReplicaState, ReplicaView

Process = tuple[str, int]
"""One process: its replica's id and epoch."""
Key = tuple[str, int, str]
"""One offer of one process: with the capability's name."""

_MOST_DOUBLINGS = 6
"""Of the time before a load that has failed is tried again."""


@attrs.frozen
class DemandTerms:
    """When something is done. Times in seconds."""

    starved: float = 1.0
    """A capability is starved while a request would wait for so long wherever it is loaded."""
    patience: float = 5.0
    """That it has to be starved before one more replica loads it."""
    wanted: float = 30.0
    """That a capability which nobody serves is wanted after a request has asked for it."""
    idle: float = 60.0
    """Without any request, after which one that is loaded may make room."""
    cooldown: float = 30.0
    """That a replica is left alone after it was asked for something: it loads, and its load
    becomes known. As long is a capability that was asked for not asked for again. Both are over
    where the replica could not load it, or falls silent."""
    room: int = 1
    """Capabilities on demand that one replica has loaded at once."""
    loading: float = 300.0
    """That a load may take before another replica is asked for the capability."""
    retry: float = 10.0
    """Before a replica is asked again for what it could not load; doubled with each failure."""


class Verb(enum.StrEnum):
    """What a replica is asked for."""

    LOAD = "load"
    UNLOAD = "unload"


@attrs.frozen
class Action:
    """One thing that a replica is asked for."""

    verb: Verb
    replica: str
    epoch: int
    capability: Capability
    reason: str


@attrs.frozen
class _Asked:
    """What a process was last asked to load."""

    at: float
    name: str
    failures: int
    """That its offer had then."""


@attrs.frozen
class _Failed:
    """A load that did not succeed."""

    failures: int
    at: float
    """When the scheduler heard of the last one."""


@attrs.define
class Demand:
    """What has been wanted, starved and idle, and since when.

    It holds nothing of replicas that are silent or have left: all its tables are of the last fleet
    it was given, and of capabilities that some replica there could load.
    """

    terms: DemandTerms = attrs.field(factory=DemandTerms)
    _wanted: dict[str, float] = attrs.field(init=False, factory=dict)
    """When a capability was last asked for that nobody serves, by name."""
    _starved: dict[str, float] = attrs.field(init=False, factory=dict)
    """Since when one is starved, by name."""
    _idle: dict[Key, float] = attrs.field(init=False, factory=dict)
    """Since when a loaded offer is idle."""
    _loading: dict[Key, float] = attrs.field(init=False, factory=dict)
    """Since when one is being loaded."""
    _failed: dict[Key, _Failed] = attrs.field(init=False, factory=dict)
    _asked: dict[Process, _Asked] = attrs.field(init=False, factory=dict)
    """Those that are left alone for it."""

    def unserved(self, capability: Capability, now: float) -> None:
        """A request came that only `capability` would serve, and that is loaded nowhere.

        capability: `NoRoute.loadable`. It bounds what is kept: only what the fleet could load.
        """
        self._wanted[capability.name] = now

    def step(self, fleet: Fleet, now: float) -> list[Action]:
        """What to ask replicas for now; at most one capability each, and each capability once.

        It looks through the fleet, where there is anything to load.
        """
        if not fleet.can_load:
            self._idle, self._loading, self._failed = {}, {}, {}
            self._wanted, self._starved = {}, {}
            return []
        live = [each for each in fleet.replicas.values() if each.state is ReplicaState.LIVE]
        self._look(live, now)
        actions: list[Action] = []
        for name, why in self._needed(now):
            actions += self._load(name, why, live, now)
        return actions

    # What is the case.

    def _look(self, live: list[ReplicaView], now: float) -> None:
        """Bring the tables up to date; all that is not in the fleet any more leaves them."""
        idle: dict[Key, float] = {}
        loading: dict[Key, float] = {}
        failed: dict[Key, _Failed] = {}
        waits: dict[str, float] = {}
        loadable = set()
        for view in live:
            for name, offer in view.offers.items():
                key = _key(view, name)
                if offer.loadable:
                    loadable.add(name)
                    if offer.loading:
                        loading[key] = self._loading.get(key, now)
                    if offer.failures:
                        known = self._failed.get(key)
                        same = known is not None and known.failures == offer.failures
                        failed[key] = known if known and same else _Failed(offer.failures, now)
                    continue
                waits[name] = min(waits.get(name, math.inf), _wait(offer))
                if not offer.load.running and not offer.load.queued:
                    idle[key] = self._idle.get(key, now)
        self._idle, self._loading, self._failed = idle, loading, failed
        self._starved = {
            name: self._starved.get(name, now)
            for name, wait in waits.items()
            if name in loadable and wait >= self.terms.starved
        }
        self._wanted = {
            name: at
            for name, at in self._wanted.items()
            if name in loadable and name not in waits and now - at <= self.terms.wanted
        }
        processes = {_process(view): view for view in live}
        self._asked = {
            process: asked
            for process, asked in self._asked.items()
            if process in processes
            and now - asked.at < self.terms.cooldown
            and not _failed_since(asked, processes[process])
        }

    def _needed(self, now: float) -> list[tuple[str, str]]:
        """Capabilities of which one more replica is needed, and why; the unserved ones first."""
        needed = [(name, "it is wanted, and nobody serves it") for name in sorted(self._wanted)]
        needed += [
            (name, f"requests have had to wait for {self.terms.starved:g} s or more, everywhere")
            for name, since in sorted(self._starved.items(), key=lambda each: (each[1], each[0]))
            if now - since >= self.terms.patience
        ]
        coming = {asked.name for asked in self._asked.values()} | {
            name
            for (_, _, name), since in self._loading.items()
            if now - since < self.terms.loading
        }
        return [each for each in needed if each[0] not in coming]

    # What to do.

    def _load(self, name: str, why: str, live: list[ReplicaView], now: float) -> list[Action]:
        """Have the best replica load it, in the place of what is idle there if there is no room."""
        best: tuple[tuple[object, ...], ReplicaView, str | None] | None = None
        for view in live:
            offer = view.offers.get(name)
            if offer is None or not offer.loadable or self._left_alone(view, name, now):
                continue
            full = self._loaded_on_demand(view) >= self.terms.room
            victim = self._victim(view, live, now) if full else None
            if full and victim is None:
                continue
            rank = (offer.failures, full, _pressure(view), view.id)
            if best is None or rank < best[0]:
                best = (rank, view, victim)
        if best is None:
            return []
        _, view, victim = best
        offer = view.offers[name]
        self._asked[_process(view)] = _Asked(now, name, offer.failures)
        load = Action(Verb.LOAD, view.id, view.epoch, offer.capability, why)
        if victim is None:
            return [load]
        # Elsewhere it is not to make room as well, before the fleet shows that it is gone here.
        self._idle = {key: since for key, since in self._idle.items() if key[2] != victim}
        reason = f"it has been idle for {self.terms.idle:g} s, and makes room for {name}"
        gone = view.offers[victim].capability
        return [Action(Verb.UNLOAD, view.id, view.epoch, gone, reason), load]

    def _left_alone(self, view: ReplicaView, name: str, now: float) -> bool:
        """Whether a replica is busy with what it was asked for, or has just failed to load it."""
        failed = self._failed.get(_key(view, name))
        if failed is not None:
            doublings = min(failed.failures - 1, _MOST_DOUBLINGS)
            if now - failed.at < self.terms.retry * 2**doublings:
                return True
        return _process(view) in self._asked or any(offer.loading for offer in view.offers.values())

    def _loaded_on_demand(self, view: ReplicaView) -> int:
        return sum(offer.on_demand and not offer.loadable for offer in view.offers.values())

    def _victim(self, view: ReplicaView, live: list[ReplicaView], now: float) -> str | None:
        """What may be unloaded there: idle for longest, on demand, and not the last of its kind."""
        asked = {asked.name for asked in self._asked.values()}
        idle = [
            (since, name)
            for name, offer in view.offers.items()
            if (since := self._idle.get(_key(view, name), now)) <= now - self.terms.idle
            and offer.on_demand
            and name not in asked
            and _served_without(view, name, live)
        ]
        return min(idle)[1] if idle else None


def _key(view: ReplicaView, name: str) -> Key:
    return view.id, view.epoch, name


def _process(view: ReplicaView) -> Process:
    return view.id, view.epoch


def _failed_since(asked: _Asked, view: ReplicaView) -> bool:
    """Whether a replica has tried to load what it was asked for, and could not."""
    offer = view.offers.get(asked.name)
    return offer is not None and offer.failures > asked.failures


def _wait(offer: OfferView) -> float:
    """What a request would wait; without end where there is no slot or the queue is full."""
    load = offer.load
    full = load.running + load.queued >= load.slots + offer.queue_limit
    return math.inf if full or not load.slots else load.expected_wait


def _pressure(view: ReplicaView) -> float:
    """Requests for each slot of what is loaded."""
    loaded = [offer.load for offer in view.offers.values() if not offer.loadable]
    slots = sum(load.slots for load in loaded)
    requests = sum(load.running + load.queued for load in loaded)
    return requests / slots if slots else 0.0


def _served_without(view: ReplicaView, name: str, live: list[ReplicaView]) -> bool:
    """Whether another live replica has loaded what satisfies all that this one's offer does."""
    capability = view.offers[name].capability
    return any(
        other.id != view.id
        and any(
            not offer.loadable and offer.load.slots and offer.capability.satisfies(capability)
            for offer in other.offers.values()
        )
        for other in live
    )
