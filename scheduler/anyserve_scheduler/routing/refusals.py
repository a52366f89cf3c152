"""Why a request goes nowhere: the status for its client, and the words."""

from __future__ import annotations

import itertools
import math

from anyserve.capability import Capability, explain_absence
from anyserve.errors import Status
from anyserve_scheduler.routing.candidates import Candidates
from anyserve_scheduler.routing.decision import Hints, NoRoute
from anyserve_scheduler.routing.pools import Candidate, Pool

_LISTED = 4
"""Excluded replicas that a message names."""


def no_route(need: Capability, hints: Hints, candidates: Candidates) -> NoRoute:
    """The reason, for a need that no candidate can take."""
    pools = candidates.live.matched(need) + candidates.suspect.matched(need)
    could = _best_to_load(need, candidates)
    if pools:
        status, message = _none_can_take(need, pools, hints)
    elif could is not None:
        status, message = Status.UNAVAILABLE, _not_loaded(could)
    elif candidates.halves.least(need) or candidates.suspect_halves.least(need):
        status, message = Status.UNAVAILABLE, f"{need} is served by pairs, and none can take it"
        if hints.excluded:
            message += f": {_exclusions(hints)}"
    elif candidates.draining.least(need) is not None:
        status, message = Status.UNAVAILABLE, f"all replicas that offer {need} are draining"
    else:
        near = [offer for index in candidates.indexes() for offer in index.near(need)]
        status, message = Status.NOT_FOUND, explain_absence(need, near)
    if hints.delegations:
        message += "; it was delegated once already"
    if could is None:
        return NoRoute(status, message)
    offer = could.offer
    return NoRoute(status, message, offer.capability, not pools and offer.promising)


def _best_to_load(need: Capability, candidates: Candidates) -> Candidate | None:
    """The least powerful offer that would serve if it were loaded; first those that may load."""
    best = None
    for pool in candidates.loadable.matched(need):
        for candidate in pool.members:
            if candidate.offer.promising:
                return candidate
        best = best or pool.members[0]
    return best


def _not_loaded(could: Candidate) -> str:
    offer = could.offer
    if offer.promising:
        return f"{offer.capability} is not loaded on any replica"
    return f"{offer.capability} could not be loaded: {could.key[0]}: {offer.failure}"


def _none_can_take(need: Capability, pools: tuple[Pool, ...], hints: Hints) -> tuple[Status, str]:
    least = [pool.least(hints.excluded) for pool in pools]
    wait = min((each.wait for each in least if each is not None), default=None)
    if wait is None:
        return Status.UNAVAILABLE, f"no replica may take {need}: {_exclusions(hints)}"
    if wait < math.inf:
        return Status.RESOURCE_EXHAUSTED, (
            f"{hints.budget * 1000:.0f} ms remain until the deadline, and the least expected wait"
            f" for {need} is {wait * 1000:.0f} ms"
        )
    if not any(pool.slots for pool in pools):
        return Status.UNAVAILABLE, f"no replica that offers {need} has a worker ready"
    return Status.RESOURCE_EXHAUSTED, f"the queues of all replicas that offer {need} are full"


def _exclusions(hints: Hints) -> str:
    some = [f"{id}: {why}" for id, why in itertools.islice(hints.excluded.items(), _LISTED)]
    more = len(hints.excluded) - len(some)
    return "; ".join(some) + (f"; and {more} more" if more else "")
