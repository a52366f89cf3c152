"""One request's wait for a replica to load what it needs."""

from __future__ import annotations

import math
from collections.abc import Callable

from anyserve.capability import Capability
from anyserve.deadlines import Deadline
from anyserve.errors import AnyServeError, ResourceExhausted, Unavailable
from anyserve_scheduler.gateway.unserved import Waiting
from anyserve_scheduler.gateway.ways import Ways
from anyserve_scheduler.routing import NoRoute


class LoadWait:
    """The wait of one request, which may begin again where what was loaded is lost.

    It has a bound of its own, `load_wait` in all, where the request has no deadline.
    """

    _by = math.inf
    """Until when it may last, on Trio's clock."""
    _waiting: Waiting | None = None
    """The request, while it waits."""
    _deadline: Deadline | None = None

    def __init__(self, ways: Ways) -> None:
        self._ways = ways
        self._need: Capability

    @property
    def is_on(self) -> bool:
        """Whether the request waits."""
        return self._waiting is not None

    def begin(self, waiting: Waiting, need: Capability, none: NoRoute) -> None:
        """Have a request wait; raises `ResourceExhausted` where too many do already.

        none: why nobody serves it now, and what would.
        """
        assert none.loadable is not None
        if not self._ways.unserved.add(need, none.loadable, waiting):
            raise ResourceExhausted(f"{none.message}, and no more requests may wait for that")
        self._waiting, self._need = waiting, need

    def bound(self, time: float, on_late: Callable[[AnyServeError], None]) -> None:
        """Bound the wait; on_late: hears that nobody has loaded it by then."""
        wait, need = self._ways.load_wait, self._need

        def late() -> None:
            on_late(Unavailable(f"{need} was not loaded on any replica within {wait:g} s"))

        self._by = min(self._by, time + wait)
        self._deadline = self._ways.deadlines.add(self._by, late)

    def end(self) -> None:
        """The request waits no longer; nothing where it did not."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        self._ways.unserved.remove(self._need, waiting)
        if self._deadline is not None:
            self._ways.deadlines.drop(self._deadline)
            self._deadline = None


def is_worth_waiting(ways: Ways, none: NoRoute) -> bool:
    """Whether a request waits that goes nowhere now. What would serve it is noted as wanted."""
    if none.loadable is not None:
        ways.unserved.note(none.loadable)
    return none.loadable is not None and none.promising and ways.load_wait > 0


def answers_any_number(ways: Ways, loadable: Capability) -> bool:
    """Whether replicas say of what they could load that it answers any number of times."""
    views = ways.registry.fleet().loadable(loadable.name)
    offers = (view.offers.get(loadable.name) for view in views)
    return any(offer.decoupled for offer in offers if offer is not None)
