"""One request on its way through the front door: to a replica, and to another if it has to be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from anyserve_protos.anyserve import v1 as pb

from anyserve import traces
from anyserve.burst import now
from anyserve.capability import Capability
from anyserve.deadlines import Deadline
from anyserve.errors import (
    AnyServeError,
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from anyserve.needs import to_bytes
from anyserve.replica.handback import DELEGATIONS, HANDBACK, LINK_TOKEN, NEED
from anyserve.replica.statistics import Outcome
from anyserve.transport.outgoing import Caller, Ongoing
from anyserve.transport.rpc import Metadata, decode
from anyserve.transport.wire import NotTaken
from anyserve_scheduler.delegation import Handback
from anyserve_scheduler.fleet import OfferView, ReplicaView
from anyserve_scheduler.gateway.incoming import Incoming, handback_of, narrowed
from anyserve_scheduler.gateway.incoming import Metadata as Sending
from anyserve_scheduler.gateway.meter import Passage, outcome_of
from anyserve_scheduler.gateway.pairing import (
    PrefillHalf,
    can_meet,
    half_need,
    needs_partner,
    rendezvous,
)
from anyserve_scheduler.gateway.resuming import Kept, asking, of_same_model
from anyserve_scheduler.gateway.ways import Client, Ways
from anyserve_scheduler.links import Link
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
    _call: Ongoing | None = None
    _prefill: PrefillHalf | None = None
    """Where a pair serves it; `_call` is that of the decode half."""
    _sent: Sent | None = None
    _span: traces.Span | None = None
    _sending: traces.Span | None = None
    """Of the span: that it is at a replica."""
    _passage: Passage | None = None
    """What measures it, where somebody asks for that."""
    waiting = False
    """Whether it waits for a capability to be loaded."""
    _wait_by = math.inf
    """Until when it may, where it has no deadline."""
    _load_deadline: Deadline | None = None
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

    def start(self) -> None:
        """Send it; raises why it can't go anywhere, and is over then."""
        request, meter = self.request, self._ways.meter
        if meter is not None:
            self._passage = Passage(meter, self.arrived)
        if request.trace is not None:
            self._span = traces.begin("front door", request.trace, need=str(self._need))
        try:
            self._route()
        except AnyServeError as error:
            self._count(outcome_of(error, at_replica=False))
            if self._span is not None:
                self._span.close(error=error.message)
            raise
        ways = self._ways
        ways.intake.begin(self)
        if self.request.deadline != math.inf:
            self._deadline = ways.deadlines.add(self.request.deadline, self._expire)

    def cancel(self, error: AnyServeError | None = None) -> None:
        """Nobody wants the answers any more; error: what the client has read in one of them."""
        if not self._over:
            self._stop()
            self._count(Outcome.CANCELLED if error is None else Outcome.FAILED)
            self._finish("cancelled" if error is None else error.message)

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
        """Whoever operates this wants it to end; its client hears `error`."""
        if not self._over:
            self._stop()
            self._count(Outcome.CANCELLED)
            self._finish(error.message)
            self._client.on_end(error)

    # What the replica says.

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """See `Answers`."""
        kept = self._kept
        if not self._answered:
            self._answered = True
            if kept is None:
                self.request.body = b""  # it goes nowhere else any more
            if self._sending is not None:
                self._sending.mark("first_answer_us")
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
            chosen = self._choose(hints, time)
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
            raise self._lost(chosen)
        self._stop_waiting()
        decision = chosen
        self.replica = decision.replica
        if self._passage is not None:
            self._passage.sent(decision.capability.name)
        if self._span is not None:
            self._span.args["capability"] = decision.capability.name
            self._span.args["replica"] = decision.replica
        self._sent = ways.router.sent(self._need, hints, decision, time)
        self._send(decision)

    def _choose(self, hints: Hints, time: float) -> Decision | NoRoute:
        """The best replica, or pair of them, whose links are up."""
        while True:
            self._ways.decisions += 1
            decision = self._ways.router.choose(self._need, hints, time)
            if isinstance(decision, NoRoute):
                return decision
            halves = [decision] if decision.prefill is None else [decision, decision.prefill]
            down = [half.replica for half in halves if self._link(half) is None]
            if down:
                self._excluded |= dict.fromkeys(down, "its link is not up yet")
            elif decision.prefill is not None and not can_meet(decision.prefill):
                self._excluded[decision.prefill.replica] = "it does not say where it is met"
            elif self._is_resumed and not self._offer_of(decision).resumable:
                self._excluded[decision.replica] = "it takes no texts that were begun elsewhere"
            else:
                return decision

    def _link(self, decision: Decision) -> Link | None:
        """That of the replica as it is meant, where it is up."""
        link = self._ways.links.get(decision.replica)
        return link if link is not None and link.epoch == decision.epoch else None

    def _offer_of(self, decision: Decision) -> OfferView:
        fleet = self._ways.registry.fleet()
        return fleet.replicas[decision.replica].offers[decision.capability.name]

    def _waits(self, none: NoRoute, time: float) -> bool:
        """Whether it waits for a replica to load what is needed.

        Until its deadline, or where it has none for `load_wait` in all.
        """
        ways, loadable = self._ways, none.loadable
        if self.waiting:
            return none.promising
        if loadable is not None:
            ways.unserved.note(loadable)
        if loadable is None or not none.promising or not ways.load_wait:
            return False
        if not ways.unserved.add(self._need, loadable, self):
            raise ResourceExhausted(f"{none.message}, and no more requests may wait for that")
        self.waiting = True
        self._excluded.clear()  # what replicas lacked before the wait they may have after it
        if self.request.deadline == math.inf:
            self._wait_by = min(self._wait_by, time + ways.load_wait)
            self._load_deadline = ways.deadlines.add(self._wait_by, self._not_loaded)
        views = ways.registry.fleet().loadable(loadable.name)
        offers = (view.offers.get(loadable.name) for view in views)
        self.decoupled = any(offer.decoupled for offer in offers if offer is not None)
        return True

    def retry(self) -> None:
        """The fleet is different, and it waits: see `Waiting`."""
        try:
            self._route()
        except AnyServeError as error:
            self._end(error)

    def _not_loaded(self) -> None:
        wait = self._ways.load_wait
        self._end(Unavailable(f"{self._need} was not loaded on any replica within {wait:g} s"))

    def _stop_waiting(self) -> None:
        if not self.waiting:
            return
        self.waiting = False
        self._ways.unserved.remove(self._need, self)
        if self._load_deadline is not None:
            self._ways.deadlines.drop(self._load_deadline)
            self._load_deadline = None

    def _send(self, decision: Decision) -> None:
        request, ways = self.request, self._ways
        view = ways.registry.fleet().replicas[decision.replica]
        self._offer = self._offer_of(decision)
        self.decoupled = self._offer.decoupled
        self._keep()
        delegations = request.permit.delegations
        trace: Sending = ()
        if request.trace is not None:
            sending = request.trace.child()
            trace = sending.headers
            self._sending = traces.begin(
                f"send to {view.id}",
                sending,
                replica=view.id,
                capability=str(decision.capability),
                delegations=delegations,
            )
        message = (request.body,) if self._kept is None else (request.body, self._kept.behind)
        need = self._need if delegations else None
        if decision.prefill is not None:
            message = (*message, rendezvous(decision.prefill))
            need = half_need(decision)
            self._prefill = PrefillHalf(ways, request, decision.prefill, self._prefill_ended)
            metadata = self._metadata(decision.prefill, trace, half_need(decision.prefill))
            self._prefill.start(message, metadata)
        metadata = self._metadata(decision, trace, need)
        channel = ways.channels.get(view)
        if channel is not None:
            self._begin(channel, message, metadata)
        else:
            ways.nursery.start_soon(self._open, view, message, metadata)

    def _metadata(self, decision: Decision, trace: Sending, need: Capability | None) -> Sending:
        """What goes along; need: where the request does not say it itself."""
        request, link = self.request, self._link(decision)
        assert link is not None
        return (
            *request.metadata,
            *trace,
            (LINK_TOKEN, link.token),
            (DELEGATIONS, str(request.permit.delegations)),
            *(() if need is None else ((NEED, to_bytes(need)),)),
        )

    def _begin(self, channel: Caller, message: Sequence[bytes], metadata: Sending) -> None:
        request = self.request
        self._call = channel.call(
            request.path, message, self, deadline=request.deadline, metadata=metadata
        )
        if self._held:
            self._call.hold()

    async def _open(self, view: ReplicaView, message: Sequence[bytes], metadata: Sending) -> None:
        """The same where there is no channel yet; waits a turn of the loop."""
        attempt = self._attempts
        try:
            channel = await self._ways.channels.open(view)
        except Unavailable as error:
            if not self._over and attempt == self._attempts:
                self._go_on(error.message)
            return
        if not self._over and attempt == self._attempts:
            self._begin(channel, message, metadata)

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

    def _keep(self) -> None:
        """Begin to keep what it is answered with, where it may be resumed."""
        if self._is_resumed:
            return
        if self._kept is not None:
            self._kept.drop()
            self._kept = None
        if self._offer.resumable and self.request.permit.spent is None:
            behind = asking(self.request)
            if behind is not None:
                self._kept = Kept(self.request, behind, self._ways.room)

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
            if not kept.prepare():
                self._end(None)
                return
            if kept.begun:
                self._need = of_same_model(self._need, self._offer)
        except AnyServeError as why:
            self._end(Unavailable(f"{error.message}; {why.message}"))
            return
        permit.consume(Handback(self.replica, self._need, error.message))
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

    def _lost(self, none: NoRoute) -> AnyServeError:
        """Why there is no replica for it, with what those said that it was at."""
        error = none.error()
        if isinstance(error, NotFound):
            error = self._ways.missing(error, now())
        kind = Unavailable if self._is_resumed else type(error)
        spent = self.request.permit.spent
        if spent is not None and spent.reason not in error.message:
            return kind(f"{error.message}; {spent.replica} said: {spent.reason}")
        return kind(error.message)

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
        self._count(outcome_of(error, at_replica=self._call is not None))
        self._finish(None if error is None else error.message)
        self._client.on_end(error)

    def _count(self, outcome: Outcome) -> None:
        if self._span is not None:
            self._span.args["outcome"] = outcome.value
        if self._passage is not None:
            self._passage.ended(outcome, now())

    def _finish(self, failure: str | None) -> None:
        """It is over; failure: why it was not served."""
        self._over = True
        self._stop_waiting()
        self._close(failure)
        if self._kept is not None:
            self._kept.drop()
        if self._span is not None:
            self._span.close(error=failure)
        if self._deadline is not None:
            self._ways.deadlines.drop(self._deadline)
        self._ways.intake.finish(self)

    def _close(self, failure: str | None) -> None:
        """It is no longer at the replica it was at; failure: why that has not served it."""
        self._call = None
        if self._prefill is not None:
            self._prefill.cancel()
            self._prefill = None
        if self._sending is not None:
            self._sending.close(error=failure)
        if self._sent is not None:
            self._ways.router.ended(self._sent, now(), served=failure is None)
            self._sent = None
