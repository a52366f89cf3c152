"""What is recorded, for a trace, of one request on its way through the front door."""

from __future__ import annotations

from anyserve import traces
from anyserve.capability import Capability
from anyserve.replica.statistics import Outcome
from anyserve_scheduler.gateway.incoming import Metadata
from anyserve_scheduler.routing import Decision


class Spans:
    """The request's span, and within it one of each replica that it is at."""

    _at_replica: traces.Span | None = None

    def __init__(self, trace: traces.Trace, need: Capability) -> None:
        self._trace = trace
        self._whole = traces.begin("front door", trace, need=str(need))

    def send(self, decision: Decision, delegations: int) -> Metadata:
        """It goes to a replica; gives the metadata that pass the trace on."""
        replica, capability = decision.replica, decision.capability
        if self._whole is not None:
            self._whole.args["capability"] = capability.name
            self._whole.args["replica"] = replica
        sending = self._trace.child()
        self._at_replica = traces.begin(
            f"send to {replica}",
            sending,
            replica=replica,
            capability=str(capability),
            delegations=delegations,
        )
        return sending.headers

    def answered(self) -> None:
        """The replica has begun to answer."""
        if self._at_replica is not None:
            self._at_replica.mark("first_answer_us")

    def leave(self, failure: str | None) -> None:
        """It is at that replica no longer; failure: why that has not served it."""
        if self._at_replica is not None:
            self._at_replica.close(error=failure)

    def end(self, outcome: Outcome, failure: str | None) -> None:
        """It is over; failure: why it was not served."""
        self.leave(failure)
        if self._whole is not None:
            self._whole.args["outcome"] = outcome.value
            self._whole.close(error=failure)
