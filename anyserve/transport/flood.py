"""Telling a flood of HTTP/2 control frames from a lively client."""

from __future__ import annotations

import attrs

_SMALL_UPDATE = 1024
"""Window updates of fewer bytes than this make many small frames."""
_EARNED = 10_000
"""Small window updates that a peer may have in hand for what it was sent."""


@attrs.define
class FloodGuard:
    """Counts frames that cost the peer nothing and this side work, by the second."""

    per_second: float
    """What a well-behaved peer never reaches."""
    _since: float = 0.0
    _count: float = 0.0
    _earned: int = 0

    def exceeded(self, weight: float, now: float) -> bool:
        """Count `weight` at `now` (seconds); True once the second holds more than is allowed."""
        if now - self._since >= 1.0:
            self._since = now
            self._count = 0.0
        self._count += weight
        return self._count > self.per_second

    def sent(self, size: int) -> None:
        """The peer is sent that many bytes of DATA.

        Some clients, grpcio's among them, answer each small message with two window updates.
        """
        self._earned = min(self._earned + 2 + size // 32, _EARNED)

    def weigh_update(self, increment: int) -> float:
        """The weight of a window update of so many bytes."""
        if increment >= _SMALL_UPDATE:
            return 0.02
        if self._earned:
            self._earned -= 1
            return 0.0
        return 0.25
