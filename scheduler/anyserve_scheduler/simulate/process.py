"""One process of a simulated replica: the product's dispatcher and its way back to the scheduler.

What it does is timed by the simulation; what it decides is decided by the product.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import attrs

from anyserve.errors import AnyServeError
from anyserve.offers import Offer
from anyserve.replica import exchange
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.execution import Execution
from anyserve.replica.handback import MODEL_INFER, Handback, request_need
from anyserve.replica.inference import scan
from anyserve.replica.pool import State
from anyserve.replica.reports import Standing, standing
from anyserve.replica.unary import hand_back
from anyserve.transport.outgoing import Answers
from anyserve.transport.rpc import Buffer
from anyserve_scheduler.simulate.attachment import Attachment
from anyserve_scheduler.simulate.loop import Alarm
from anyserve_scheduler.simulate.network import SCHEDULER, Call
from anyserve_scheduler.simulate.serving import Stream, Unary, hand_stream_back
from anyserve_scheduler.simulate.worker import SimulatedWorker

if TYPE_CHECKING:
    from anyserve_scheduler.simulate.replica import Replica


@attrs.define(eq=False)
class _Link:
    """The scheduler link, as handing back looks at it."""

    process: Process
    token: bytes
    handed_back: int = 0
    relayed: int = 0

    @property
    def replica_id(self) -> str:
        return self.process.replica.id

    @property
    def epoch(self) -> int:
        return self.process.attachment.epoch

    @property
    def channel(self) -> _Link | None:
        """To the scheduler: this."""
        return self if self.process.attachment.attached else None

    def call(
        self,
        path: str,
        message: Sequence[Buffer],
        answers: Answers,
        *,
        deadline: float = math.inf,
        metadata: tuple[tuple[str, str | bytes], ...] = (),
    ) -> Call:
        """See `Caller`."""
        return self.process.call_scheduler(path, b"".join(message), answers, deadline, metadata)


class Process:
    """One process of a replica, from its start to its crash."""

    def __init__(self, replica: Replica, instance: bytes) -> None:
        self.replica = replica
        self.calls: set[Call] = set()
        """Those that it serves."""
        self.relays: set[Call] = set()
        """Those that it has made, to the scheduler."""
        self.told = False
        """It has a signal to drain, which it may not have seen yet."""
        self.draining = False
        """It takes no more requests, and leaves when it has none."""
        self.left = False
        """It has done so."""
        self.again = False
        """Another process starts then."""
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
        link = _Link(self, token)
        self._handback = Handback(lambda: link, self.dispatcher.deadlines)
        self.alarm = Alarm(replica.loop, self._expire)
        for name, spec in replica.offers.items():
            offer = Offer(
                spec.capability,
                concurrency=spec.slots,
                queue=spec.queue,
                resumable=spec.resumable,
            )
            self.dispatcher.declare(offer).on_demand = spec.on_demand
            if not spec.on_demand:
                self._loaded(name)

    def standing(self) -> Standing:
        """What it reports."""
        return standing(self.dispatcher.pools, self.draining, self.replica.loop.now)

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

    def drain(self) -> None:
        """Finish what there is, and leave."""
        if not self.draining:
            self.draining = True
            self.dispatcher.stop_accepting()
            self.attachment.changed()
            self._leave_if_idle()

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
        path: str,
        body: bytes,
        answers: Answers,
        deadline: float,
        metadata: Sequence[tuple[str, str | bytes]],
    ) -> Call:
        """Make a call, which ends with this process."""
        replica = self.replica
        budget = deadline - replica.loop.now
        call = Call(replica.network, replica.id, SCHEDULER, path, body, answers, budget, metadata)
        self.relays.add(call)
        call.on_closed = partial(self.relays.discard, call)
        replica.front.connect(call)
        return call

    def serve(self, call: Call) -> None:
        """A request has come, from a client or from the scheduler."""
        head = scan(call.body)
        request = self.replica.ledger.open.get(int(head.id))
        if request is not None:
            self.replica.ledger.on_replica(request, self.replica.id)
        self.calls.add(call)
        call.on_left = partial(self._finished, call)
        call.deadline = self.replica.loop.now + call.budget

        def failed(error: AnyServeError) -> None:
            if not error.elsewhere:
                call.fail(error)
                return
            moves = self._handback.trusts(call.metadata) or self.attachment.attached
            if request is not None:
                request.refused = True
                if moves:
                    self.replica.ledger.was_handed_back(request, self.replica.id)
            if call.path == MODEL_INFER:
                hand_back(self._handback, call, head, error)
            else:
                hand_stream_back(self._handback, call, head, error)

        need = self._handback.need(call.metadata) or request_need(head, call.metadata)
        work = exchange.Call(need, head.head, request_id=head.id, deadline=call.deadline)
        serving = Unary(call, failed) if call.path == MODEL_INFER else Stream(call, failed)
        execution = Execution(self.dispatcher, work, serving)
        call.on_gone = execution.cancel
        try:
            execution.start()
        except AnyServeError as error:
            failed(error)
        self.alarm.check()

    def _finished(self, call: Call) -> None:
        self.calls.discard(call)
        if self.draining:
            self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        if not self.calls and self.replica.process is self:
            self.left = True
            self.replica.has_left(self)

    def _expire(self) -> float:
        if self.replica.process is not self:
            return math.inf
        if self.replica.hung:
            self.replica.receive(self._act, lambda: None)  # as soon as it goes on
            return math.inf
        return self.dispatcher.deadlines.expire(self.replica.loop.now)
