"""The last changes of a fleet, for watchers that follow it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import attrs

from anyserve_scheduler.fleet import Change, Fleet

_KEPT = 4_096
"""Changes; those of 1,000 replicas in about 8 s."""


@attrs.define
class History:
    """A fleet, and the changes that made it what it is."""

    fleet: Fleet = attrs.field(factory=Fleet)
    _changes: deque[Change] = attrs.field(factory=lambda: deque(maxlen=_KEPT))

    def add(self, change: Change) -> None:
        """Let `change` happen, which is the next of this fleet."""
        self.fleet = self.fleet.after(change)
        self._changes.append(change)

    def since(self, version: int) -> Sequence[Change] | Fleet:
        """What has changed since `version`, oldest first.

        The whole fleet instead, for a watcher that is further behind than changes are kept, or
        has a version that never was.
        """
        behind = self.fleet.version - version
        if not 0 <= behind <= len(self._changes):
            return self.fleet
        return [self._changes[index] for index in range(-behind, 0)]
