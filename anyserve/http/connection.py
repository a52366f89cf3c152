"""One HTTP connection on a socket: a task that reads it, and requests that are called back.

As in the gRPC transport, what is sent in one burst goes out in one write, and a request needs no
task: its handler is called with it, and answers when it can. Requests that come before the answer
to one are taken after it.
"""

from __future__ import annotations

import logging
import math
import socket
from collections import deque
from collections.abc import Awaitable
from contextlib import suppress
from typing import Protocol

import trio

from anyserve.burst import burst, nothing, now, woke
from anyserve.deadlines import Deadlines
from anyserve.errors import AnyServeError, innermost
from anyserve.http.errors import http_status
from anyserve.http.exchange import JSON, Exchange
from anyserve.http.heads import CONTINUE, answer_head
from anyserve.http.output import Output
from anyserve.http.parser import Continue, Event, HttpLimits, Parser, Phase, Refused
from anyserve.http.request import HttpRequest
from anyserve.transport import sockets

READ_BUFFER = 64 * 1024
_FEED = 16 * 1024
"""Bytes of heads parsed at once; as many small requests as others may wait for."""
_TURN = 64
"""Requests that are handled before others have a turn."""
_AHEAD = 16 * 1024
"""Bytes that are read while a request is in flight; further ones wait in the socket."""
_LINGER = 1.0
"""Seconds that a client has to read a last answer, while what it still sends is dropped."""

_log = logging.getLogger("anyserve.http")


class Site(Protocol):
    """Who answers."""

    def handle(self, exchange: Exchange) -> Awaitable[None] | None:
        """Take a request; what is to be awaited is run as a task of the connection."""
        ...

    def error_body(self, path: str, status: int, message: str) -> bytes:
        """A JSON body that says so, in the form of whoever serves `path`."""
        ...


class Owner(Protocol):
    """The server of a connection."""

    site: Site
    limits: HttpLimits
    draining: bool
    timers: Deadlines

    def busy(self, connection: Connection) -> None:
        """A request has come."""
        ...

    def idle(self, connection: Connection) -> None:
        """Its answer is on the way."""
        ...


