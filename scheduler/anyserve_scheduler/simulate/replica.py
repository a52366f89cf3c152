"""A replica's place in the simulated fleet, whose processes come and go."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from anyserve.errors import Unavailable
from anyserve.transport.outgoing import Answers
from anyserve.transport.wire import NotTaken
from anyserve_scheduler.demand import Action, Verb
from anyserve_scheduler.simulate.attachment import Registrar
from anyserve_scheduler.simulate.ledger import Ledger
from anyserve_scheduler.simulate.loop import Loop
from anyserve_scheduler.simulate.network import Call, Network
from anyserve_scheduler.simulate.process import Process
from anyserve_scheduler.simulate.scenario import OfferSpec


@attrs.define(eq=False)
class Replica:
    """A replica's place in the fleet, whose processes come and go."""

    id: str
    offers: dict[str, OfferSpec]
    """By capability name."""
    network: Network
    ledger: Ledger
    front: Registrar
    process: Process | None = None
    """None while it is down."""
    hung: bool = False
    """It does nothing, and what comes waits."""
    disturbed: float = 0.0
    """When its process last came, was told to end, or went on after a stop."""
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
        path: str,
        body: bytes,
        answers: Answers,
        deadline: float,
        metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> Call:
        """Send a request here, over a connection to the process that is there now."""
        budget = deadline - self.loop.now
        call = Call(self.network, source, self.id, path, body, answers, budget, metadata)
        self.network.send(source, self.id, self._on_call, call, self.process)
        return call

    def _on_call(self, call: Call, connected: Process | None) -> None:
        if call.answered:
            return  # it was given up on its way
        process = self.process
        if process is not None and connected in (None, process):
            process.serve(call)
            return
        self.ledger.lose(call.body)
        if connected is None:
            call.fail(NotTaken("the connection was refused"))
        elif connected.left:
            call.fail(NotTaken("the connection was closed before the request came"))
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
        self.disturbed = self.loop.now
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
            self.ledger.lose(call.body)
            call.fail(Unavailable("the connection was lost"))
        for relay in sorted(process.relays, key=_number):
            relay.cancel()
        self.go_on()

    def drain(self) -> None:
        """Its process is told to end."""
        if self.process is not None:
            self.disturbed = self.loop.now
            self.process.told = True
            self.process.act(self.process.drain)

    def has_left(self, process: Process) -> None:
        """A process that drained has nothing left to do, and ends."""
        self.process = None
        idle = not process.dispatcher.in_flight and not process.relays
        self.ledger.check(idle, f"{self.id} has left with requests")
        process.attachment.leave()
        if process.again:
            self.start()

    def bring_up(self) -> None:
        """Its process starts again, as soon as one that drains has left."""
        if self.process is None:
            self.start()
        elif self.process.told:
            self.process.again = True

    def hang(self) -> None:
        """It stops as by SIGSTOP."""
        self.hung = True

    def go_on(self) -> None:
        """It goes on after that, with all that has come meanwhile."""
        self.hung = False
        self.disturbed = self.loop.now
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
