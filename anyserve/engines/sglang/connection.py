"""One HTTP/1.1 connection to an engine's server: a request out, the pieces of its answer in."""

from __future__ import annotations

import os
import socket
from typing import Any

import attrs
import trio

from anyserve.engines.errors import CannotLoad
from anyserve.errors import Unavailable, elsewhere, first_of
from anyserve.transport.address import TcpAddress
from anyserve.transport.sockets import prepare

try:
    import httptools
except ImportError:
    raise CannotLoad("the package httptools is missing: pip install 'anyserve[sglang]'") from None

CONNECT_TIME = 5.0
_READ = 256 * 1024
"""Bytes at most that are read at once."""


@attrs.define(eq=False)
class Connection:
    """A connection, and the answer that it is reading. One task at a time may use it.

    Made by `Connection.open`. A piece costs one wait and one read, no more: that is what a token
    costs here.
    """

    peer: TcpAddress
    _sock: socket.socket
    last_used: float = 0.0
    """When bytes came last, or the answer ended; `trio.current_time`."""
    status: int = 0
    """Of the answer whose head has come, else 0."""
    ended: bool = True
    """The answer has come whole."""
    _parser: Any = None
    _pieces: list[bytes] = attrs.field(factory=list)
    _keep: bool = True
    _closed: str | None = None
    """Why it was closed."""

    @classmethod
    async def open(cls, peer: TcpAddress) -> Connection:
        """Connect; waits `CONNECT_TIME` at most.

        Raises `Unavailable`, marked as served `elsewhere`: nothing was begun.
        """
        try:
            with trio.fail_after(CONNECT_TIME):
                stream = await trio.open_tcp_stream(peer.host, peer.port)
        except trio.TooSlowError:
            raise elsewhere(Unavailable(f"SGLang at {peer} takes no connection")) from None
        except OSError as error:
            why = first_of(error.__cause__ or error)
            words = os.strerror(why.errno) if isinstance(why, OSError) and why.errno else str(why)
            raise elsewhere(Unavailable(f"SGLang at {peer} can't be reached: {words}")) from None
        # The plain socket: a piece then costs no more than a wait and a system call.
        sock = socket.socket(fileno=stream.socket.detach())
        sock.setblocking(False)
        connection = cls(peer, sock, trio.current_time())
        try:
            prepare(sock)
        except OSError as error:
            connection.close(str(error))
            raise elsewhere(Unavailable(f"SGLang at {peer} can't be reached: {error}")) from None
        return connection

    @property
    def reusable(self) -> bool:
        """Another request may be sent."""
        return self.ended and self._keep and self._closed is None

    @property
    def closed(self) -> bool:
        """It is of no use any more."""
        return self._closed is not None

    def close(self, why: str = "the connection is closed") -> None:
        """Close it now; whoever waits for a piece gets `Unavailable` with the reason."""
        if self._closed is None:
            self._closed = why
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    async def ask(self, request: bytes) -> int:
        """Send a request and wait for the head of the answer: its status.

        Bounded by the caller. Raises `Unavailable`; after that, and when cancelled, the connection
        is good for nothing but `receive` and `close`.
        """
        self._parser = httptools.HttpResponseParser(self)
        self.ended, self.status = False, 0
        view = memoryview(request)
        while view:
            if self._closed is not None:
                raise self._lost(self._closed)
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_writable)
            except OSError as error:
                raise self._failed(error) from None
        while not self.status:
            await self._read()
        return self.status

    async def receive(self) -> bytes:
        """The next piece of the answer's body; empty at its end. Raises `Unavailable`."""
        while not self._pieces:
            if self.ended:
                return b""
            await self._read()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        return data

    async def _wait(self, readiness: Any) -> None:
        try:
            await readiness(self._sock)
        except trio.ClosedResourceError:
            raise self._lost(self._closed or "the connection is closed") from None

    async def _read(self) -> None:
        """Wait for bytes, once, and parse them."""
        if self._closed is not None:
            raise self._lost(self._closed)
        await self._wait(trio.lowlevel.wait_readable)
        if self._closed is not None:
            raise self._lost(self._closed)
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._failed(error) from None
        if not data:
            self.close()
            raise self._lost("it closed the connection before its answer was whole")
        self.last_used = trio.current_time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.close()
            raise self._lost(f"it answers with no HTTP: {error}") from None

    def _failed(self, error: OSError) -> Unavailable:
        self.close()
        return self._lost(error.strerror or str(error))

    def _lost(self, why: str) -> Unavailable:
        return Unavailable(f"SGLang at {self.peer} is lost: {why}")

    # What the parser calls.

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._keep = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self.ended = True
