"""Where a request goes: the best replica, or pair of them, that can be sent it now."""

from __future__ import annotations

from anyserve.capability import Capability
from anyserve.errors import AnyServeError, NotFound, Unavailable
from anyserve_scheduler.delegation import Handback
from anyserve_scheduler.gateway.pairing import can_meet
from anyserve_scheduler.gateway.ways import Ways
from anyserve_scheduler.routing import Decision, Hints, NoRoute


def choose(
    ways: Ways,
    need: Capability,
    hints: Hints,
    excluded: dict[str, str],
    time: float,
    resumed: bool,
) -> Decision | NoRoute:
    """The best replica, or pair of them, whose links are up.

    excluded: those of `hints`; replicas that turn out not to do are put there. resumed: whether
    the request goes on after token ids, which not every offer takes.
    """
    while True:
        ways.decisions += 1
        decision = ways.router.choose(need, hints, time)
        if isinstance(decision, NoRoute):
            return decision
        halves = [decision] if decision.prefill is None else [decision, decision.prefill]
        down = [half.replica for half in halves if ways.link_of(half) is None]
        if down:
            excluded |= dict.fromkeys(down, "its link is not up yet")
        elif decision.prefill is not None and not can_meet(decision.prefill):
            excluded[decision.prefill.replica] = "it does not say where it is met"
        elif resumed and not ways.offer_of(decision).resumable:
            excluded[decision.replica] = "it takes no texts that were begun elsewhere"
        else:
            return decision


def lost(ways: Ways, none: NoRoute, spent: Handback | None, resumed: bool) -> AnyServeError:
    """Why a request goes nowhere, with what the replica has said that gave it away.

    resumed: as for `choose`; what is missing then is nothing that the client has asked for.
    """
    error = none.error()
    if isinstance(error, NotFound):
        error = ways.missing(error)
    kind = Unavailable if resumed else type(error)
    if spent is not None and spent.reason not in error.message:
        return kind(f"{error.message}; {spent.replica} said: {spent.reason}")
    return kind(error.message)
