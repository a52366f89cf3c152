"""Who was heard when, and whose silence is too long."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict

import attrs

from anyserve_scheduler.registration import LeaseTerms

_ROUNDING = 1e-6
"""Seconds; a lease may end this much early, so that who sleeps until its end finds it over."""
LATE = 0.5
"""Seconds after which a look that was due is no longer one in time."""
_AT_ONCE = 256
"""Silences that one look finds; the next look comes at once, after others have had a turn."""


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

    `pass_time` says what time it is, and is called when that is due. The leases stand still while
    nobody could be heard:

    - where the clock goes back, for as long: none becomes shorter or comes back;
    - where the call comes late, because the process was stopped or its clock has jumped: since the
      last call, and for one interval more, in which what replicas have said meanwhile is read. A
      scheduler that is so late each time ends no lease.
    """

    terms: LeaseTerms
    _now: float = -math.inf
    """What it was at last, on the caller's clock."""
    _time: float = -math.inf
    """The same on the leases' clock, which never goes back."""
    _lag: float = 0.0
    """Seconds by which the leases' clock is behind, as long as it runs."""
    _live: OrderedDict[str, float] = attrs.field(factory=OrderedDict)
    """When each was last heard on the leases' clock, longest ago first."""
    _suspect: OrderedDict[str, float] = attrs.field(factory=OrderedDict)
    """The same of those silent for too long; all were heard before any in `_live`."""
    _due: float = math.inf
    """Nobody's silence is too long before this, on the leases' clock."""

    def pass_time(self, now: float) -> Silences:
        """Let the time be `now`; some who have been silent for too long by it, or all of them."""
        if now < self._now:
            self._lag -= self._now - now
        self._now = now
        time = max(self._time, now - self._lag)
        if time + _ROUNDING < self._due:
            self._time = time
            return NOBODY
        self._set_due()
        if time - max(self._due, self._time) > LATE:
            self._lag = now - self._time + self.terms.interval
            return NOBODY
        self._time = time
        return self._silences(time + _ROUNDING)

    def _silences(self, time: float) -> Silences:
        suspect, over = [], []
        for id in _heard_until(time - self.terms.suspicion, self._live):
            self._suspect[id] = self._live.pop(id)
            suspect.append(id)
        for id in _heard_until(time - self.terms.lease, self._suspect):
            del self._suspect[id]
            over.append(id)
        self._set_due()
        return Silences(tuple(id for id in suspect if id in self._suspect), tuple(over))

    def renew(self, id: str) -> None:
        """`id` is heard at this moment; it has a lease from now on if it had none."""
        self._suspect.pop(id, None)
        self._live[id] = self._time
        self._live.move_to_end(id)
        self._due = min(self._due, self._time + self.terms.suspicion)

    def end(self, id: str) -> None:
        """`id` holds no lease any more, if it did."""
        self._live.pop(id, None)
        self._suspect.pop(id, None)

    def due(self) -> float:
        """When `pass_time` has something to say, on the caller's clock; inf for never."""
        self._set_due()
        return self._due + self._lag

    def _set_due(self) -> None:
        self._due = min(
            next(iter(self._live.values()), math.inf) + self.terms.suspicion,
            next(iter(self._suspect.values()), math.inf) + self.terms.lease,
        )


def _heard_until(last: float, heard: OrderedDict[str, float]) -> list[str]:
    """Who was heard at `last` or before, the first `_AT_ONCE` of them."""
    found = itertools.takewhile(lambda item: item[1] <= last, heard.items())
    return [id for id, _ in itertools.islice(found, _AT_ONCE)]
