"""The scheduler's place in the simulated fleet, whose processes come and go."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import attrs
from anyserve_protos.anyserve import v1 as pb

from anyserve.errors import AnyServeError, Unavailable
from anyserve.transport.wire import NotTaken
from anyserve_scheduler.demand import Demand, DemandTerms, Verb
from anyserve_scheduler.gateway.ways import Client
from anyserve_scheduler.registration import LeaseTerms
from anyserve_scheduler.routing import Policy
from anyserve_scheduler.simulate.attachment import Attachment
from anyserve_scheduler.simulate.front import Asked, Front
from anyserve_scheduler.simulate.ledger import Ledger
from anyserve_scheduler.simulate.loop import Loop
from anyserve_scheduler.simulate.network import SCHEDULER, Call, Network
from anyserve_scheduler.simulate.replica import Replica

_EPOCHS = 1_000_000
"""Between the first of one process and that of the next."""


@attrs.define(eq=False)
class Scheduler:
    """Clients, replicas and faults know this, and it the process that there is."""

    network: Network
    policy: Policy
    terms: LeaseTerms
    demand: DemandTerms
    on_demand: bool
    """Whether it asks replicas for what is wanted."""
    rng: Random
    """What routing draws from."""
    replicas: dict[str, Replica] = attrs.field(factory=dict)
    front: Front | None = None
    """None while it is down."""
    actions: Counter[Verb] = attrs.field(factory=Counter)
    """What replicas were asked for."""
    _retried: int = 0
    """Those of processes that are gone."""
    _resumed: int = 0
    """As well."""
    costs: array[float] = attrs.field(factory=lambda: array("d"))
    """Seconds of this machine's time, of each decision."""
    _started: int = 0

    @property
    def loop(self) -> Loop:
        """That of the simulation."""
        return self.network.loop

    @property
    def ledger(self) -> Ledger:
        """That of the run."""
        return self.network.ledger

    @property
    def retried(self) -> int:
        """Times that a request went on since a replica had not taken it."""
        return self._retried + (0 if self.front is None else self.front.ways.retried)

    @property
    def resumed(self) -> int:
        """Requests that went on since a replica was lost with them."""
        return self._resumed + (0 if self.front is None else self.front.ways.resumed)

    def receive(self, handle: Callable[..., None], *values: Any) -> None:
        """See `Node`."""
        handle(*values)

    # Requests.

    def serve(
        self,
        path: str,
        body: bytes,
        deadline: float,
        blocks: tuple[bytes, ...],
        session: str | None,
        client: Client,
    ) -> Asked:
        """A client's request has come; raises why it can't be passed on."""
        if self.front is None:
            self.ledger.lose(body)
            raise NotTaken("the connection was refused")
        return self.front.serve(path, body, (), deadline, client, blocks, session)

    def connect(self, call: Call) -> None:
        """See `Registrar`."""
        self.network.send(call.source, SCHEDULER, self._on_call, call, self.front)

    def _on_call(self, call: Call, connected: Front | None) -> None:
        if call.answered:
            return
        front = self.front
        if front is None or connected not in (None, front):
            self.ledger.lose(call.body)
            if connected is None:
                call.fail(NotTaken("the connection was refused"))
            else:
                call.fail(Unavailable("the connection was lost"))
            return
        deadline = self.loop.now + call.budget
        try:
            asked = front.serve(
                call.path, call.body, tuple(call.metadata), deadline, _Delegated(call)
            )
        except AnyServeError as error:
            call.fail(error)
            return
        call.on_gone = asked.cancel

    # Replicas: see `Registrar`.

    def on_register(self, attachment: Attachment, stream: int, message: pb.Register) -> None:
        if self.front is not None:
            self.front.on_register(attachment, stream, message)
            return
        refused = Unavailable("the connection was refused")
        self.network.send(SCHEDULER, attachment.replica, attachment.on_refused, stream, refused)

    def on_report(self, attachment: Attachment, stream: int, message: pb.Report) -> None:
        if self.front is not None:
            self.front.on_report(attachment, stream, message)

    def on_lost(self, attachment: Attachment, stream: int) -> None:
        if self.front is not None:
            self.front.on_lost(attachment, stream)

    def on_leave(self, attachment: Attachment) -> None:
        if self.front is not None:
            self.front.on_leave(attachment)

    # What happens to it.

    def start(self) -> None:
        """Its process starts, and knows nobody."""
        self._started += 1
        first = 1 + (self._started - 1) * _EPOCHS
        front = self.front = Front(self, self.rng, Demand(self.demand), self.costs, first)
        if self.on_demand:
            front.keep_demand()
        if self._started > 1:
            way = self.network.longest
            self.loop.after(self.terms.lease + 4 * way, self._check_rebuilt, front, self.loop.now)

    def crash(self) -> None:
        """Its process is killed."""
        front, self.front = self.front, None
        if front is None:
            return
        front.kill()
        self._retried += front.ways.retried
        self._resumed += front.ways.resumed
        for what, count in front.requests().items():
            self.ledger.check(not count, f"the scheduler was killed and left {count} {what}")

    def _check_rebuilt(self, front: Front, since: float) -> None:
        """Within a lease it has heard of all that had one, and that nothing has happened to."""
        if self.front is not front:
            return
        for id, replica in self.replicas.items():
            steady = (
                replica.process is not None
                and replica.process.attachment.lease < math.inf
                and not replica.hung
                and replica.disturbed < since
                and self.network.parted.get(id, 0.0) < since
            )
            self.ledger.check(
                id in front.heard or not steady,
                f"{id} was not heard in the first lease of a scheduler",
            )


@attrs.define(eq=False)
class _Delegated:
    """The client of a request that a replica has handed over; see `Client`."""

    _call: Call

    def on_messages(self, messages: Sequence[bytes]) -> None:
        self._call.say(messages)

    def on_end(self, error: AnyServeError | None) -> None:
        if error is not None:
            self._call.fail(error)
        else:
            self._call.end()
