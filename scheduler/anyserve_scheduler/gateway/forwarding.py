"""One request on its way through the front door: to a replica, and to another if it has to be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from anyserve_protos.anyserve import v1 as pb

from anyserve import traces
from anyserve.burst import now
from anyserve.deadlines import Deadline
from anyserve.errors import (
    AnyServeError,
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    Unavailable,
    Unimplemented,
)
from anyserve.replica.handback import HANDBACK
from anyserve.replica.statistics import Outcome
from anyserve.transport.rpc import Metadata, decode
from anyserve.transport.wire import NotTaken
from anyserve_scheduler.delegation import Handback
from anyserve_scheduler.fleet import OfferView
from anyserve_scheduler.gateway.choosing import choose, lost
from anyserve_scheduler.gateway.incoming import Incoming, handback_of, narrowed
from anyserve_scheduler.gateway.loading import LoadWait, answers_any_number, is_worth_waiting
from anyserve_scheduler.gateway.meter import Passage, outcome_of
from anyserve_scheduler.gateway.pairing import PrefillHalf, half_need, needs_partner, rendezvous
from anyserve_scheduler.gateway.resuming import Kept, kept_of
from anyserve_scheduler.gateway.sending import ReplicaCall
from anyserve_scheduler.gateway.spans import Spans
from anyserve_scheduler.gateway.ways import Client, Ways
from anyserve_scheduler.routing import Decision, Hints, NoRoute, Sent

MOST_ATTEMPTS = 4
"""Replicas that one request is sent to; all but one and a delegation have not taken it."""


class Forwarding:
    """A request that is passed on, without a task of its own.

    After `start` it ends once: by `on_end` of its client, or by `cancel`. It goes to one replica;
    to others only where the one before has not taken it, and once where that hands it back.
    """

    decoupled = False
    """Whether the replica may answer any number of times."""
    _deadline: Deadline | None = None
    _call: ReplicaCall | None = None
    _prefill: PrefillHalf | None = None
    """Where a pair serves it; `_call` is that of the decode half."""
    _sent: Sent | None = None
    _spans: Spans | None = None
    """What is recorded of it, where it is in a trace."""
    _passage: Passage | None = None
    """What measures it, where somebody asks for that."""
    _wait: LoadWait | None = None
    """Where it waits for a capability to be loaded, or has done so."""
    _kept: Kept | None = None
    """Where it may be resumed."""
    _offer: OfferView
    """What it was sent to."""
    _last_resort = ""
    """The replica that could not go on with it, where it goes if there is no other."""
    _answered = _held = _over = False
    _attempts = 0

    def __init__(self, ways: Ways, request: Incoming, client: Client) -> None:
        self._ways = ways
        self.request = request
        self._client = client
        self.arrived = now()
        """When it came, on Trio's clock."""
        self._need = request.need
        self.replica = ""
        """Where it was sent last; nothing before that."""
        self._excluded: dict[str, str] = {}
        handed_over = request.permit.spent
        if handed_over is not None and not needs_partner(
            ways.registry.fleet(), handed_over.replica, self._need
        ):
            self._excluded[handed_over.replica] = handed_over.reason

    @property
    def waiting(self) -> bool:
        """See `OnItsWay`."""
        return self._wait is not None and self._wait.is_on

    def start(self) -> None:
        """Send it; raises why it can't go anywhere, and is over then."""
        request, meter = self.request, self._ways.meter
        if meter is not None:
            self._passage = Passage(meter, self.arrived)
        if request.trace is not None:
            self._spans = Spans(request.trace, self._need)
        try:
            self._route()
        except AnyServeError as error:
            self._record(outcome_of(error, at_replica=False), error.message)
            raise
        ways = self._ways
        ways.intake.begin(self)
        if self.request.deadline != math.inf:
            self._deadline = ways.deadlines.add(self.request.deadline, self._expire)

    def cancel(self, error: AnyServeError | None = None) -> None:
        """Nobody wants the answers any more; error: what the client has read in one of them."""
        if not self._over:
            self._stop()
            outcome = Outcome.CANCELLED if error is None else Outcome.FAILED
            self._finish(outcome, "cancelled" if error is None else error.message)

    def hold(self) -> None:
        """Take no more answers, so that the replica has to wait."""
        self._held = True
        if self._call is not None:
            self._call.hold()

    def resume(self) -> None:
        """Go on with the answers."""
        self._held = False
        if self._call is not None:
            self._call.resume()

    def abort(self, error: Cancelled) -> None:
        """See `OnItsWay`."""
        if not self._over:
            self._stop()
            self._finish(Outcome.CANCELLED, error.message)
            self._client.on_end(error)

    # What the replica says.

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """See `Answers`."""
        kept = self._kept
        if not self._answered:
            self._answered = True
            if kept is None:
                self.request.body = b""  # it goes nowhere else any more
            if self._spans is not None:
                self._spans.answered()
        if kept is not None:
            messages = kept.take(messages)
            if not messages:
                return
        if self._passage is not None:
            self._passage.answered(len(messages), now())
        self._client.on_messages(messages)

    def on_end(self, error: AnyServeError | None, metadata: Metadata) -> None:
        """See `Answers`."""
        if isinstance(error, Unavailable):
            link = self._ways.links.get(self.replica)
            if link is not None:
                link.last_error = error.message
        kept, word = self._kept, metadata.get(HANDBACK)
        if kept is not None and error is None:
            error = kept.failure
        if error is None:
            self._end(None)
        elif isinstance(word, bytes) and not self._answered:
            self._handed_back(word)
        elif isinstance(error, NotTaken) and not self._answered:
            self._ways.retried += 1
            self._go_on(error.message)
        elif isinstance(error, Unavailable) and self._offer.resumable:
            self._broken(error)
        elif self._is_resumed and isinstance(error, InvalidArgument | Unimplemented):
            self._end(self._failed_twice(error))  # what is wrong was not its client's word
        else:
            self._end(error)

    # Its way.

    def _route(self) -> None:
        """Send it to the best replica there is; raises why there is none."""
        request, ways = self.request, self._ways
        time = now()
        if time >= request.deadline:
            raise DeadlineExceeded("the deadline passed before the request was sent to a replica")
        hints = Hints(
            request.deadline - time,
            request.session,
            request.blocks,
            self._excluded,
            request.permit.delegations,
        )
        route = traces.begin_part("route", request.trace)
        try:
            chosen = choose(ways, self._need, hints, self._excluded, time, self._is_resumed)
        finally:
            if route is not None:
                route.close()
        if isinstance(chosen, NoRoute):
            if self._last_resort:
                self._excluded.pop(self._last_resort, None)
                self._last_resort = ""
                self._route()
                return
            if self._waits(chosen, time):
                return
            raise lost(ways, chosen, request.permit.spent, self._is_resumed)
        if self._wait is not None:
            self._wait.end()
        decision = chosen
        self.replica = decision.replica
        if self._passage is not None:
            self._passage.sent(decision.capability.name)
        self._sent = ways.router.sent(self._need, hints, decision, time)
        self._send(decision)

    def _waits(self, none: NoRoute, time: float) -> bool:
        """Whether it waits for a replica to load what is needed."""
        ways = self._ways
        if self.waiting:
            return none.promising
        if none.loadable is None or not is_worth_waiting(ways, none):
            return False
        if self._wait is None:
            self._wait = LoadWait(ways)
        self._wait.begin(self, self._need, none)
        if self.request.deadline == math.inf:
            self._wait.bound(time, self._end)
        self._excluded.clear()  # what replicas lacked before the wait they may have after it
        self.decoupled = answers_any_number(ways, none.loadable)
        return True

    def retry(self) -> None:
        """The fleet is different, and it waits: see `Waiting`."""
        try:
            self._route()
        except AnyServeError as error:
            self._end(error)

    def _send(self, decision: Decision) -> None:
        request, ways = self.request, self._ways
        self._offer = ways.offer_of(decision)
        self.decoupled = self._offer.decoupled
        if not self._is_resumed:
            if self._kept is not None:
                self._kept.drop()
            self._kept = kept_of(request, self._offer, ways.room)
        delegations = request.permit.delegations
        trace = () if self._spans is None else self._spans.send(decision, delegations)
        message = (request.body,) if self._kept is None else (request.body, self._kept.behind)
        need = self._need if delegations else None
        if decision.prefill is not None:
            message = (*message, rendezvous(decision.prefill))
            need = half_need(decision)
            self._prefill = PrefillHalf(ways, request, decision.prefill, self._prefill_ended)
            self._prefill.start(message, trace)
        self._call = ReplicaCall(ways, request, decision, self, held=self._held)
        self._call.start(message, trace, need)

    def _prefill_ended(self, error: AnyServeError | None, metadata: Metadata) -> None:
        """The prefill half has ended. The pair fails with it until the decode half has answered,
        which then has all that it needs of it."""
        half, self._prefill = self._prefill, None
        assert half is not None
        assert self._sent is not None
        if error is not None and not self._answered:
            self._prefill = half
            self._stop()
            self.replica = half.replica
            self.on_end(error, metadata)
        elif self._sent.prefill is not None:
            self._ways.router.ended(self._sent.prefill, now(), served=error is None)

    @property
    def _is_resumed(self) -> bool:
        return self._kept is not None and self._kept.resumed

    def _broken(self, error: Unavailable) -> None:
        """Its replica is lost, or can't go on with it: go on elsewhere, which is done once."""
        kept, permit = self._kept, self.request.permit
        if permit.spent is not None:
            error = self._failed_twice(error)
        if kept is None or permit.spent is not None:
            self._end(error)
            return
        is_there = kept.failure is error
        try:
            need = kept.go_on(self._need, self._offer)
        except AnyServeError as why:
            self._end(Unavailable(f"{error.message}; {why.message}"))
            return
        if need is None:
            self._end(None)
            return
        self._need = need
        permit.consume(Handback(self.replica, need, error.message))
        if is_there:
            self._last_resort = self.replica  # it may have another worker
        self._answered = False
        self._ways.resumed += 1
        self._go_on(error.message)

    def _failed_twice(self, error: AnyServeError) -> Unavailable:
        """Why it does not go on any more, with what the first replica has said."""
        first = self.request.permit.spent
        assert first is not None
        return Unavailable(f"{first.replica}: {first.reason}; then {self.replica}: {error.message}")

    def _handed_back(self, word: bytes) -> None:
        ways, permit = self._ways, self.request.permit
        link = ways.links.get(self.replica)
        if link is not None:
            link.delegations += 1
        try:
            handback = handback_of(self.replica, decode(word, pb.Handback), self._need)
            if self._is_resumed:
                raise self._failed_twice(Unavailable(handback.reason))
            permit.consume(handback)
        except AnyServeError as error:
            self._end(error)
            return
        ways.delegated += 1
        if self._prefill is None:  # a half says no more than that it is one
            self._need = narrowed(self._need, handback)
        self._go_on(handback.reason)

    def _go_on(self, reason: str) -> None:
        """Send it to another replica, since the one it was at does not serve it."""
        self._close(reason)
        self._excluded[self.replica] = reason
        self._attempts += 1
        if self._attempts >= MOST_ATTEMPTS:
            self._end(Unavailable(f"{self._attempts} replicas did not take it; the last: {reason}"))
            return
        try:
            self._route()
        except AnyServeError as error:
            self._end(error)

    # Its end.

    def _expire(self) -> None:
        self._stop()
        what = f"{self._need} was loaded" if self.waiting else "the request was answered"
        self._end(DeadlineExceeded(f"the deadline passed before {what}"))

    def _stop(self) -> None:
        """Have its replica give it up."""
        if self._call is not None:
            self._call.cancel()

    def _end(self, error: AnyServeError | None) -> None:
        outcome = outcome_of(error, at_replica=self._call is not None and self._call.begun)
        self._finish(outcome, None if error is None else error.message)
        self._client.on_end(error)

    def _record(self, outcome: Outcome, failure: str | None) -> None:
        if self._spans is not None:
            self._spans.end(outcome, failure)
        if self._passage is not None:
            self._passage.ended(outcome, now())

    def _finish(self, outcome: Outcome, failure: str | None) -> None:
        """It is over; failure: why it was not served."""
        self._over = True
        self._record(outcome, failure)
        if self._wait is not None:
            self._wait.end()
        self._close(failure)
        if self._kept is not None:
            self._kept.drop()
        if self._deadline is not None:
            self._ways.deadlines.drop(self._deadline)
        self._ways.intake.finish(self)

    def _close(self, failure: str | None) -> None:
        """It is no longer at the replica it was at; failure: why that has not served it."""
        self._call = None
        if self._prefill is not None:
            self._prefill.cancel()
            self._prefill = None
        if self._spans is not None:
            self._spans.leave(failure)
        if self._sent is not None:
            self._ways.router.ended(self._sent, now(), served=failure is None)
            self._sent = None
