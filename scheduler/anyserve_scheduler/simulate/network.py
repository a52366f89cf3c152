"""Simulated links: messages that take time, links that break for a while, calls over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Protocol

import attrs
from multidict import MultiDict

from anyserve.burst import nothing
from anyserve.errors import AnyServeError
from anyserve.transport.outgoing import Answers
from anyserve.transport.rpc import Buffer, MetadataLike
from anyserve_scheduler.simulate.ledger import Ledger
from anyserve_scheduler.simulate.loop import Loop

SCHEDULER = "the scheduler"
CLIENTS = "clients"
"""Whoever is neither this nor the scheduler is a replica."""


class Node(Protocol):
    """Whoever takes messages."""

    def receive(self, handle: Callable[..., None], *values: Any) -> None:
        """A message has come: call `handle`, now or as soon as the process runs again."""
        ...


@attrs.define(eq=False)
class Network:
    """All links. Messages of one link may overtake each other by the jitter."""

    loop: Loop
    ledger: Ledger
    latency: float
    jitter: float
    rng: Random
    nodes: dict[str, Node] = attrs.field(factory=dict)
    parted: dict[str, float] = attrs.field(factory=dict)
    """Until when a replica's link to the scheduler is down; what is sent comes after that."""

    def send(
        self, source: str, target: str, handle: Callable[..., None], *values: Any, late: float = 0
    ) -> None:
        """Let `target` call `handle`, `late` seconds later than it has to be."""
        ends = {source, target}
        self.ledger.check(
            SCHEDULER in ends or CLIENTS in ends, f"{source} sent a message to {target}"
        )
        sent = self.loop.now
        if SCHEDULER in ends:
            sent = max(sent, self.parted.get(source, 0.0), self.parted.get(target, 0.0))
        delay = self.latency * (1 + self.jitter * self.rng.random())
        self.loop.at(sent + delay + late, self.nodes[target].receive, handle, *values)


@attrs.define(eq=False)
class Call:
    """One call of one message, with one answer, as both of its ends see it.

    To the caller it is what `Channel.call` gives, to the server what `UnaryCall` is.
    """

    network: Network
    source: str
    target: str
    body: bytes
    answers: Answers
    budget: float
    """Seconds until its deadline, when it was sent."""
    metadata: Sequence[tuple[str, str | bytes]]
    on_closed: Callable[[], None] = nothing
    """Called at the caller when the call is over."""
    on_gone: Callable[[], None] = nothing
    """Called at the server when the caller does not want the answer."""
    on_left: Callable[[], None] = nothing
    """Called at the server when it has nothing to do with the call any more."""
    over: bool = False
    """For the caller."""
    answered: bool = False
    """By the server, or given up."""
    deadline: float = math.inf
    """At the server: its budget counts from the call's arrival."""

    # For the caller.

    def cancel(self) -> None:
        """See `Outgoing`."""
        if not self.over:
            self.over = True
            self.on_closed()
            self.network.send(self.source, self.target, self._gone)

    def hold(self) -> None:
        """There is one answer only, and no stream to hold."""

    def resume(self) -> None:
        """As `hold`."""

    # For the server.

    def answer(self, pieces: Sequence[Buffer], release: Callable[[], None] = nothing) -> None:
        """End it with an answer."""
        message = b"".join(pieces)
        release()
        self._reply([message], None, {})

    def fail(self, error: AnyServeError, metadata: MetadataLike | None = None) -> None:
        """End it with an error."""
        self._reply([], error, metadata or {})

    def _reply(
        self, messages: list[bytes], error: AnyServeError | None, metadata: MetadataLike
    ) -> None:
        if not self.answered:
            self.answered = True
            self.on_left()
            self.network.send(self.target, self.source, self._ended, messages, error, metadata)

    def _gone(self) -> None:
        if not self.answered:
            self.answered = True
            self.on_left()
            self.on_gone()

    def _ended(
        self, messages: list[bytes], error: AnyServeError | None, metadata: MetadataLike
    ) -> None:
        if self.over:
            return
        self.over = True
        self.on_closed()
        if messages:
            self.answers.on_messages(messages)
        self.answers.on_end(error, MultiDict(metadata))
