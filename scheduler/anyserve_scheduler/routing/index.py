"""Candidates by what they offer, and the pools of them for each need."""

from __future__ import annotations

import re
from collections.abc import Iterable

from anyserve.capability import Attribute, Capability, power
from anyserve_scheduler.routing.pools import Candidate, Kind, Pool, next_stamp

_MATCHES_LIMIT = 1024
"""Needs whose pools are remembered."""
_POOLS_LIMIT = 256
"""Pools that are kept; one is made again, in time linear in its members, when it is asked for."""

_Exact = tuple[str, tuple[tuple[str, Attribute], ...]]
"""A capability as a key: its name and its sorted attributes."""


def _exact(capability: Capability) -> _Exact:
    return capability.name, tuple(capability.attributes.items())


def tier(capability: Capability) -> tuple[object, ...]:
    """A sort key, equal for capabilities of equal power: same limits, names equally deep.

    `decode[model=a]` and `decode[model=b]` are one tier, so that a need that takes either has its
    load spread over both.
    """
    return power(
        Capability(
            re.sub(r"[^.]+", "_", capability.name),
            {
                key: value if key.startswith(("max_", "min_")) else ""
                for key, value in capability.attributes.items()
            },
        )
    )


class Index:
    """Candidates by what they offer, and the pools for each need."""

    def __init__(self) -> None:
        self._kinds: dict[_Exact, Kind] = {}
        self._by_name: dict[str, dict[Kind, None]] = {}
        """Kinds by the names of needs that they satisfy: their own and its ancestors."""
        self._pools: dict[tuple[Kind, ...], Pool] = {}
        """The one asked for last at the end."""
        self._matches: dict[_Exact, tuple[Pool, ...]] = {}

    def matched(self, need: Capability) -> tuple[Pool, ...]:
        """The candidates that satisfy `need`, in pools of equal power, the least powerful first."""
        if need.name not in self._by_name:
            return ()
        key = _exact(need)
        pools = self._matches.get(key)
        if pools is None:
            if len(self._matches) >= _MATCHES_LIMIT:
                del self._matches[next(iter(self._matches))]
            pools = self._matches[key] = self._match(need)
        return pools

    def satisfying(self, need: Capability) -> list[Kind]:
        """The kinds that satisfy `need`, in order of their power."""
        named = self._by_name.get(need.name, ())
        kinds = [kind for kind in named if kind.capability.satisfies(need)]
        return sorted(kinds, key=lambda kind: (kind.tier, power(kind.capability)))

    def kinds(self) -> Iterable[Kind]:
        """All there are."""
        return self._kinds.values()

    def kinds_of(self, name: str) -> Iterable[Kind]:
        """Those of this name, or of a kind of it."""
        return self._by_name.get(name, ())

    def add(self, candidate: Candidate) -> None:
        """Take a candidate in."""
        capability = candidate.offer.capability
        key = _exact(capability)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = Kind(capability, tier(capability))
            for name in _with_ancestors(capability.name):
                self._by_name.setdefault(name, {})[kind] = None
            self._matches.clear()
        candidate.kind = kind
        kind.members[candidate] = None
        for pool in kind.pools:
            pool.add(candidate)

    def remove(self, candidate: Candidate) -> None:
        """Let a candidate go; a kind goes with its last one."""
        kind = candidate.kind
        assert kind is not None
        for pool in kind.pools:
            pool.remove(candidate)
        del kind.members[candidate]
        candidate.kind = None
        candidate.stamp = next_stamp()
        if not kind.members:
            del self._kinds[_exact(kind.capability)]
            for name in _with_ancestors(kind.capability.name):
                kinds = self._by_name[name]
                del kinds[kind]
                if not kinds:
                    del self._by_name[name]
            for pool in kind.pools.copy():
                self._discard(pool)
            self._matches.clear()

    def _match(self, need: Capability) -> tuple[Pool, ...]:
        tiers: dict[tuple[object, ...], list[Kind]] = {}
        for kind in self.satisfying(need):
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


def _with_ancestors(name: str) -> Iterable[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]
