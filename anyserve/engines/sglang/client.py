"""A client of one SGLang server: its connections, its answers, and what they mean when it fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs
import msgspec
import trio

from anyserve.engines.sglang.connection import Connection
from anyserve.errors import (
    AnyServeError,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from anyserve.transport.address import TcpAddress

Value = TypeVar("Value")

MAX_IDLE = 3.0
"""Seconds after which a connection isn't used again: SGLang closes them after 5."""
MAX_KEPT = 64
"""Connections that wait for their next use."""
MAX_ANSWER = 64 << 20
"""Bytes of an answer that is read whole."""
_MAX_REASON = 500
"""Characters of the server's words that go into an error."""


def parse_url(url: str) -> TcpAddress:
    """Where `http://host:port` is. Raises `ValueError` for anything else."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    if parts.scheme not in ("", "http") or parts.path not in ("", "/") or not parts.hostname:
        raise ValueError(f"url: {url!r} is not of the form http://host:port")
    return TcpAddress(parts.hostname, parts.port or 80)


@attrs.define(eq=False)
class Client:
    """Calls one server. Its connections are closed by `close`."""

    address: TcpAddress
    api_key: str | None = None
    _idle: list[Connection] = attrs.field(factory=list)

    async def get(self, path: str, kind: type[Value], *, within: float) -> Value:
        """The answer to GET `path`, as a value of `kind`.

        Waits for `within` seconds at most. Raises `Unavailable` when there is none, or one that
        can't be read; what its status means otherwise.
        """
        return self._decoded(await self._call("GET", path, b"", within), kind)

    async def post(self, path: str, body: Any, kind: type[Value], *, within: float) -> Value:
        """As `get`, with the JSON of `body`."""
        data = await self._call("POST", path, msgspec.json.encode(body), within)
        return self._decoded(data, kind)

    async def ping(self, path: str, *, within: float) -> None:
        """GET `path`, whose answer has no content. Raises as `get` does."""
        await self._call("GET", path, b"", within)

    async def tell(self, path: str, body: Any, *, within: float) -> None:
        """POST `body`, to an answer without content. Raises as `get` does."""
        await self._call("POST", path, msgspec.json.encode(body), within)

    def _decoded(self, data: bytes, kind: type[Value]) -> Value:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unavailable(
                f"SGLang at {self.address} answers in no known way: {error}"
            ) from None

    async def _call(self, method: str, path: str, body: bytes, within: float) -> bytes:
        try:
            with trio.fail_after(within):
                async with self.asking(method, path, body) as connection:
                    return await self.read(connection)
        except trio.TooSlowError:
            raise Unavailable(
                f"SGLang at {self.address} has not answered {path} in {within:g} s"
            ) from None

    @asynccontextmanager
    async def asking(self, method: str, path: str, body: bytes) -> AsyncIterator[Connection]:
        """A connection on which that was asked and the head of a good answer has come.

        At the end it is kept for another request, if the answer was read whole, else closed.
        Bounded by the caller. Raises `Unavailable`, or what a bad status means.
        """
        connection = await self.connect()
        try:
            status = await connection.ask(self.request(method, path, body))
            if status >= 300:
                raise await self.refusal(connection)
            yield connection
        finally:
            self.put_back(connection)

    async def connect(self) -> Connection:
        """A connection for one request; `put_back` ends its use."""
        now = trio.current_time()
        while self._idle:
            connection = self._idle.pop()
            if now - connection.last_used < MAX_IDLE:
                return connection
            connection.close()
        return await Connection.open(self.address)

    def put_back(self, connection: Connection) -> None:
        """Keep `connection` for its next use, or close it where it can't have one."""
        if connection.reusable and len(self._idle) < MAX_KEPT:
            connection.last_used = trio.current_time()
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop().close()

    def request(self, method: str, path: str, body: bytes) -> bytes:
        """The bytes of a request."""
        head = f"{method} {path} HTTP/1.1\r\nhost: {self.address}\r\n"
        if self.api_key is not None:
            head += f"authorization: Bearer {self.api_key}\r\n"
        if body:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        return f"{head}\r\n".encode() + body

    async def read(self, connection: Connection) -> bytes:
        """The whole body of an answer. Raises `Unavailable`, also for one that is too long."""
        pieces, size = [], 0
        while piece := await connection.receive():
            pieces.append(piece)
            size += len(piece)
            if size > MAX_ANSWER:
                raise Unavailable(f"SGLang at {self.address} answers more than {MAX_ANSWER} bytes")
        return b"".join(pieces)

    async def refusal(self, connection: Connection) -> AnyServeError:
        """What an answer with a bad status means."""
        return error_of(connection.status, said(await self.read(connection)))


class _Said(msgspec.Struct):
    message: str | None = None
    error: Any = None
    detail: Any = None


def said(body: bytes) -> str:
    """The server's words in the body of an error, which has one of several forms."""
    try:
        value = msgspec.json.decode(body, type=_Said)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body[:_MAX_REASON].decode(errors="replace")
    error = value.error.get("message") if isinstance(value.error, dict) else value.error
    return str(value.message or error or value.detail or "nothing").partition("\n\n")[0]


def error_of(status: int, reason: str) -> AnyServeError:
    """The error of our tree for an HTTP status of SGLang's."""
    words = f"SGLang says: {reason.strip()[:_MAX_REASON]}"
    if status in (400, 413, 422):
        return InvalidArgument(words)
    if status == 429:
        return ResourceExhausted(words)
    if status in (401, 403):
        return FailedPrecondition(f"SGLang does not take the API key: {words}")
    return Unavailable(f"{words} (status {status})")
