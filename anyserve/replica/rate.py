"""How fast a count grows, for one who looks at it now and then."""

from __future__ import annotations

from collections import deque

import attrs

WINDOW = 5.0
"""Seconds that the rate is a mean over, where the count is looked at so often."""
_STEP = 0.5
"""Seconds between the looks that are kept, so that few are."""


@attrs.define
class Rate:
    """The rate of one count. Whoever counts does nothing but add."""

    _looks: deque[tuple[float, int]] = attrs.field(factory=deque)
    """When the count was what, the oldest first: one from before the window, those in it."""

    def per_second(self, count: int, now: float) -> float:
        """The mean growth in the last `WINDOW` seconds, or since the last look before that.

        0 at the first look, and for so long after it that a rate would mean nothing.
        """
        looks = self._looks
        if not looks or now - looks[-1][0] >= _STEP:
            looks.append((now, count))
        while len(looks) > 1 and looks[1][0] <= now - WINDOW:
            looks.popleft()
        since, before = looks[0]
        return (count - before) / (now - since) if now - since >= _STEP else 0.0
