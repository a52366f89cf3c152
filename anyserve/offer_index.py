"""An index of offers by what needs they satisfy, for one look-up among very many."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, TypeVar

import attrs

from anyserve.capability import NEAREST, Attribute, Capability, Power, is_limit, power

Holder = TypeVar("Holder", bound=Hashable)

_Key = tuple[str] | tuple[str, str, Attribute]


@attrs.define(eq=False)
class OfferGroup(Generic[Holder]):
    """One capability and all who offer exactly that."""

    capability: Capability
    power: Power
    _holders: list[Holder] = attrs.field(init=False, factory=list)
    _places: dict[Holder, int] = attrs.field(init=False, factory=dict)
    """Where each stands in `_holders`."""

    @property
    def holders(self) -> Sequence[Holder]:
        """In no order that means anything; not to be written to."""
        return self._holders

    def _add(self, holder: Holder) -> None:
        if holder in self._places:
            raise ValueError(f"{holder!r} offers {self.capability} already")
        self._places[holder] = len(self._holders)
        self._holders.append(holder)

    def _remove(self, holder: Holder) -> None:
        place = self._places.pop(holder)
        last = self._holders.pop()
        if last != holder:
            self._holders[place] = last
            self._places[last] = place


class OfferIndex(Generic[Holder]):
    """Who offers what: groups of equal offers, found by need.

    A group stands in a list for its name and for each ancestor of it, and in one for each of these
    with an attribute that must be equal. So a look-up walks the shortest list that has all that
    can satisfy the need, and other names, and other values of `model`, cost it nothing.
    """

    def __init__(self) -> None:
        self._groups: dict[Power, OfferGroup[Holder]] = {}
        self._lists: dict[_Key, list[OfferGroup[Holder]]] = {}
        """Each by power, the least first."""
        self._names: list[str] = []
        """Those on offer, sorted."""

    def __len__(self) -> int:
        """Different capabilities on offer."""
        return len(self._groups)

    def add(self, capability: Capability, holder: Holder) -> None:
        """`holder` offers `capability`; raises `ValueError` where it does so already."""
        key = power(capability)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = OfferGroup(capability, key)
            if not self._offers_exactly(capability.name):
                bisect.insort(self._names, capability.name)
            for list_key in _keys(capability):
                groups = self._lists.setdefault(list_key, [])
                bisect.insort(groups, group, key=_power_of)
        group._add(holder)

    def remove(self, capability: Capability, holder: Holder) -> None:
        """`holder` offers `capability` no more; raises `KeyError` where it did not."""
        key = power(capability)
        group = self._groups[key]
        group._remove(holder)
        if group.holders:
            return
        del self._groups[key]
        for list_key in _keys(capability):
            groups = self._lists[list_key]
            del groups[bisect.bisect_left(groups, key, key=_power_of)]
            if not groups:
                del self._lists[list_key]
        if not self._offers_exactly(capability.name):
            del self._names[bisect.bisect_left(self._names, capability.name)]

    def _offers_exactly(self, name: str) -> bool:
        """Whether a group has just that name: then the first is one, the others are of a kind."""
        groups = self._lists.get((name,))
        return groups is not None and groups[0].capability.name == name

    def satisfying(self, need: Capability) -> Sequence[OfferGroup[Holder]]:
        """The groups that satisfy `need`, least powerful first.

        It may be a list of the index itself: not to be written to, and stale after a change.
        """
        groups = self._lists.get((need.name,), [])
        if not need.attributes and not need.version:
            return groups
        for key in _equal_parts(need, need.name):
            groups = min(groups, self._lists.get(key, []), key=len)
        return [group for group in groups if group.capability.satisfies(need)]

    def near(self, need: Capability, count: int = NEAREST) -> list[Capability]:
        """A few offers among which `nearest` finds what comes close to `need`.

        They are of its kind, or of the `count` names on each side of it in the order of names,
        which begin most like it. The cost grows with `count` squared, not with the index.
        """
        at = bisect.bisect_left(self._names, need.name)
        names = {need.name, *self._names[max(0, at - count) : at + count]}
        return [
            group.capability
            for name in sorted(names)
            for group in self._lists.get((name,), [])[:count]
        ]


def _power_of(group: OfferGroup[Holder]) -> Power:
    return group.power


def _keys(capability: Capability) -> Iterator[_Key]:
    """Those of the lists that a group of `capability` stands in."""
    name = capability.name
    while name:
        yield (name,)
        yield from _equal_parts(capability, name)
        name = name.rpartition(".")[0]


def _equal_parts(capability: Capability, name: str) -> Iterator[_Key]:
    """What must be equal in offer and need, as keys under `name`."""
    for key, value in capability.attributes.items():
        if not is_limit(key):
            yield (name, key, value)
    if capability.version:
        yield (name, "", capability.version)
