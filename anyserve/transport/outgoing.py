"""A call of one message whose answers are called back, so that no task waits for them.

What passes requests on has nothing to do but to hand bytes from one connection to another.
`Channel.call` begins such a call; here is what it does with what comes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import trio
from multidict import MultiDict

from anyserve.burst import nothing
from anyserve.errors import AnyServeError, Internal
from anyserve.transport import headers as h
from anyserve.transport.channel import ClientWire
from anyserve.transport.framing import Splitter, pack
from anyserve.transport.rpc import Buffer, Metadata

_REMEMBERED = 64
"""Heads of calls that are kept; most calls to a server have the same."""


class CallbackWire(ClientWire, Protocol):
    """A `ClientWire` that says when something has arrived."""

    peer_ended: bool
    """Whether the answer is complete."""
    failure: AnyServeError | None
    """What the stream has failed with."""
    on_news: Callable[[], None] | None
    """Called when something has arrived, or the stream has failed; must not wait."""

    def take(self) -> list[bytes]:
        """The bytes that have arrived, whose window is given back by that."""
        ...


class Answers(Protocol):
    """Whoever wants what a call is answered with; it is called in Trio's thread, and never waits.

    Not after it has cancelled the call.
    """

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """The next messages, at least one."""
        ...

    def on_end(self, error: AnyServeError | None, metadata: Metadata) -> None:
        """There are no more: the call has ended, with OK where `error` is None.

        metadata: that of its trailers. `NotTaken`: the server has not begun the call.
        """
        ...


class Ongoing(Protocol):
    """A call that has begun, as whoever has begun it sees it."""

    def cancel(self) -> None:
        """Nobody wants the rest; the server is told, and nothing is called back any more."""
        ...

    def hold(self) -> None:
        """Take nothing of what arrives, so that the server has to wait."""
        ...

    def resume(self) -> None:
        """Go on with what has arrived."""
        ...


class Caller(Protocol):
    """Something that begins such calls, as a channel does."""

    def call(
        self,
        path: str,
        message: Sequence[Buffer],
        answers: Answers,
        *,
        deadline: float = math.inf,
        metadata: tuple[tuple[str, str | bytes], ...] = (),
    ) -> Ongoing:
        """Begin a call of one message, which `answers` hears of later.

        deadline: on Trio's clock; it goes along, and the caller keeps it.
        """
        ...


class Outgoing:
    """One such call. It ends by `Answers.on_end` or by `cancel`, whichever comes first."""

    def __init__(self, answers: Answers, max_message_bytes: int) -> None:
        self.scope: trio.CancelScope | None = None
        """Around the task that begins it, where one has to."""
        self.over = False
        self._answers = answers
        self._splitter = Splitter(max_message_bytes)
        self._wire: CallbackWire | None = None
        self._release: Callable[[], None] = nothing
        self._answered = False
        self._held = False

    @property
    def begun(self) -> bool:
        """Whether the server may have heard of it; before it is over."""
        return self._wire is not None

    def begin(self, wire: CallbackWire, release: Callable[[], None]) -> None:
        """Listen to the wire; `release` is called when the call is over and the wire is reset."""
        self._wire, self._release = wire, release
        wire.on_news = self._on_news

    async def send(self, wire: CallbackWire, message: Sequence[Buffer]) -> None:
        """Send the message and no more; waits while the server does not read.

        Bounded by the call, whose end resets the wire; raises nothing but Cancelled.
        """
        try:
            await wire.send(None, pack(message), None, True)
        except AnyServeError as error:
            # The wire tells what the call has failed with, but not that it was just closed.
            if wire.failure is None and not wire.peer_ended:
                self.fail(error)

    def cancel(self) -> None:
        """See `Ongoing`."""
        if not self.over:
            self._leave()

    def hold(self) -> None:
        """See `Ongoing`."""
        self._held = True

    def resume(self) -> None:
        """See `Ongoing`."""
        self._held = False
        if self._wire is not None and not self.over:
            self._on_news()

    def fail(self, error: AnyServeError, metadata: Metadata | None = None) -> None:
        """End it with an error."""
        if not self.over:
            self._leave()
            self._answers.on_end(error, MultiDict() if metadata is None else metadata)

    def _leave(self) -> None:
        self.over = True
        if self.scope is not None:
            self.scope.cancel()
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.on_news = None
            wire.reset()
            self._release()

    def _on_news(self) -> None:
        wire = self._wire
        assert wire is not None
        if self._held and wire.failure is None:
            return
        if not self._answered and wire.headers is not None:
            self._answered = True
            error = h.error_in_response(wire.headers)
            if error is not None:
                self.fail(error)
                return
        try:
            messages = [each for chunk in wire.take() for each in self._splitter.feed(chunk)]
        except AnyServeError as error:
            self.fail(error)
            return
        if messages:
            self._answers.on_messages(messages)
            if self.over or self._held:
                return
        if wire.failure is not None:
            self.fail(wire.failure)
        elif wire.peer_ended:
            self._end(wire)

    def _end(self, wire: CallbackWire) -> None:
        trailers = wire.trailers or wire.headers or ()
        error = h.error_in_trailers(trailers)
        if error is None and self._splitter.unfinished:
            error = Internal("the answer ends within a message")
        if error is not None:
            self.fail(error, h.decode_metadata(trailers))
            return
        self._leave()
        self._answers.on_end(None, MultiDict())


@lru_cache(_REMEMBERED)
def call_headers(
    path: str, authority: str, metadata: tuple[tuple[str, str | bytes], ...]
) -> h.Headers:
    """The headers of a call but for the time that it has."""
    return h.request_headers(path, authority, math.inf, metadata)
