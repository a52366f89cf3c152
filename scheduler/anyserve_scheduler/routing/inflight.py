"""What this scheduler has sent since a replica's last report, and the wait that follows from it."""

from __future__ import annotations

import math
from typing import NamedTuple

import attrs

from anyserve.load import Load

Key = tuple[str, str]
"""One offer of the fleet: a replica's id and a capability's name."""

_SMOOTHING = 0.1
"""Weight of the newest service time in the running mean."""


@attrs.define(eq=False)
class InFlight:
    """Requests that this scheduler has sent to one offer."""

    open: int = 0
    """Sent and not ended yet."""
    since_report: int = 0
    """Sent less ended since the load was last reported; may be negative."""
    service: float = math.nan
    """Running mean of how long a request held its slot, in seconds; not a number if unknown."""

    def sent(self) -> None:
        """One more is on its way."""
        self.open += 1
        self.since_report += 1

    def ended(self, service: float | None) -> None:
        """One is over. `service`: how long it held its slot, where that is known."""
        self.open -= 1
        self.since_report -= 1
        if service is not None:
            if math.isnan(self.service):
                self.service = service
            else:
                self.service += _SMOOTHING * (service - self.service)

    def reported(self) -> None:
        """The replica has reported its load, in which all that was sent before is counted."""
        self.since_report = 0


class Estimate(NamedTuple):
    """What one offer's load comes to for the next request."""

    requests: int
    """Running and waiting."""
    wait: float
    """Seconds until the next one starts; infinite where it would find a full queue or no slot."""
    pressure: float
    """Requests for each slot, the next one included; 1 is a replica that it makes full."""


def estimate(load: Load, queue_limit: int, in_flight: InFlight) -> Estimate:
    """The load that was reported, corrected by what was sent and ended since.

    What this scheduler has open there is counted at least, so that a report that crossed a request
    or that is untrue hides nothing of its own. Where the replica has reported no wait, requests
    that find no slot wait by the service times seen from here, and 0 if none were seen: what is
    not known refuses nobody.
    """
    reported = load.running + load.queued
    requests = reported + in_flight.since_report
    if requests < in_flight.open:
        requests = in_flight.open
    slots = load.slots
    if slots == 0:
        return Estimate(requests, math.inf, math.inf)
    if requests >= slots + queue_limit:
        wait = math.inf
    elif load.expected_wait > 0:
        pace = load.expected_wait / (load.queued + 1)
        wait = max(0.0, load.expected_wait + pace * (requests - reported))
    elif requests < slots or math.isnan(in_flight.service):
        wait = 0.0
    else:
        wait = in_flight.service * (requests - slots + 1) / slots
    return Estimate(requests, wait, (requests + 1) / slots)
