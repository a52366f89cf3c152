"""Telling a flood of HTTP/2 control frames from a lively client."""

from __future__ import annotations

import attrs


@attrs.define
class FloodGuard:
    """Counts frames that cost the peer nothing and this side work, by the second."""

    per_second: float
    """What a well-behaved peer never reaches."""
    _since: float = 0.0
    _count: float = 0.0

    def exceeded(self, weight: float, now: float) -> bool:
        """Count `weight` at `now` (seconds); True once the second holds more than is allowed."""
        if now - self._since >= 1.0:
            self._since = now
            self._count = 0.0
        self._count += weight
        return self._count > self.per_second
