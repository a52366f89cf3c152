"""What became of every request, and the invariants that it is held to."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Sequence

import attrs

from anyserve.errors import AnyServeError, Cancelled, DeadlineExceeded, Unavailable
from anyserve.replica.inference import scan
from anyserve_scheduler.simulate.answers import number_of
from anyserve_scheduler.simulate.arrivals import Arrival

ANSWERED = "answered"
_ROUNDING = 1e-6
"""Seconds."""
_KEPT = 100
"""Violations whose words are kept."""


@attrs.define(eq=False)
class Request:
    """One request, as the simulation follows it from outside. Times in seconds."""

    number: int
    arrival: Arrival
    deadline: float
    outcome: str | None = None
    """What its client was told; None while it has heard nothing."""
    began: float = math.nan
    """When its handler was started."""
    handed_back: list[str] = attrs.field(factory=list)
    """Replicas that did not serve it and said so, for another one to do it."""
    begun: int = 0
    """How often that was."""
    received: int = 0
    """Messages that its client has been answered with."""
    refused: bool = False
    """A replica did not take it."""
    lost: bool = False
    """A process was killed that had it, or it was sent to one that was not there."""


@attrs.define
class Ledger:
    """All requests of a run: those on their way, and counts of those that are over."""

    open: dict[int, Request] = attrs.field(factory=dict)
    """By number."""
    outcomes: Counter[str] = attrs.field(factory=Counter)
    violations: list[str] = attrs.field(factory=list)
    """Invariants that were broken, in words; the first hundred."""
    broken: int = 0
    """How many in all."""
    delegated: int = 0
    """Requests that were handed back, as their replicas counted them."""
    waits: array[float] = attrs.field(factory=lambda: array("d"))
    """Seconds from arrival to start, of answered requests."""
    times: array[float] = attrs.field(factory=lambda: array("d"))
    """Seconds from arrival to answer, of the same ones."""
    ended: array[float] = attrs.field(factory=lambda: array("d"))
    """When they were answered."""
    blocks: int = 0
    """Of the prompts of all requests that were started."""
    hits: int = 0
    """Of these, those that were in the replica's cache."""
    _digest: hashlib._Hash = attrs.field(factory=hashlib.sha256)

    def violated(self, what: str) -> None:
        """An invariant is broken."""
        self.broken += 1
        if len(self.violations) < _KEPT:
            self.violations.append(what)

    def check(self, holds: bool, what: str) -> None:
        """`what` is wrong unless it `holds`."""
        if not holds:
            self.violated(what)

    def arrived(self, request: Request) -> None:
        """A client makes it."""
        self.open[request.number] = request

    def on_replica(self, request: Request, replica: str) -> None:
        """It has come to a replica that may serve it."""
        self.check(
            len(request.handed_back) <= 1,
            f"request {request.number} came to {replica} after {request.handed_back} handed it"
            " back: delegated more than once",
        )

    def was_handed_back(self, request: Request, replica: str) -> None:
        """A replica does not serve it, and another one is to."""
        request.handed_back.append(replica)
        self.delegated += len(request.handed_back) == 1

    def find(self, body: bytes) -> Request | None:
        """The request with this body, while it is open."""
        return self.open.get(int(scan(body).id))

    def lose(self, body: bytes) -> None:
        """The request with this body was at a process that is no more."""
        request = self.find(body)
        if request is not None:
            request.lost = True

    def was_begun(
        self, request: Request, now: float, blocks: int, hits: int, resumable: bool
    ) -> None:
        """Its handler starts; `hits` of its prompt's `blocks` were cached there.

        resumable: whether the handler may go on where another was killed.
        """
        request.begun += 1
        if request.begun == 1:
            request.began = now
        else:
            may = resumable and request.lost and request.begun == 2 and not request.handed_back
            self.check(may, f"request {request.number} was begun twice")
        self.blocks += blocks
        self.hits += hits

    def received(self, request: Request, messages: Sequence[bytes]) -> None:
        """Its client hears these."""
        for message in messages:
            self.check(
                request.outcome is None and number_of(message) == request.received,
                f"request {request.number} was given message {number_of(message)} after"
                f" {request.received}, {request.outcome or 'in its midst'}",
            )
            request.received += 1

    def end(self, request: Request, error: AnyServeError | None, now: float) -> None:
        """Its client hears how it ended."""
        outcome = ANSWERED if error is None else error.status.name.lower()
        number, before = request.number, request.outcome
        self.check(before is None, f"request {number} ended twice: {before}, then {outcome}")
        if before is not None:
            return
        request.outcome = outcome
        del self.open[number]
        self.outcomes[outcome] += 1
        self._digest.update(b"%d %s %r\n" % (number, outcome.encode(), round(now, 9)))
        late = now > request.deadline + _ROUNDING
        self.check(not late, f"request {number} ended {now - request.deadline:.6f} s too late")
        if isinstance(error, DeadlineExceeded):
            early = now < request.deadline - _ROUNDING
            self.check(not early, f"request {number} expired before its deadline")
        elif isinstance(error, Cancelled):
            gave_up = now >= request.arrival.gives_up - _ROUNDING
            self.check(gave_up, f"request {number} was cancelled, but not by its client")
        elif isinstance(error, Unavailable):
            self._check_unavailable(request)
        elif error is None:
            started = not math.isnan(request.began)
            self.check(started, f"request {number} was answered, but not by a handler")
            whole = request.received == request.arrival.traffic.answers
            self.check(whole, f"request {number} ended well after {request.received} messages")
            self.waits.append(request.began - request.arrival.at)
            self.times.append(now - request.arrival.at)
            self.ended.append(now)

    def _check_unavailable(self, request: Request) -> None:
        """Only who is killed lets down what it has, and no replica but by its own word."""
        begun = not math.isnan(request.began)
        self.check(
            request.lost or not begun,
            f"request {request.number} was begun and became unavailable, but nobody was killed",
        )
        self.check(
            request.lost or request.refused or not request.arrival.direct,
            f"request {request.number} became unavailable at its replica, which was there",
        )

    @property
    def digest(self) -> str:
        """Of all outcomes and their times: the same for the same run."""
        return self._digest.hexdigest()[:16]
