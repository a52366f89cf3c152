"""The dispatcher's decisions: order of service, admission and choice of worker.

Plain values and functions; times are seconds and come in as arguments.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

import attrs

Item = TypeVar("Item")

_SMOOTHING = 0.1
"""Weight of the newest service time in the running mean."""


class DeadlineQueue(Generic[Item]):
    """Items in order of deadline, first come first served among equals.

    `math.inf` is no deadline: such items are served after all that have one.
    """

    def __init__(self) -> None:
        self._keys: list[tuple[float, int]] = []
        self._items: dict[tuple[float, int], Item] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._keys)

    def push(self, deadline: float, item: Item) -> tuple[float, int]:
        """Add `item`; the key that is returned removes it again."""
        self._arrivals += 1
        key = (deadline, self._arrivals)
        bisect.insort(self._keys, key)
        self._items[key] = item
        return key

    def remove(self, key: tuple[float, int]) -> bool:
        """Take an item out wherever it stands; False when it is not there."""
        if self._items.pop(key, None) is None:
            return False
        del self._keys[bisect.bisect_left(self._keys, key)]
        return True

    def ahead_of(self, deadline: float) -> int:
        """How many items would be served before a new one with `deadline`."""
        return bisect.bisect_right(self._keys, (deadline, self._arrivals + 1))

    def __iter__(self) -> Iterator[tuple[tuple[float, int], Item]]:
        """Keys and items in the order of service; those removed meanwhile are left out."""
        for key in self._keys.copy():
            if key in self._items:
                yield key, self._items[key]


@attrs.define
class ServiceTime:
    """A running mean of how long a request holds its slot."""

    mean: float = math.nan
    """Seconds; not a number until a request has been served."""

    def observe(self, seconds: float) -> None:
        """Take one more service time into the mean."""
        if math.isnan(self.mean):
            self.mean = seconds
        else:
            self.mean += _SMOOTHING * (seconds - self.mean)


def expected_wait(ahead: int, slots: int, service_time: float) -> float:
    """Seconds until a slot is free for a request with `ahead` others before it, all slots taken.

    `slots` slots finish one request each `service_time / slots` seconds on the average, and one
    more than those ahead must finish. Nothing is known (0) before the first has been served.
    """
    if slots == 0:
        return math.inf
    return 0.0 if math.isnan(service_time) else (ahead + 1) * service_time / slots


def refusal(
    *, waiting: int, limit: int, ahead: int, slots: int, service_time: float, budget: float
) -> str | None:
    """Why a request that finds no free slot may not wait for one; None when it may.

    waiting: requests in the queue. limit: how many may be. ahead: those served before this one.
    budget: seconds until its deadline.
    """
    if waiting >= limit:
        return f"the queue is full ({waiting} of {limit} waiting)"
    wait = expected_wait(ahead, slots, service_time)
    if wait > budget:
        return (
            f"{budget * 1000:.0f} ms remain until the deadline, and the expected wait is"
            f" {wait * 1000:.0f} ms"
        )
    return None


class Load(Protocol):
    """What one worker does for one capability."""

    @property
    def running(self) -> int:
        """Requests that it runs."""
        ...

    @property
    def slots(self) -> int:
        """Requests that it may run."""
        ...

    @property
    def others(self) -> int:
        """Requests that it has of others, beside those."""
        ...


def least_loaded(loads: Iterable[Load]) -> int | None:
    """The index of the worker to take: the one with the smallest share of its slots in use, by
    others too.

    None when none has a free slot. Ties go to the first.
    """
    best, best_share = None, math.inf
    for index, load in enumerate(loads):
        if load.running < load.slots:
            share = (load.running + load.others) / load.slots
            if share < best_share:
                best, best_share = index, share
    return best
