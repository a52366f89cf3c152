"""Candidates by what they offer, and the pools of them for each need."""

from __future__ import annotations

from anyserve.capability import Attribute, Capability, Power, power, tier
from anyserve.offer_index import OfferIndex
from anyserve_scheduler.routing.pools import Candidate, Kind, Pool, next_stamp

_MATCHES_LIMIT = 1024
"""Needs whose pools are remembered."""
_POOLS_LIMIT = 256
"""Pools that are kept; one is made again, in time linear in its members, when it is asked for."""

_Need = tuple[str, tuple[tuple[str, Attribute], ...], str]
"""A need as a key: name, attributes and version."""


class Index:
    """Candidates by what they offer, and the pools for each need."""

    def __init__(self) -> None:
        self._kinds: dict[Power, Kind] = {}
        self._offers: OfferIndex[Kind] = OfferIndex()
        self._pools: dict[tuple[Kind, ...], Pool] = {}
        """The one matched last at the end."""
        self._matches: dict[_Need, tuple[Pool, ...]] = {}

    def __bool__(self) -> bool:
        """Whether there is any candidate here."""
        return bool(self._kinds)

    def matched(self, need: Capability) -> tuple[Pool, ...]:
        """The candidates that satisfy `need`, in pools of equal power, the least powerful first."""
        key = need.name, tuple(need.attributes.items()), need.version
        pools = self._matches.get(key)
        if pools is None:
            pools = self._match(need)
            if not pools:
                return ()
            if len(self._matches) >= _MATCHES_LIMIT:
                del self._matches[next(iter(self._matches))]
            self._matches[key] = pools
        return pools

    def least(self, need: Capability) -> Capability | None:
        """The least powerful capability here that satisfies `need`."""
        groups = self._offers.satisfying(need)
        return groups[0].capability if groups else None

    def near(self, need: Capability) -> list[Capability]:
        """A few capabilities among which are those nearest to a need that none satisfies."""
        return self._offers.near(need)

    def add(self, candidate: Candidate) -> None:
        """Take a candidate in."""
        capability = candidate.offer.capability
        key = power(capability)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = Kind(capability, tier(capability))
            self._offers.add(capability, kind)
            self._matches.clear()
        candidate.kind = kind
        kind.members[candidate] = None
        for pool in kind.pools:
            pool.add(candidate)

    def remove(self, candidate: Candidate) -> None:
        """Let a candidate go; a kind goes with its last one."""
        kind = candidate.kind
        assert kind is not None, f"{candidate.key} stands in no index"
        for pool in kind.pools:
            pool.remove(candidate)
        del kind.members[candidate]
        candidate.kind = None
        candidate.stamp = next_stamp()
        if not kind.members:
            del self._kinds[power(kind.capability)]
            self._offers.remove(kind.capability, kind)
            for pool in kind.pools.copy():
                self._discard(pool)
            self._matches.clear()

    def _match(self, need: Capability) -> tuple[Pool, ...]:
        tiers: dict[tuple[object, ...], list[Kind]] = {}
        for group in self._offers.satisfying(need):
            kind = group.holders[0]
            tiers.setdefault(kind.tier, []).append(kind)
        pools = tuple([self._pool(tuple(kinds)) for kinds in tiers.values()])
        # These are the last; whoever remembers one of the first must not find it again.
        while len(self._pools) > max(_POOLS_LIMIT, len(pools)):
            self._discard(next(iter(self._pools.values())))
            self._matches.clear()
        return pools

    def _pool(self, kinds: tuple[Kind, ...]) -> Pool:
        """The pool of these, which becomes the last."""
        pool = self._pools.pop(kinds, None)
        if pool is None:
            pool = Pool(kinds)
            for kind in kinds:
                kind.pools.append(pool)
        self._pools[kinds] = pool
        return pool

    def _discard(self, pool: Pool) -> None:
        del self._pools[pool.kinds]
        for kind in pool.kinds:
            kind.pools.remove(pool)
