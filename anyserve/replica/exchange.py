"""One call in one worker, as the replica sees it: replies in, a cancel out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import attrs

from anyserve.burst import nothing
from anyserve.capability import Capability
from anyserve.errors import AnyServeError, Unavailable
from anyserve.link.frames import Buffer, Part
from anyserve.messages import Sequence as SequenceInfo
from anyserve.objects.leases import Lease
from anyserve.offers import Offer
from anyserve.traces import Trace


@attrs.define
class Call:
    """A request on its way through the replica; its tensors are bytes that nobody has parsed."""

    need: Capability
    head: bytes
    """The ModelInferRequest without its raw contents."""
    raw: Sequence[Buffer] = ()
    """Its raw contents."""
    request_id: str = ""
    deadline: float = math.inf
    """Absolute, on Trio's clock."""
    metadata: Mapping[str, str] = attrs.field(factory=dict)
    sequence: SequenceInfo | None = None
    regions: Mapping[str, Any] = attrs.field(factory=dict)
    """The clients' shared-memory regions that the request names, as JSON values."""
    trace: Trace | None = None
    """Where it is in a trace, which `metadata` says too; None where it is in none."""
    open_calls: int = 0
    """What its handler has called and that has not ended."""
    lent: Sequence[Lease | None] = ()
    """Where each of the raw contents lies in a worker's arena already, if any does."""


@attrs.define
class Reply:
    """One response of a worker; the buffers are valid until `release` is called."""

    pieces: Sequence[Buffer]
    """A ModelInferResponse, to be joined."""
    release: Callable[[], None] = nothing
    parts: Sequence[Part] = ()
    """The same for other processes, where some of it lies in shared memory."""


class WorkerLost(Unavailable):
    """The worker that ran the request is gone."""


class Listener(Protocol):
    """Whoever has a call run."""

    def on_reply(self, reply: Reply) -> None:
        """The next reply, whose buffers are the listener's to release."""
        ...

    def on_tokens(self, more: int, prompt: int) -> None:
        """The last reply has so many tokens more than one, and the prompt so many."""
        ...

    def on_ended(self, batch: int, error: AnyServeError | None) -> None:
        """The handler has really returned, or failed with `error`: its slot is free.

        batch: how many inferences the request counted for.
        """
        ...


class Exchange(ABC):
    """A call that an executor runs.

    The executor gives the handler credit for so many replies, and more for each that is consumed.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._closed = False
        self.ended = False
        """Whether the handler has returned."""

    @abstractmethod
    def on_cancelled(self) -> None:
        """Nobody wants the rest: have the handler stop."""

    @abstractmethod
    def consumed(self) -> None:
        """A reply is on its way to the client, or dropped: one more may come."""

    def deliver(self, reply: Reply) -> None:
        """A reply has come."""
        if self._closed:
            reply.release()
        else:
            self._listener.on_reply(reply)

    def on_tokens(self, more: int, prompt: int) -> None:
        """The last reply has so many tokens more than one, and the prompt so many."""
        if not self._closed:
            self._listener.on_tokens(more, prompt)

    def end(self, batch: int = 1, error: AnyServeError | None = None) -> None:
        """The handler has returned, or failed with `error`. Only the first call counts."""
        if not self.ended:
            self.ended = True
            self._listener.on_ended(batch, error)

    def close(self) -> None:
        """Take no more replies; the worker is told to cancel what has not ended."""
        if not self._closed:
            self._closed = True
            if not self.ended:
                self.on_cancelled()


class Executor(Protocol):
    """Something that runs calls: a worker process, or an app in this process."""

    @property
    def name(self) -> str:
        """Who it is, in errors and logs."""

    def submit(self, call: Call, offer: Offer, listener: Listener) -> Exchange:
        """Start `call` under `offer`; `listener` hears of it later.

        Raises `WorkerLost` when it can't, and `ResourceExhausted` for what it can't take.
        """

    def lost(self, reason: str) -> None:
        """It runs nothing any more: what was open ends with `WorkerLost`."""


@attrs.frozen
class Asked:
    """What a handler asks of another capability."""

    head: bytes
    """A ModelInferRequest without its raw contents."""
    raw: Sequence[memoryview]
    lent: Sequence[Lease | None]
    """As of a `Call`; whoever asks holds them until the request has ended."""
    once: bool
    """Whether one response is wanted."""


class Answered(Protocol):
    """The handler that has called; it is called back in Trio's thread, and never waits."""

    def on_reply(self, reply: Reply) -> None:
        """The next response, whose buffers are the taker's to release."""
        ...

    def on_end(self, error: AnyServeError | None) -> None:
        """There are no more, or what was called has failed."""
        ...


class Called(Protocol):
    """A request of a handler, on its way."""

    def start(self) -> None:
        """Begin it; what is wrong with it is told as its end."""
        ...

    def consumed(self, responses: int) -> None:
        """The handler has taken so many."""
        ...

    def cancel(self) -> None:
        """Nobody wants the rest; nothing happens where it has ended."""
        ...


class Calls(Protocol):
    """Has the requests of handlers run."""

    def request(self, parent: Call, asked: Asked, answered: Answered) -> Called:
        """One request, to be started; parent: the request whose handler calls."""
        ...
