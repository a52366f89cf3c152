"""What is sent while a burst of messages is handled goes out at its end, one write for each peer.

A task that has read from a socket handles all that has come in one `with burst:`. Whatever that
makes others send is written when the block ends, and not by their writers a turn of the loop later.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol


class Outlet(Protocol):
    """Something that gathers output."""

    def settle(self) -> None:
        """Write what has gathered, as far as the socket takes it now."""
        ...


_due: dict[Outlet, None] = {}
_depth = 0


def defer(outlet: Outlet) -> bool:
    """Have `outlet` settle at the end of the burst; False outside of one."""
    if not _depth:
        return False
    _due[outlet] = None
    return True


class _Burst:
    """One thread's bursts. What is in one never waits, so that no two are open at once."""

    def __enter__(self) -> None:
        global _depth
        _depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _depth
        try:
            while _depth == 1 and _due:
                outlet = next(iter(_due))
                del _due[outlet]
                outlet.settle()
        finally:
            _depth -= 1


burst = _Burst()
