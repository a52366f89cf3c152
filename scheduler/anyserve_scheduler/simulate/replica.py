"""A replica in simulation: the product's dispatcher, its way back to the scheduler, and a worker.

What its processes do is timed by the simulation; what they decide is decided by the product.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import attrs

from anyserve.errors import AnyServeError, Internal, Unavailable
from anyserve.offers import Offer
from anyserve.replica import exchange
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Reply
from anyserve.replica.execution import Execution
from anyserve.replica.handback import Handback, request_need
from anyserve.replica.inference import scan
from anyserve.replica.pool import State
from anyserve.replica.reports import Standing, standing
from anyserve.replica.scheduler_link import SchedulerLink
from anyserve.replica.unary import hand_back
from anyserve.transport.callback import UnaryCall
from anyserve.transport.outgoing import Answers
from anyserve.transport.trio_client import Channel
from anyserve.transport.wire import NotTaken
from anyserve_scheduler.demand import Action, Verb
from anyserve_scheduler.simulate.attachment import Attachment, Front
from anyserve_scheduler.simulate.ledger import Ledger
from anyserve_scheduler.simulate.loop import Alarm, Loop
from anyserve_scheduler.simulate.network import SCHEDULER, Call, Network
from anyserve_scheduler.simulate.scenario import OfferSpec
from anyserve_scheduler.simulate.worker import SimulatedWorker


@attrs.define(eq=False)
class _ToScheduler:
    """What handing back needs of a `Channel`."""

    process: Process

    def call(
        self,
        path: str,
        message: Sequence[bytes],
        answers: Answers,
        *,
        deadline: float = math.inf,
        metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> Call:
        """Send it to the scheduler."""
        return self.process.call_scheduler(b"".join(message), answers, deadline, metadata)


class Process:
    """One process of a replica, from its start to its crash."""

    def __init__(self, replica: Replica, instance: bytes) -> None:
        self.replica = replica
        self.calls: set[Call] = set()
        """Those that it serves."""
        self.relays: set[Call] = set()
        """Those that it has made, to the scheduler."""
        self.dispatcher = Dispatcher()
        self.worker = SimulatedWorker(
            replica.id, replica.offers, replica.loop, replica.ledger, self.act
        )
        token = hashlib.sha256(instance).digest()
        self.attachment = Attachment(
            replica.id,
            instance,
            token,
            self.standing,
            self.act,
            replica.network,
            replica.front,
        )
        # It is not run: the attachment does that, and keeps what others read there.
        self._link = SchedulerLink(replica.id, replica.id, self.standing, _not_opened)
        self._link.token = token
        self._channel = cast(Channel, _ToScheduler(self))
        self._handback = Handback(self._current_link, self.dispatcher.deadlines)
        self.alarm = Alarm(replica.loop, self._expire)
        for name, spec in replica.offers.items():
            offer = Offer(spec.capability, concurrency=spec.slots, queue=spec.queue)
            self.dispatcher.declare(offer).on_demand = spec.on_demand
            if not spec.on_demand:
                self._loaded(name)

    def standing(self) -> Standing:
        """What it reports."""
        return standing(self.dispatcher.pools, draining=False, now=self.replica.loop.now)

    def load(self, name: str) -> None:
        """Have a capability in a while."""
        if self.dispatcher.pool(name).state is State.READY:
            return
        self.dispatcher.set_state(name, State.LOADING, "it is loading")
        self.attachment.changed()
        loop, seconds = self.replica.loop, self.replica.offers[name].load_time
        loop.after(seconds, self.act, lambda: self._loaded(name))

    def unload(self, name: str) -> None:
        """Have it no more; what waits for it is handed back."""
        self.dispatcher.set_state(name, State.UNAVAILABLE, "it was unloaded")
        self.attachment.changed()
        self.alarm.check()

    def _loaded(self, name: str) -> None:
        pool = self.dispatcher.pool(name)
        if not pool.seats:
            self.dispatcher.worker_up(self.worker, [pool.offer])
        self.dispatcher.set_state(name, State.READY)
        self.attachment.changed()

    def act(self, do: Callable[[], None]) -> None:
        """Do something in this process: now, when it goes on, or never if it is no more."""
        if self.replica.process is self:
            self.replica.receive(self._act, do)

    def _act(self, do: Callable[[], None]) -> None:
        if self.replica.process is self:
            do()
            self.alarm.check()

    def call_scheduler(
        self,
        body: bytes,
        answers: Answers,
        deadline: float,
        metadata: Sequence[tuple[str, str | bytes]],
    ) -> Call:
        """Make a call, which ends with this process."""
        replica = self.replica
        budget = deadline - replica.loop.now
        call = Call(replica.network, replica.id, SCHEDULER, body, answers, budget, metadata)
        self.relays.add(call)
        call.on_closed = lambda: self.relays.discard(call)
        replica.network.send(replica.id, SCHEDULER, replica.front.on_delegated, call)
        return call

    def serve(self, call: Call) -> None:
        """A request has come, from a client or from the scheduler."""
        head = scan(call.body)
        request = self.replica.ledger.open.get(int(head.id))
        if request is not None:
            self.replica.ledger.on_replica(request, self.replica.id)
        self.calls.add(call)
        call.on_left = lambda: self.calls.discard(call)
        call.deadline = self.replica.loop.now + call.budget

        def failed(error: AnyServeError) -> None:
            if not error.elsewhere:
                call.fail(error)
                return
            moves = self._handback.trusts(call.metadata) or self.attachment.attached
            if request is not None and moves:
                self.replica.ledger.was_handed_back(request, self.replica.id)
            hand_back(self._handback, cast(UnaryCall, call), head, error)

        need = self._handback.need(call.metadata) or request_need(head, call.metadata)
        work = exchange.Call(need, head.head, request_id=head.id, deadline=call.deadline)
        serving = _Serving(call, failed)
        execution = Execution(self.dispatcher, work, serving)
        call.on_gone = execution.cancel
        try:
            execution.start()
        except AnyServeError as error:
            failed(error)
        self.alarm.check()

    def _current_link(self) -> SchedulerLink:
        link = self._link
        link.epoch = self.attachment.epoch
        link.channel = self._channel if self.attachment.attached else None
        return link

    def _expire(self) -> float:
        if self.replica.process is not self:
            return math.inf
        if self.replica.hung:
            self.replica.receive(self._act, lambda: None)  # as soon as it goes on
            return math.inf
        return self.dispatcher.deadlines.expire(self.replica.loop.now)


def _not_opened() -> AbstractAsyncContextManager[Channel]:
    raise AssertionError("a link that is not run opens no channel")


class _Serving:
    """The consumer of one request that is answered once."""

    def __init__(self, call: Call, failed: Callable[[AnyServeError], None]) -> None:
        self._call = call
        self._failed = failed
        self._reply: Reply | None = None

    def on_reply(self, reply: Reply) -> None:
        """See `Consumer`."""
        self._reply = reply

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Consumer`."""
        if error is not None:
            self._failed(error)
        elif self._reply is None:
            self._failed(Internal("no answer"))
        else:
            self._call.answer(self._reply.pieces, self._reply.release)


