"""An HTTP server in the test's own loop, and bare clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import attrs
import pytest
import trio
from anyserve_actors import ChildSpec, Policy, Supervisor, Tree

from anyserve.burst import each_turn
from anyserve.http.access import Access
from anyserve.http.exchange import Exchange
from anyserve.http.parser import HttpLimits
from anyserve.http.routes import Handler, Routes
from anyserve.http.server import HttpServer
from anyserve.transport.address import TcpAddress


@attrs.frozen
class Answer:
    """One answer, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


@attrs.define
class BareClient:
    """A connection, and what it sends is what the test says."""

    stream: trio.SocketStream
    _data: bytes = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def until(self, mark: bytes) -> bytes:
        """What comes up to `mark`, and that."""
        while mark not in self._data:
            more = await self.stream.receive_some(65536)
            assert more, f"closed before {mark!r}: {self._data!r}"
            self._data += more
        before, _, self._data = self._data.partition(mark)
        return before + mark

    async def exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            more = await self.stream.receive_some(65536)
            assert more, "closed early"
            self._data += more
        data, self._data = self._data[:size], self._data[size:]
        return data

    async def answer(self, *, head: bool = False) -> Answer:
        """The next answer; head: it has no body."""
        lines = (await self.until(b"\r\n\r\n")).decode().split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        body = b""
        if head or status in (100, 204):
            pass
        elif "content-length" in headers:
            body = await self.exactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(await self.until(b"\r\n"), 16):
                body += (await self.exactly(size + 2))[:-2]
            await self.until(b"\r\n")
        else:
            body = await self.rest()
        return Answer(status, headers, body)

    async def ask(self, data: bytes) -> Answer:
        """Send a request and take its answer."""
        await self.send(data)
        return await self.answer()

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        while more := await self.stream.receive_some(65536):
            self._data += more
        data, self._data = self._data, b""
        return data


@attrs.define
class LiveServer:
    """A server that serves."""

    server: HttpServer
    routes: Routes
    _clients: list[trio.SocketStream] = attrs.field(factory=list)

    @property
    def port(self) -> int:
        address = self.server.address
        assert isinstance(address, TcpAddress)
        return address.port

    async def client(self) -> BareClient:
        """A new connection, closed with the server."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self._clients.append(stream)
        return BareClient(stream)

    async def close_clients(self) -> None:
        for stream in self._clients:
            await stream.aclose()


OpenServer = Callable[..., AbstractAsyncContextManager[LiveServer]]


@pytest.fixture
def open_server() -> OpenServer:
    """Serve handlers, by `METHOD /path`."""

    @asynccontextmanager
    async def opened(
        handlers: dict[str, Handler],
        limits: HttpLimits | None = None,
        access: Access | None = None,
    ) -> AsyncIterator[LiveServer]:
        routes = Routes(access or Access())
        for route, handler in handlers.items():
            method, _, path = route.partition(" ")
            routes.add(method, path, handler, is_open=path == "/open")
        server = HttpServer(routes, TcpAddress("127.0.0.1", 0), limits or HttpLimits())
        root = Supervisor([ChildSpec("http", lambda: server)], Policy(max_restarts=0))
        async with Tree("test", root).running():
            live = LiveServer(server, routes)
            try:
                with each_turn():
                    yield live
            finally:
                await live.close_clients()

    return opened


@attrs.define
class Held:
    """A handler whose exchanges the test answers."""

    exchanges: list[Exchange] = attrs.field(factory=list)
    gone: list[Exchange] = attrs.field(factory=list)
    _arrived: trio.Event = attrs.field(factory=trio.Event)

    def __call__(self, exchange: Exchange) -> Awaitable[None] | None:
        self.exchanges.append(exchange)
        exchange.on_gone = lambda: self.gone.append(exchange)
        self._arrived.set()
        self._arrived = trio.Event()
        return None

    async def until(self, count: int) -> None:
        """Wait for so many requests."""
        while len(self.exchanges) < count:
            await self._arrived.wait()


@pytest.fixture
def held() -> Held:
    return Held()


def echo(exchange: Exchange) -> None:
    """Answer with the body."""
    exchange.respond(200, exchange.request.body, "text/plain")
