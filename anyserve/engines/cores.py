"""How much of the machine an engine takes for itself."""

from __future__ import annotations

import os
import sys


def spare_cores() -> int:
    """All cores that this process may use but one, and one at least.

    With as many threads as cores, a busy neighbour on any core makes all threads wait for it:
    150 tokens/s fell to 40.
    """
    if sys.platform == "linux":
        return max(1, len(os.sched_getaffinity(0)) - 1)
    return max(1, (os.cpu_count() or 1) - 1)
