"""What becomes of the requests at the front door, and in which time: kept where HTTP is served."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from anyserve.errors import AnyServeError, DeadlineExceeded
from anyserve.histogram import Histogram
from anyserve.http.metrics.labels import MOST_LABELS, OTHER
from anyserve.replica.statistics import Outcome


@attrs.frozen(eq=False)
class Measures:
    """Of the requests of one capability; times are seconds since they came."""

    outcomes: dict[Outcome, int] = attrs.field(factory=lambda: dict.fromkeys(Outcome, 0))
    whole: Histogram = attrs.field(factory=Histogram)
    """To the end, of those that were answered."""
    first: Histogram = attrs.field(factory=Histogram)
    """To the first answer."""
    between: Histogram = attrs.field(factory=Histogram)
    """From one answer to the next."""


class Meter:
    """Measures by capability.

    Requests that were matched to none count under `OTHER`: what they name is their clients' word.
    """

    def __init__(self) -> None:
        self._measures = {OTHER: Measures()}

    @property
    def measures(self) -> Mapping[str, Measures]:
        """By the name of the capability that requests were sent to, or `OTHER`."""
        return self._measures

    def of(self, capability: str) -> Measures:
        """Those of a capability of the fleet."""
        found = self._measures.get(capability)
        if found is None:
            if len(self._measures) >= MOST_LABELS:
                return self._measures[OTHER]
            found = self._measures[capability] = Measures()
        return found


class Passage:
    """One request on its way through the front door, timed."""

    __slots__ = ("_answered", "_arrived", "_measures", "_meter")

    def __init__(self, meter: Meter, now: float) -> None:
        self._meter = meter
        self._measures = meter.measures[OTHER]
        self._arrived = now
        self._answered: float | None = None
        """When the last answer came."""

    def sent(self, capability: str) -> None:
        """It is sent to a replica as a request of `capability`."""
        self._measures = self._meter.of(capability)

    def answered(self, count: int, now: float) -> None:
        """So many answers have come."""
        measures = self._measures
        if self._answered is None:
            measures.first.observe(now - self._arrived)
        else:
            measures.between.observe(now - self._answered)
        if count > 1:
            measures.between.observe(0.0, count - 1)
        self._answered = now

    def ended(self, outcome: Outcome, now: float) -> None:
        """It is over."""
        measures = self._measures
        measures.outcomes[outcome] += 1
        if outcome is Outcome.ANSWERED:
            measures.whole.observe(now - self._arrived)


def outcome_of(error: AnyServeError | None, at_replica: bool) -> Outcome:
    """How a request ended that was not cancelled; at_replica: whether one had taken it."""
    if error is None:
        return Outcome.ANSWERED
    if isinstance(error, DeadlineExceeded):
        return Outcome.EXPIRED
    return Outcome.FAILED if at_replica else Outcome.REFUSED
