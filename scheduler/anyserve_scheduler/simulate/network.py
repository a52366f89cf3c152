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

    @property
    def longest(self) -> float:
        """Seconds that a message takes at most, where nothing holds it up."""
        return self.latency * (1 + self.jitter)

    def send(
        self,
        source: str,
        target: str,
        handle: Callable[..., None],
        *values: Any,
        late: float = 0.0,
        after: float = 0.0,
    ) -> float:
        """Let `target` call `handle`; when that will be.

        late: so many seconds later than it has to be. after: not before this time.
        """
        ends = {source, target}
        self.ledger.check(
            SCHEDULER in ends or CLIENTS in ends, f"{source} sent a message to {target}"
        )
        sent = self.loop.now
        if SCHEDULER in ends:
            sent = max(sent, self.parted.get(source, 0.0), self.parted.get(target, 0.0))
        delay = self.latency * (1 + self.jitter * self.rng.random())
        arrives = max(sent + delay + late, after)
        self.loop.at(arrives, self.nodes[target].receive, handle, *values)
        return arrives


@attrs.define(eq=False)
class Call:
    """One call of one message, as both of its ends see it; what it is answered with stays in order.

    To the caller it is what `Caller.call` gives, to the server what `UnaryCall` is, and a stream of
    answers.
    """

    network: Network
    source: str
    target: str
    path: str
    """Of the method."""
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
    _arrived: float = 0.0
    """When the last of what the server has said comes."""

    # For the caller.

    def cancel(self) -> None:
        """See `Ongoing`."""
        if not self.over:
            self.over = True
            self.on_closed()
            self.network.send(self.source, self.target, self._gone)

    def lose(self, error: AnyServeError) -> None:
        """Its connection was closed here: end it with an error, and let the server see that."""
        if not self.over:
            answers = self.answers
            self.cancel()
            answers.on_end(error, MultiDict())

    def hold(self) -> None:
        """Nobody in the simulation is slow to take answers."""

    def resume(self) -> None:
        """As `hold`."""

    # For the server.

    def answer(self, pieces: Sequence[Buffer], release: Callable[[], None] = nothing) -> None:
        """End it with an answer."""
        message = b"".join(pieces)
        release()
        self._end([message], None, {})

    def say(self, messages: Sequence[bytes]) -> None:
        """Answer with these, and not for the last time."""
        if not self.answered:
            self._send(self._said, messages)

    def end(self) -> None:
        """There are no more answers."""
        self._end([], None, {})

    def fail(self, error: AnyServeError, metadata: MetadataLike | None = None) -> None:
        """End it with an error."""
        self._end([], error, metadata or {})

    def _end(
        self, messages: Sequence[bytes], error: AnyServeError | None, metadata: MetadataLike
    ) -> None:
        if not self.answered:
            self.answered = True
            self.on_left()
            self._send(self._ended, messages, error, metadata)

    def _send(self, handle: Callable[..., None], *values: Any) -> None:
        self._arrived = self.network.send(
            self.target, self.source, handle, *values, after=self._arrived
        )

    def _gone(self) -> None:
        if not self.answered:
            self.answered = True
            self.on_gone()
            self.on_left()

    def _said(self, messages: Sequence[bytes]) -> None:
        if not self.over:
            self.answers.on_messages(messages)

    def _ended(
        self, messages: Sequence[bytes], error: AnyServeError | None, metadata: MetadataLike
    ) -> None:
        if self.over:
            return
        self.over = True
        self.on_closed()
        if messages:
            self.answers.on_messages(messages)
        self.answers.on_end(error, MultiDict(metadata))
