"""Why a request goes nowhere: the status for its client, and the words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from anyserve.capability import Capability, power, why_not
from anyserve.errors import Status
from anyserve_scheduler.routing.candidates import Candidates
from anyserve_scheduler.routing.decision import Hints, NoRoute
from anyserve_scheduler.routing.pools import Kind, Pool

_NEAREST = 4
"""Offers that a message names."""
_LOOKED_AT = 256
"""Offers that are looked at to find these, so that a wrong need costs little in any fleet."""
_LISTED = 4
"""Excluded replicas that a message names."""


def no_route(need: Capability, hints: Hints, candidates: Candidates) -> NoRoute:
    """The reason, for a need that no candidate can take."""
    pools = candidates.live.matched(need) + candidates.suspect.matched(need)
    loadable = next(iter(candidates.loadable.satisfying(need)), None)
    could = None if loadable is None else loadable.capability
    if pools:
        status, message = _none_can_take(need, pools, hints)
    elif candidates.draining.satisfying(need):
        status, message = Status.UNAVAILABLE, f"all replicas that offer {need} are draining"
    elif could is not None:
        status, message = Status.UNAVAILABLE, f"{could} is not loaded on any replica"
    else:
        status, message = Status.NOT_FOUND, nearest_offers(need, candidates)
    if hints.delegations:
        message += "; it was handed back once already"
    return NoRoute(status, message, could)


def nearest_offers(need: Capability, candidates: Candidates) -> str:
    """The offers that are nearest to a need that nothing satisfies, and why each fails."""
    named = _kinds(index.kinds_of(need.name) for index in candidates.indexes())
    near = named or _kinds(index.kinds() for index in candidates.indexes())
    if not near:
        return f"nothing offers {need.name}: the fleet is empty"
    near.sort(key=lambda offer: (-_in_common(offer.name, need.name), power(offer)))
    whys = "; ".join(f"{why_not(offer, need)}" for offer in near[:_NEAREST])
    return f"nothing in the fleet satisfies {need}: {whys}"


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


def _kinds(kinds: Iterable[Iterable[Kind]]) -> list[Capability]:
    """Some of these, each once."""
    found = itertools.islice(itertools.chain.from_iterable(kinds), _LOOKED_AT)
    return list({str(kind.capability): kind.capability for kind in found}.values())


def _in_common(offered: str, needed: str) -> int:
    """The words that two names have in common from the left."""
    pairs = zip(offered.split("."), needed.split("."), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
