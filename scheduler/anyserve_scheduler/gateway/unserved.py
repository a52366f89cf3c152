"""Requests that nobody serves yet: what they need, and where they wait until somebody does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import attrs

from anyserve.capability import Capability, Power, power
from anyserve.waiting import Waiter
from anyserve_scheduler.fleet import Change, ChangeKind, Fleet
from anyserve_scheduler.watched import WatchedRegistry

MOST_WAITING = 1_024
"""Requests that wait at the same time."""


class Waiting(Protocol):
    """A request that waits."""

    def retry(self) -> None:
        """The fleet is different: go on if that can be, and leave then."""
        ...


@attrs.define(eq=False)
class _Group:
    """Requests with the same need."""

    loadable: Capability
    """What would serve them."""
    waiting: dict[Waiting, None] = attrs.field(factory=dict)


class Unserved:
    """What is wanted that no replica has loaded.

    Requests that wait are tried again when the fleet has changed, one of each need first: while
    that one waits on, so do the others.
    """

    def __init__(self, registry: WatchedRegistry) -> None:
        self._groups: dict[Power, _Group] = {}
        self._noted: dict[str, Capability] = {}
        self._count = 0
        self._stale = False
        self._changed = Waiter()
        self._news = Waiter()
        self._is_news = False
        registry.follow(self._follow)

    def __len__(self) -> int:
        """Requests that wait."""
        return self._count

    # What is wanted.

    def note(self, capability: Capability) -> None:
        """A request came that only `capability` would serve, and that is loaded nowhere."""
        if capability.name not in self._noted:
            self._noted[capability.name] = capability
            self._is_news = True
            self._news.wake()

    def wanted(self) -> Iterable[Capability]:
        """What was noted since `forget`, and what requests wait for."""
        return [*self._noted.values(), *(group.loadable for group in self._groups.values())]

    def forget(self) -> None:
        """Begin anew with what is noted."""
        self._noted.clear()

    async def news(self) -> None:
        """Wait until something is noted for the first time since `forget`; the caller bounds it."""
        while not self.take_news():
            await self._news.wait()

    def take_news(self) -> bool:
        """Whether something was, since the last call."""
        news, self._is_news = self._is_news, False
        return news

    # Who waits for it.

    def add(self, need: Capability, loadable: Capability, waiting: Waiting) -> bool:
        """Have a request wait for `loadable`; False where too many do already."""
        if self._count == MOST_WAITING:
            return False
        self._groups.setdefault(power(need), _Group(loadable)).waiting[waiting] = None
        self._count += 1
        return True

    def remove(self, need: Capability, waiting: Waiting) -> None:
        """A request waits no longer."""
        group = self._groups[power(need)]
        del group.waiting[waiting]
        self._count -= 1
        if not group.waiting:
            del self._groups[power(need)]

    def retry(self) -> None:
        """Try those again that wait, where the fleet has changed since the last time."""
        if not self._stale:
            return
        self._stale = False
        for group in tuple(self._groups.values()):
            for waiting in tuple(group.waiting):
                if waiting in group.waiting:
                    waiting.retry()
                    if waiting in group.waiting:
                        break

    async def run(self) -> None:
        """Try again as the fleet changes, until cancelled."""
        while True:
            while not self._stale:
                await self._changed.wait()
            self.retry()

    def _follow(self, news: Sequence[Change] | Fleet) -> None:
        # Not now: whoever changes the fleet has not done all that belongs to it.
        if self._groups and (
            isinstance(news, Fleet) or any(c.kind is not ChangeKind.REPORTED for c in news)
        ):
            self._stale = True
            self._changed.wake()
