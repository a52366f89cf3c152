"""Who was heard when, and whose silence is too long."""

from __future__ import annotations

import math
from collections import OrderedDict

import attrs

from anyserve_scheduler.registration import LeaseTerms

_ROUNDING = 1e-6
"""Seconds; a lease may end this much early, so that who sleeps until its end finds it over."""


@attrs.frozen
class Silences:
    """What a moment has brought: ids of replicas, longest silent first."""

    suspect: tuple[str, ...] = ()
    """They hold their leases, and have been silent for an interval and its grace."""
    over: tuple[str, ...] = ()
    """Their leases are over; they hold none any more."""


NOBODY = Silences()


@attrs.define
class Leases:
    """The leases of all replicas, which cost the same to renew however many there are.

    `pass_time` says what time it is. Where that goes back, the leases stand still for as long: none
    becomes shorter or comes back, and they run on from there. A jump forward lets time pass.
    """

    terms: LeaseTerms
    _now: float = -math.inf
    """What it was at last, on the caller's clock."""
    _gone_back: float = 0.0
    """Seconds by which the caller's clock has gone back in all; the time here is without that."""
    _live: OrderedDict[str, float] = attrs.field(factory=OrderedDict)
    """When each was last heard, longest ago first."""
    _suspect: OrderedDict[str, float] = attrs.field(factory=OrderedDict)
    """The same of those silent for too long; all were heard before any in `_live`."""
    _due: float = math.inf
    """Nobody's silence is too long before this."""

    def pass_time(self, now: float) -> Silences:
        """Let the time be `now`; who has been silent for too long by it."""
        if now < self._now:
            self._gone_back += self._now - now
        self._now = now
        time = now + self._gone_back + _ROUNDING
        if time < self._due:
            return NOBODY
        suspect, over = [], []
        while (id := _longest(self._live, time - self.terms.suspicion)) is not None:
            self._suspect[id] = self._live.pop(id)
            suspect.append(id)
        while (id := _longest(self._suspect, time - self.terms.lease)) is not None:
            del self._suspect[id]
            over.append(id)
        self._set_due()
        return Silences(tuple(id for id in suspect if id in self._suspect), tuple(over))

    def renew(self, id: str) -> None:
        """`id` is heard at this moment; it has a lease from now on if it had none."""
        self._suspect.pop(id, None)
        heard = self._live[id] = self._now + self._gone_back
        self._live.move_to_end(id)
        self._due = min(self._due, heard + self.terms.suspicion)

    def end(self, id: str) -> None:
        """`id` holds no lease any more, if it did."""
        self._live.pop(id, None)
        self._suspect.pop(id, None)

    def due(self) -> float:
        """When `pass_time` may have something to say, on the caller's clock; inf for never."""
        self._set_due()
        return self._due - self._gone_back

    def _set_due(self) -> None:
        self._due = min(
            next(iter(self._live.values()), math.inf) + self.terms.suspicion,
            next(iter(self._suspect.values()), math.inf) + self.terms.lease,
        )


def _longest(heard: OrderedDict[str, float], since: float) -> str | None:
    """Who was heard first, if that was at `since` or before."""
    for id, time in heard.items():
        return id if time <= since else None
    return None
