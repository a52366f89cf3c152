"""What the scheduler knows of its replicas, as values: views, snapshots and what changes them."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import attrs

from anyserve.capability import Capability
from anyserve.load import Load
from anyserve_scheduler.persistent import PersistentMap


class ReplicaState(enum.StrEnum):
    """How far a replica that holds a lease can be counted on."""

    LIVE = "live"
    SUSPECT = "suspect"
    """Silent for over one interval; it may still answer."""
    DRAINING = "draining"
    """It finishes what it has and takes nothing new."""


@attrs.frozen
class OfferView:
    """One capability of one replica."""

    capability: Capability
    load: Load
    """As its replica reported it."""
    queue_limit: int
    """Requests that may wait."""
    decoupled: bool
    """A request may have any number of responses."""
    loadable: bool = False
    """Offered on demand: not loaded, but could be."""
    on_demand: bool = False
    """Loaded and unloaded as it is wanted."""
    loading: bool = False
    """Loadable, and being loaded."""
    failures: int = 0
    """Times in a row that it could not be loaded."""
    failure: str = ""
    """Why it could not, the last time."""
    resumable: bool = False
    """A stream that breaks may go on elsewhere, from the `token_ids` that it has brought."""

    @property
    def promising(self) -> bool:
        """Whether it is loadable, and nothing says that loading it fails."""
        return self.loadable and (self.loading or not self.failures)


@attrs.frozen
class ReplicaView:
    """One replica that holds a lease."""

    id: str
    epoch: int
    """The registration that this is; larger than all that came before it."""
    address: str
    state: ReplicaState
    offers: Mapping[str, OfferView]
    """By the capability's name; not to be written to."""
    reported: float
    """When its load was last heard, in seconds on the scheduler's clock."""


class ChangeKind(enum.StrEnum):
    """What a change is about, so that a watcher can skip what it does not follow."""

    JOINED = "joined"
    """A replica that was not there."""
    CHANGED = "changed"
    """Its address, state or offers may be others, and its load."""
    REPORTED = "reported"
    """Nothing but the load of its offers, and when it was heard."""
    LEFT = "left"


@attrs.frozen
class Change:
    """One step from a fleet to the next."""

    version: int
    """That of the fleet after it: one more than before it."""
    kind: ChangeKind
    id: str
    replica: ReplicaView | None
    """As it is now; None when it left."""
    goodbye: bool = False
    """Whether it left by its own word: what it has taken, it has answered, or does so now."""


_Index = PersistentMap[PersistentMap[None]]
"""Ids of replicas by the names of needs that they satisfy."""

_NOBODY: PersistentMap[None] = PersistentMap()


@attrs.frozen
class Fleet:
    """All replicas at one moment. Immutable; `after` shares with it all that has not changed."""

    version: int = 0
    """Grows by one with each change."""
    replicas: PersistentMap[ReplicaView] = attrs.field(factory=PersistentMap)
    """By id, in the order of the ids."""
    _serving: _Index = attrs.field(factory=PersistentMap, eq=False, repr=False)
    _loadable: _Index = attrs.field(factory=PersistentMap, eq=False, repr=False)

    @classmethod
    def of(cls, replicas: Iterable[ReplicaView]) -> Fleet:
        """A fleet of these, each of which has joined in a change of its own."""
        fleet = cls()
        for replica in replicas:
            fleet = fleet.after(Change(fleet.version + 1, ChangeKind.JOINED, replica.id, replica))
        return fleet

    def offering(self, name: str) -> list[ReplicaView]:
        """The replicas that serve a need of the bare `name`, in the order of their ids.

        Live and suspect ones, whose offers of that name or of a kind of it are loaded.
        """
        return [self.replicas[id] for id in self._serving.get(name, _NOBODY)]

    def loadable(self, name: str) -> list[ReplicaView]:
        """The replicas that could load what serves a need of the bare `name`, as `offering`."""
        return [self.replicas[id] for id in self._loadable.get(name, _NOBODY)]

    @property
    def can_load(self) -> bool:
        """Whether any replica could load what it has not loaded."""
        return bool(self._loadable)

    def after(self, change: Change) -> Fleet:
        """The fleet that `change` makes of this one; `ValueError` unless it is the next change."""
        if change.version != self.version + 1:
            raise ValueError(f"change {change.version} does not follow version {self.version}")
        if change.replica is None:
            replicas = self.replicas.without(change.id)
        else:
            replicas = self.replicas.with_item(change.id, change.replica)
        if change.kind is ChangeKind.REPORTED:
            return Fleet(change.version, replicas, self._serving, self._loadable)
        old, new = self.replicas.get(change.id), change.replica
        return Fleet(
            change.version,
            replicas,
            _reindexed(self._serving, change.id, _served(old), _served(new)),
            _reindexed(self._loadable, change.id, _loadable(old), _loadable(new)),
        )


def _served(replica: ReplicaView | None) -> frozenset[str]:
    """The bare names that `replica` serves: those of its loaded offers, and their ancestors."""
    if replica is None or replica.state is ReplicaState.DRAINING:
        return frozenset()
    return _with_ancestors(name for name, offer in replica.offers.items() if not offer.loadable)


def _loadable(replica: ReplicaView | None) -> frozenset[str]:
    """The bare names that `replica` could serve if it loaded what it offers on demand."""
    if replica is None or replica.state is ReplicaState.DRAINING:
        return frozenset()
    return _with_ancestors(name for name, offer in replica.offers.items() if offer.loadable)


def _with_ancestors(names: Iterable[str]) -> frozenset[str]:
    found: set[str] = set()
    for name in names:
        while name and name not in found:
            found.add(name)
            name = name.rpartition(".")[0]
    return frozenset(found)


def _reindexed(index: _Index, id: str, old: frozenset[str], new: frozenset[str]) -> _Index:
    """`index` with the replica under the `new` names and no longer under the `old` ones."""
    for name in old - new:
        rest = index[name].without(id)
        index = index.with_item(name, rest) if rest else index.without(name)
    for name in new - old:
        index = index.with_item(name, index.get(name, _NOBODY).with_item(id, None))
    return index
