"""Routing policies as values, so that a simulation can put them side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import attrs


@attrs.frozen
class Policy:
    """How a replica is chosen among equally powerful ones that can meet the deadline."""

    fresh: float = 2.5
    """Seconds for which a reported load is believed. The least expected wait is taken while it is
    younger; the better of two at random once it is older, since whoever else sends requests sees
    the same replica as the least loaded. 0 is always two, infinity always the least wait. By
    default as long as a replica may be silent before it is suspect."""
    prefix: bool = True
    """Whether a prompt goes where its beginning is cached, by the score
    `matched fraction of the prompt - load_weight * relative load`."""
    load_weight: float = 1.0
    """What load counts in that score. At 1, a whole prompt in the cache makes up for a load that
    is higher by the fleet's mean."""
    session_factor: float = 1.5
    """A session leaves its replica when that one's load is over this many times the mean."""


LEAST_WAIT = Policy(fresh=math.inf, prefix=False)
POWER_OF_TWO = Policy(fresh=0.0, prefix=False)
PREFIX = Policy()

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {"least_wait": LEAST_WAIT, "power_of_two": POWER_OF_TWO, "prefix": PREFIX}
)
"""By the names that command lines and scenarios use."""
