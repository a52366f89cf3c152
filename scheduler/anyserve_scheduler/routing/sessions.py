"""Which replica each session is at."""

from __future__ import annotations

from collections import OrderedDict

import attrs

from anyserve_scheduler.routing.inflight import Key


@attrs.frozen
class Place:
    """Where a session's last request went."""

    key: Key
    epoch: int
    """Of the replica then; with another one, what it knew of the session is gone."""
    used: float
    """When, in seconds on the scheduler's clock."""


class Sessions:
    """Sessions and their places, by the name of the capability that was asked for.

    limit: sessions kept; the ones quiet for longest make room.
    idle: seconds after which a session that says nothing is over.
    """

    def __init__(self, limit: int = 1 << 16, idle: float = 600.0) -> None:
        self._limit = limit
        self._idle = idle
        self._places: OrderedDict[tuple[str, str], Place] = OrderedDict()
        """The one used last at the end."""

    def __len__(self) -> int:
        return len(self._places)

    def place(self, name: str, session: str, now: float) -> Place | None:
        """Where the session is, unless it is over."""
        place = self._places.get((name, session))
        if place is None or now - place.used > self._idle:
            return None
        return place

    def moved(self, name: str, session: str, key: Key, epoch: int, now: float) -> None:
        """A request of the session has gone to `key`. Sessions that are over are dropped."""
        self._places[name, session] = Place(key, epoch, now)
        self._places.move_to_end((name, session))
        while len(self._places) > self._limit or self._oldest() < now - self._idle:
            self._places.popitem(last=False)

    def _oldest(self) -> float:
        return next(iter(self._places.values())).used
