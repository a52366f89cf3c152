"""What became of the requests of one capability, in the units that KServe v2 reports."""

from __future__ import annotations

import enum

import attrs


class Outcome(enum.StrEnum):
    """How a request ended; every request ends in exactly one."""

    ANSWERED = "answered"
    FAILED = "failed"
    """Answered with the error that its handler raised or its worker died of."""
    REFUSED = "refused"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@attrs.define
class Total:
    """A number of events and the time that they took together."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """One more event."""
        self.count += 1
        self.ns += int(seconds * 1e9)


@attrs.define
class Statistics:
    """Running totals of one capability."""

    outcomes: dict[Outcome, int] = attrs.field(factory=lambda: dict.fromkeys(Outcome, 0))
    success: Total = attrs.field(factory=Total)
    """Whole time in the replica, of answered requests."""
    fail: Total = attrs.field(factory=Total)
    """The same of all others."""
    inferences: int = 0
    """Answered requests, each counted by its batch size."""
    last_inference_ms: int = 0
    """Wall-clock milliseconds since the epoch; 0 before the first."""
    _queue_ns: int = 0

    @property
    def queue(self) -> Total:
        """Time of answered requests until a worker was free."""
        return Total(self.success.count, self._queue_ns)

    @property
    def compute(self) -> Total:
        """Their time in the worker."""
        return Total(self.success.count, self.success.ns - self._queue_ns)

    def record(
        self,
        outcome: Outcome,
        *,
        seconds: float,
        queued: float,
        batch: int,
        wall_ms: int,
    ) -> None:
        """One request has ended: after `seconds` here, of which it waited `queued`."""
        self.outcomes[outcome] += 1
        if outcome is not Outcome.ANSWERED:
            self.fail.add(seconds)
            return
        success = self.success
        success.count += 1
        success.ns += int(seconds * 1e9)
        self._queue_ns += int(queued * 1e9)
        self.inferences += batch
        self.last_inference_ms = wall_ms
