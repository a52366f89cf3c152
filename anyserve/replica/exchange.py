"""One call in one worker, as the replica sees it: replies in, a cancel out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import attrs
import trio

from anyserve.capability import Capability
from anyserve.errors import AnyServeError, Unavailable
from anyserve.link.frames import Buffer
from anyserve.messages import Sequence as SequenceInfo
from anyserve.offers import Offer


@attrs.frozen
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


@attrs.frozen
class Reply:
    """One response of a worker; the buffers are valid until `release` is called."""

    head: Buffer
    """The ModelInferResponse without its raw contents."""
    raw: Sequence[Buffer]
    release: Callable[[], None] = lambda: None


class WorkerLost(Unavailable):
    """The worker that ran the request is gone."""


class Exchange(ABC):
    """The replies of one call, from the executor to the request's task.

    Replies that wait here are bounded by the credit that the executor gave the handler: it is
    told of each that is taken.
    """

    def __init__(self) -> None:
        self._replies: deque[Reply] = deque()
        self._wake: trio.Event | None = None
        self._error: AnyServeError | None = None
        self._listeners: list[Callable[[], None]] = []
        self._closed = False
        self.ended = False
        """Whether the handler has returned, so that its slot is free."""
        self.batch = 1
        """How many inferences it counted for."""

    @abstractmethod
    def on_cancelled(self) -> None:
        """Nobody wants the rest: have the handler stop."""

    @abstractmethod
    def on_consumed(self) -> None:
        """A reply was taken."""

    def on_ended(self, listener: Callable[[], None]) -> None:
        """Call `listener` once the handler has really ended, which may be after `close`."""
        self._listeners.append(listener)

    def deliver(self, reply: Reply) -> None:
        """A reply has come."""
        if self._closed:
            reply.release()
            return
        self._replies.append(reply)
        self._notify()

    def end(self, batch: int = 1, error: AnyServeError | None = None) -> None:
        """The handler has returned, or failed with `error`. Only the first call counts."""
        if self.ended:
            return
        self.ended, self.batch, self._error = True, batch, error
        self._notify()
        for listener in self._listeners:
            listener()

    async def receive(self) -> Reply | None:
        """The next reply, or None when there are no more.

        Waits for the worker; whoever owns the request bounds that. Cancelled, it has taken
        nothing. Raises the error that ended the call, after the replies that came before it.
        """
        while not self._replies:
            if self.ended:
                if self._error is not None:
                    raise self._error
                return None
            self._wake = trio.Event()
            await self._wake.wait()
        self.on_consumed()
        return self._replies.popleft()

    def close(self) -> None:
        """Take no more replies; the worker is told to cancel what has not ended."""
        if self._closed:
            return
        self._closed = True
        while self._replies:
            self._replies.popleft().release()
        if not self.ended:
            self.on_cancelled()

    def _notify(self) -> None:
        if self._wake is not None:
            self._wake.set()
            self._wake = None


class Executor(Protocol):
    """Something that runs calls: a worker process, or an app in this process."""

    @property
    def name(self) -> str:
        """Who it is, in errors and logs."""

    def submit(self, call: Call, offer: Offer) -> Exchange:
        """Start `call` under `offer`, at once; raises `WorkerLost` when it can't."""

    def lost(self, reason: str) -> None:
        """It runs nothing any more: what was open ends with `WorkerLost`."""
