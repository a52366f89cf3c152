"""One request and its answer, as a handler sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from anyserve.burst import burst, nothing, now
from anyserve.deadlines import Deadline, Deadlines
from anyserve.http.heads import Fields, answer_head
from anyserve.http.request import HttpRequest

JSON = "application/json"


class Client(Protocol):
    """The connection that an exchange is of."""

    peer: str
    timers: Deadlines

    def write(self, data: bytes) -> None:
        """Send bytes at the end of the burst."""
        ...

    def has_more(self, size: int) -> None:
        """The exchange has so many bytes more for the end of the burst."""
        ...

    def keeps(self, exchange: Exchange, whole: bool) -> bool:
        """Whether the connection goes on after the exchange.

        whole: whether the answer's length is known.
        """
        ...

    def ended(self, exchange: Exchange) -> None:
        """Its answer is complete."""
        ...

    def abort(self) -> None:
        """Close the connection in the midst of an answer."""
        ...

    def refusal(self, path: str, status: int, message: str) -> bytes:
        """The body that says so, in the form of whoever serves `path`."""
        ...


class Exchange:
    """A request, and its answer: whole by `respond`, or in pieces by `start`, `send` and `end`.

    Everything here is called in Trio's thread and never waits. After the end, or once the client
    has gone, nothing is sent any more.
    """

    SILENCE = 15.0
    """Seconds without a piece after which `idle` of `start` is sent."""

    _started = False
    _over = False

    def __init__(self, client: Client, request: HttpRequest) -> None:
        self.request = request
        self.peer = client.peer
        """Who asks: `host:port`."""
        self.on_gone: Callable[[], None] = nothing
        """Called, once, when the client has gone before the answer's end, or the server stops."""
        self.on_hold: Callable[[], None] = nothing
        """Called when much waits for the client to read: send no more than what is at hand."""
        self.on_resume: Callable[[], None] = nothing
        """Called when nothing waits any more, after `on_hold`."""
        self.fields: Fields = ()
        """Headers that every answer has, whoever gives it."""
        self.scope: trio.CancelScope | None = None
        """Of the handler, where it runs as a task."""
        self._client = client
        self._pieces: list[bytes] = []
        self._idle = b""
        self._sent_at = 0.0
        self._timer: Deadline | None = None

    @property
    def over(self) -> bool:
        """Whether the answer is complete, or nobody wants it any more."""
        return self._over

    @property
    def started(self) -> bool:
        """Whether the status is on its way."""
        return self._started

    def respond(
        self, status: int, body: bytes, content_type: str = JSON, headers: Fields = ()
    ) -> None:
        """The whole answer."""
        if self._over:
            return
        assert not self._started, "the answer has begun"
        head = self._head(status, content_type, headers, len(body))
        self._client.write(head if self.request.method == "HEAD" else head + body)
        self._end()

    def refuse(self, status: int, message: str, headers: Fields = ()) -> None:
        """An error as the whole answer, in the form of those of its path."""
        body = self._client.refusal(self.request.path, status, message)
        self.respond(status, body, JSON, headers)

    def start(
        self, status: int, content_type: str, headers: Fields = (), idle: bytes = b""
    ) -> None:
        """Begin an answer whose length is not known.

        idle: a piece that is sent after each `SILENCE`, so that nobody on the way takes the
        connection for dead.
        """
        if self._over:
            return
        assert not self._started, "the answer has begun"
        self._started = True
        if self._timer is not None:
            self._client.timers.drop(self._timer)
            self._timer = None
        self._client.write(self._head(status, content_type, headers, None))
        self._sent_at = now()
        if idle:
            self._idle = idle
            self._timer = self._client.timers.add(self._sent_at + self.SILENCE, self._touch)

    def after_silence(self, begin: Callable[[], None]) -> None:
        """Have `begin` called when nothing has been answered for `SILENCE`."""
        self._timer = self._client.timers.add(now() + self.SILENCE, begin)

    def send(self, data: bytes) -> None:
        """A piece of it, which goes out at the end of the burst."""
        if data and not self._over:
            self._pieces.append(data)
            self._sent_at = now()
            self._client.has_more(len(data))

    def end(self) -> None:
        """There is no more."""
        if not self._over:
            assert self._started, "the answer has not begun"
            rest = self.take()
            if self.request.chunks and self.request.method != "HEAD":
                rest += b"0\r\n\r\n"
            self._client.write(rest)
            self._end()

    def abort(self) -> None:
        """The rest can't be given: the client sees that, since the connection breaks."""
        if not self._over:
            self._end()
            self._client.abort()

    # The connection's side.

    def take(self) -> bytes:
        """What was sent in this burst, as one chunk."""
        if not self._pieces:
            return b""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self.request.method == "HEAD":
            return b""
        return b"%x\r\n%b\r\n" % (len(data), data) if self.request.chunks else data

    def gone(self) -> None:
        """Nobody waits for the answer any more."""
        if not self._over:
            on_gone = self.on_gone
            self._finish()
            if self.scope is not None:
                self.scope.cancel()
            on_gone()

    def _touch(self) -> None:
        """Send `idle` where there was silence, and look again later."""
        with burst:
            if now() >= self._sent_at + self.SILENCE:
                self.send(self._idle)
        self._timer = self._client.timers.add(self._sent_at + self.SILENCE, self._touch)

    def _head(self, status: int, content_type: str, headers: Fields, length: int | None) -> bytes:
        keeps = self._client.keeps(self, length is not None)
        return answer_head(
            status, content_type, headers + self.fields, length, keeps, self.request.chunks
        )

    def _end(self) -> None:
        self._finish()
        self._client.ended(self)

    def _finish(self) -> None:
        self._over = True
        self._pieces.clear()
        if self._timer is not None:
            self._client.timers.drop(self._timer)
        # What the handler holds of the exchange, and this of it, would else wait for the collector.
        self.on_gone = self.on_hold = self.on_resume = nothing