@attrs.define(eq=False)
class Replica:
    """A replica's place in the fleet, whose processes come and go."""

    id: str
    offers: dict[str, OfferSpec]
    """By capability name."""
    network: Network
    ledger: Ledger
    front: Front
    process: Process | None = None
    """None while it is down."""
    hung: bool = False
    """It does nothing, and what comes waits."""
    _backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = attrs.field(factory=list)
    _started: int = 0

    @property
    def loop(self) -> Loop:
        """That of the simulation."""
        return self.network.loop

    # What the network does.

    def receive(self, handle: Callable[..., None], *values: Any) -> None:
        """See `Node`."""
        if self.hung:
            self._backlog.append((handle, values))
        else:
            handle(*values)

    def call(
        self,
        source: str,
        body: bytes,
        answers: Answers,
        deadline: float,
        metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> Call:
        """Send a request here, over a connection to the process that is there now."""
        budget = deadline - self.loop.now
        call = Call(self.network, source, self.id, body, answers, budget, metadata)
        self.network.send(source, self.id, self._on_call, call, self.process)
        return call

    def _on_call(self, call: Call, connected: Process | None) -> None:
        if call.answered:
            return  # it was given up on its way
        process = self.process
        if process is not None and connected in (None, process):
            process.serve(call)
        elif connected is None:
            call.fail(NotTaken("the connection was refused"))
        else:
            call.fail(Unavailable("the connection was lost"))

    def on_action(self, action: Action) -> None:
        """The scheduler asks for a capability, or for one to go."""
        process = self.process
        if process is not None and process.attachment.epoch == action.epoch:
            act = process.load if action.verb is Verb.LOAD else process.unload
            act(action.capability.name)

    # What happens to it.

    def start(self) -> None:
        """Its process starts, and registers."""
        self._started += 1
        instance = hashlib.sha256(f"{self.id}/{self._started}".encode()).digest()[:16]
        self.process = Process(self, instance)
        self.process.attachment.start()

    def crash(self) -> None:
        """Its process is killed; the kernel closes its connections."""
        process, self.process = self.process, None
        if process is None:
            return
        process.attachment.end()
        for call in sorted(process.calls, key=_number):
            call.fail(Unavailable("the connection was lost"))
        for relay in sorted(process.relays, key=_number):
            relay.cancel()
        self.go_on()

    def hang(self) -> None:
        """It stops as by SIGSTOP."""
        self.hung = True

    def go_on(self) -> None:
        """It goes on after that, with all that has come meanwhile."""
        self.hung = False
        backlog, self._backlog = self._backlog, []
        for handle, values in backlog:
            self.receive(handle, *values)

    def leaks(self) -> list[str]:
        """What is left in a replica that should be idle."""
        process = self.process
        if process is None:
            return ["is down after all faults"]
        dispatcher = process.dispatcher
        counts = {
            "requests in its dispatcher": dispatcher.in_flight,
            "deadlines": len(dispatcher.deadlines),
            "slots taken": sum(pool.running for pool in dispatcher.pools),
            "requests in its queues": sum(pool.waiting for pool in dispatcher.pools),
            "relays to the scheduler": len(process.relays),
        }
        return [f"has {count} {what}" for what, count in counts.items() if count]


def _number(call: Call) -> bytes:
    """Sorts calls the same in each run."""
    return call.body
