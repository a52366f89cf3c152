"""Capabilities on demand: which one is to be loaded where, and which one makes room for it.

Pure: `Demand.step` takes the fleet and the time, and says what replicas are to be asked for. A
replica that was asked shows in the fleet what it has loaded; nothing else is believed.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable

import attrs

from anyserve.capability import Capability
from anyserve_scheduler.fleet import Fleet, OfferView, ReplicaState, ReplicaView

Key = tuple[str, int, str]
"""One offer of one process: its replica's id and epoch, and the capability's name."""


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
    becomes known. As long is a capability that was asked for not asked for again."""
    room: int = 1
    """Capabilities on demand that one replica has loaded at once."""


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


@attrs.define
class Demand:
    """What has been wanted, starved and idle, and since when.

    It holds nothing of replicas that have left: all its tables are of the last fleet it was given,
    and of capabilities that some replica there could load.
    """

    terms: DemandTerms = attrs.field(factory=DemandTerms)
    _wanted: dict[str, float] = attrs.field(init=False, factory=dict)
    """When a capability was last asked for that nobody serves, by name."""
    _starved: dict[str, float] = attrs.field(init=False, factory=dict)
    """Since when one is starved, by name."""
    _idle: dict[Key, float] = attrs.field(init=False, factory=dict)
    """Since when a loaded offer is idle."""
    _on_demand: set[Key] = attrs.field(init=False, factory=set)
    """Offers that have been seen not loaded: only they may be unloaded."""
    _asked: dict[tuple[str, int], float] = attrs.field(init=False, factory=dict)
    """When a process was last asked for something."""
    _loading: dict[str, float] = attrs.field(init=False, factory=dict)
    """When a capability was last asked for, by name."""

    def unserved(self, capability: Capability, now: float) -> None:
        """A request came that only `capability` would serve, and that is loaded nowhere.

        capability: `NoRoute.loadable`. It bounds what is kept: only what the fleet could load.
        """
        self._wanted[capability.name] = now

    def step(self, fleet: Fleet, now: float) -> list[Action]:
        """What to ask replicas for now; at most one capability each, and each capability once."""
        live = [each for each in fleet.replicas.values() if each.state is ReplicaState.LIVE]
        self._look(fleet.replicas.values(), live, now)
        actions: list[Action] = []
        for name, why in self._needed(now):
            actions += self._load(name, why, live, now)
        return actions

    # What is the case.

    def _look(self, known: Iterable[ReplicaView], live: list[ReplicaView], now: float) -> None:
        """Bring the tables up to date; all that is not in the fleet any more leaves them."""
        epochs = {(view.id, view.epoch) for view in known}
        self._on_demand = {key for key in self._on_demand if key[:2] in epochs}
        self._asked = {process: at for process, at in self._asked.items() if process in epochs}
        idle: dict[Key, float] = {}
        waits: dict[str, float] = {}
        loadable = set()
        for view in live:
            for name, offer in view.offers.items():
                key = _key(view, name)
                if offer.loadable:
                    self._on_demand.add(key)
                    loadable.add(name)
                    continue
                waits[name] = min(waits.get(name, math.inf), _wait(offer))
                if not offer.load.running and not offer.load.queued:
                    idle[key] = self._idle.get(key, now)
        self._idle = idle
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
        self._loading = {
            name: at for name, at in self._loading.items() if now - at < self.terms.cooldown
        }

    def _needed(self, now: float) -> list[tuple[str, str]]:
        """Capabilities of which one more replica is needed, and why; the unserved ones first."""
        needed = [(name, "it is wanted, and nobody serves it") for name in sorted(self._wanted)]
        needed += [
            (name, f"requests have had to wait for {self.terms.starved:g} s or more, everywhere")
            for name, since in sorted(self._starved.items(), key=lambda each: (each[1], each[0]))
            if now - since >= self.terms.patience
        ]
        return [each for each in needed if each[0] not in self._loading]

    # What to do.

    def _load(self, name: str, why: str, live: list[ReplicaView], now: float) -> list[Action]:
        """Have the best replica load it, in the place of what is idle there if there is no room."""
        best: tuple[tuple[object, ...], ReplicaView, str | None] | None = None
        for view in live:
            offer = view.offers.get(name)
            asked = self._asked.get((view.id, view.epoch), -math.inf)
            if offer is None or not offer.loadable or now - asked < self.terms.cooldown:
                continue
            full = self._loaded_on_demand(view) >= self.terms.room
            victim = self._victim(view, live, now) if full else None
            if full and victim is None:
                continue
            rank = (full, _pressure(view), view.id)
            if best is None or rank < best[0]:
                best = (rank, view, victim)
        if best is None:
            return []
        _, view, victim = best
        self._asked[view.id, view.epoch] = self._loading[name] = now
        load = Action(Verb.LOAD, view.id, view.epoch, view.offers[name].capability, why)
        if victim is None:
            return [load]
        # Elsewhere it is not to make room as well, before the fleet shows that it is gone here.
        self._idle = {key: since for key, since in self._idle.items() if key[2] != victim}
        reason = f"it has been idle for {self.terms.idle:g} s, and makes room for {name}"
        gone = view.offers[victim].capability
        return [Action(Verb.UNLOAD, view.id, view.epoch, gone, reason), load]

    def _loaded_on_demand(self, view: ReplicaView) -> int:
        return sum(
            not offer.loadable and _key(view, name) in self._on_demand
            for name, offer in view.offers.items()
        )

    def _victim(self, view: ReplicaView, live: list[ReplicaView], now: float) -> str | None:
        """What may be unloaded there: idle for longest, on demand, and not the last of its kind."""
        idle = [
            (since, name)
            for name in view.offers
            if (since := self._idle.get(_key(view, name), now)) <= now - self.terms.idle
            and _key(view, name) in self._on_demand
            and name not in self._loading
            and _served_without(view, name, live)
        ]
        return min(idle)[1] if idle else None


def _key(view: ReplicaView, name: str) -> Key:
    return view.id, view.epoch, name


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