class Connection:
    """A connection, which owns its socket."""

    def __init__(self, owner: Owner, sock: socket.socket, buffer: memoryview) -> None:
        """`buffer` is for reading; connections of one thread share it, for it keeps nothing."""
        sock.setblocking(False)
        with suppress(OSError):
            sockets.prepare(sock)  # a peer that has gone again already; reading will tell
        self.peer = sockets.peer_name(sock)
        self.timers = owner.timers
        self._owner = owner
        self._sock = sock
        self._buffer = buffer
        self._parser = Parser(owner.limits, trio.current_time())
        self._pending: bytes | memoryview = b""
        """What has come and is not parsed."""
        self._events: deque[Event] = deque()
        """What was parsed and waits for the answers before it."""
        self._current: Exchange | None = None
        self._advancing = False
        self._served = False
        """Whether it has had an answer."""
        self._last = False
        """Whether no request is taken any more."""
        self._over = False
        """Whether nothing is sent or received any more."""
        self._wait = trio.CancelScope()
        """Around the reader, which looks again when this is cancelled."""
        self._tasks: trio.Nursery
        self._output = Output(sock, self)
        self._held = False
        """Whether the handler was told to hold."""

    # Its life.

    async def run(self) -> None:
        """Serve the client until either side is done.

        Cancelled, it tells handlers that the client has gone, and the client that the server stops.
        """
        try:
            async with trio.open_nursery() as self._tasks:
                self._output.tasks = self._tasks
                await self._read()
                self._lost()
                self._tasks.cancel_scope.cancel()
        finally:
            self._stop()
            with trio.move_on_after(_LINGER, shield=True):
                await self._output.send_rest()
            self._over = True
            self._output.close()
            self._parser.close()
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    def go_away(self) -> None:
        """Take no request after the one that is in flight, or is about to come.

        A client that has just connected does not expect to be closed unheard.
        """
        if self._served and self._current is None and self._parser.phase is Phase.IDLE:
            self._finish()

    def evict(self) -> None:
        """Close at once, so that another may come."""
        self._break()

    # What exchanges need; see `Client`.

    def write(self, data: bytes) -> None:
        """See `Client`."""
        self._output.write(data)

    def has_more(self, size: int) -> None:
        """See `Client`."""
        self._output.grew(size)

    def keeps(self, exchange: Exchange, whole: bool) -> bool:
        """See `Client`."""
        request = exchange.request
        self._last = self._owner.draining or not request.persistent or not (whole or request.chunks)
        return not self._last

    def ended(self, exchange: Exchange) -> None:
        """See `Client`."""
        self._served = True
        self._release()
        self._parser.idle(now())
        if self._last or self._owner.draining:
            self._finish()
        elif self._events or self._pending:
            self._wake()
        else:
            self._watch_time()

    def abort(self) -> None:
        """See `Client`."""
        self._break()

    def refusal(self, path: str, status: int, message: str) -> bytes:
        """See `Client`."""
        return self._owner.site.error_body(path, status, message)

    # Reading.

    async def _read(self) -> None:
        while not self._over:
            with trio.CancelScope(deadline=self._deadline()) as self._wait:
                await self._read_on()
            if not self._over and trio.current_time() >= self._deadline():
                self._expire()

    async def _read_on(self) -> None:
        """Read, and have requests handled, until the connection is over."""
        while not self._over:
            if self._last and self._current is None:
                if self._output.waits:
                    await trio.sleep_forever()  # until that is done, or the client has gone
                await self._linger()
            elif self._current is not None or self._output.waits:
                # Nothing is handled now, but a client that goes is to be noticed.
                if len(self._pending) >= _AHEAD:
                    await trio.sleep_forever()
                await trio.lowlevel.wait_readable(self._sock)
                self._receive()
            elif self._events or self._pending:
                with burst:
                    self._advance()
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self._sock)
                self._receive()

    def _receive(self) -> None:
        try:
            size = self._sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            self._break()
            return
        if not size:
            # It may have closed its end, or only this half of it. Nobody can tell which, and
            # nothing but this says that the answer is no longer wanted.
            self._pending = b""
            self._events.clear()
            self._lost()
            self._finish()
        elif self._current is None and not self._output.waits:
            self._pending = self._buffer[:size]
            with burst:
                self._advance()
            self._pending = bytes(self._pending)  # others use the buffer meanwhile
        else:
            self._pending = b"".join((self._pending, self._buffer[:size]))

    def _advance(self) -> None:
        """Handle what was parsed, or else parse a part of what is pending and handle that."""
        self._advancing = True
        try:
            if not self._events:
                whole = self._parser.phase is Phase.BODY
                part = self._pending if whole else self._pending[:_FEED]
                self._pending = self._pending[len(part) :]
                self._events.extend(self._parser.feed(part, now()))
            for _ in range(_TURN):
                if not self._events or self._current is not None or self._last:
                    break
                self._handle(self._events.popleft())
        finally:
            self._advancing = False
        if self._current is None:
            self._watch_time()

    def _handle(self, event: Event) -> None:
        match event:
            case HttpRequest():
                self._begin(event)
            case Continue():
                self.write(CONTINUE)
            case Refused():
                self._refuse(event)

    def _begin(self, request: HttpRequest) -> None:
        exchange = self._current = Exchange(self, request)
        self._owner.busy(self)
        try:
            waiting = self._owner.site.handle(exchange)
        except Exception as error:
            self._failed(exchange, error)
            return
        if waiting is not None:
            exchange.scope = trio.CancelScope()
            self._tasks.start_soon(self._run_handler, exchange, exchange.scope, waiting)

    async def _run_handler(
        self, exchange: Exchange, scope: trio.CancelScope, waiting: Awaitable[None]
    ) -> None:
        with scope:
            try:
                await waiting
            except Exception as error:
                self._failed(exchange, error)
            else:
                if not exchange.over and exchange.on_gone is nothing:
                    # Nobody answers later, who would want to hear that the client has gone.
                    self._failed(exchange, RuntimeError("the handler gave no answer"))

    def _failed(self, exchange: Exchange, error: Exception) -> None:
        """Answer with what a handler has raised; one that is on its way breaks off."""
        cause = innermost(error)
        if isinstance(cause, AnyServeError):
            status, message = http_status(cause), cause.message
        else:
            _log.error("the handler of %s failed", exchange.request.path, exc_info=error)
            status, message = 500, "internal error"
        if exchange.started:
            exchange.abort()
        else:
            exchange.refuse(status, message)

    def _refuse(self, refused: Refused) -> None:
        """Answer what is no request that anybody could handle, and read nothing more."""
        body = self.refusal(refused.path, refused.status, refused.message)
        head = answer_head(refused.status, JSON, (), len(body), keeps=False, modern=True)
        self.write(head + body)
        self._finish()

    # Its end.

    def _deadline(self) -> float:
        if self._current is not None or self._output.waits or self._last:
            return math.inf
        return self._parser.deadline

    def _watch_time(self) -> None:
        """Have the reader look at the time no later than at the deadline."""
        deadline = self._deadline()
        if deadline < self._wait.deadline:
            self._wait.deadline = deadline

    def _expire(self) -> None:
        events = self._parser.expire()
        if not events:
            self._break()
        with burst:
            for event in events:
                self._handle(event)

    def _wake(self) -> None:
        """Have the reader look again."""
        if not self._advancing:
            self._wait.cancel()
            woke()

    def _finish(self) -> None:
        """Take no more requests; what is ready is sent."""
        self._last = True
        self._wake()

    def _break(self) -> None:
        """Send and receive nothing any more."""
        self._over = self._last = True
        self._output.close()
        self._lost()
        self._wake()

    def _lost(self) -> None:
        """Nobody waits for an answer any more."""
        exchange = self._current
        if exchange is not None:
            self._release()
            exchange.gone()

    def _stop(self) -> None:
        """The server stops."""
        exchange = self._current
        if exchange is None:
            return
        on_gone = exchange.on_gone
        if not exchange.started:
            exchange.refuse(503, "the server is stopping")
            on_gone()
        self._lost()

    def _release(self) -> None:
        self._current = None
        self._owner.idle(self)

    async def _linger(self) -> None:
        """Let the client read its last answer: a socket closed on unread bytes would reset it."""
        with trio.move_on_after(_LINGER), suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            while True:
                await trio.lowlevel.wait_readable(self._sock)
                with suppress(BlockingIOError):
                    if not self._sock.recv_into(self._buffer):
                        break
        self._over = True

    # What is sent; see `Source`.

    def take(self) -> bytes:
        """See `Source`."""
        return b"" if self._current is None else self._current.take()

    def on_behind(self) -> None:
        """See `Source`."""
        if not self._held and self._current is not None:
            self._held = True
            self._current.on_hold()

    def on_caught_up(self) -> None:
        """See `Source`."""
        held, self._held = self._held, False
        if held and self._current is not None:
            with burst:
                self._current.on_resume()
        self._parser.idle(trio.current_time())
        self._wake()

    def on_broken(self) -> None:
        """See `Source`."""
        self._break()
