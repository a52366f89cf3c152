"""A live server with a service that shows what it sees, and a raw HTTP/2 client."""

from __future__ import annotations

import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from grpclib.const import Cardinality, Handler
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection

from anyserve.errors import NotFound
from anyserve.transport import grpclib_client, grpclib_server, trio_client, trio_server
from anyserve.transport.address import TcpAddress
from anyserve.transport.rpc import Limits, ServerStream
from anyserve.transport.server import Server


class Probe:
    """Echoes, counts, hangs and fails on request, and remembers what happened to its handlers."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self.release = trio.Event()
        self.ended: list[str] = []
        self.produced = 0
        self.received = 0
        self.seen: ServerStream | None = None
        self._ended = trio.Event()

    def __mapping__(self) -> dict[str, Handler]:
        def method(func: Any, cardinality: Cardinality) -> Handler:
            return Handler(func, cardinality, bytes, bytes)

        return {
            "/test.Probe/Echo": method(self.echo, Cardinality.UNARY_UNARY),
            "/test.Probe/Join": method(self.join, Cardinality.STREAM_UNARY),
            "/test.Probe/Repeat": method(self.repeat, Cardinality.UNARY_STREAM),
            "/test.Probe/EchoAll": method(self.echo_all, Cardinality.STREAM_STREAM),
            "/test.Probe/Hang": method(self.hang, Cardinality.UNARY_UNARY),
            "/test.Probe/Wait": method(self.wait, Cardinality.UNARY_UNARY),
            "/test.Probe/Fail": method(self.fail, Cardinality.UNARY_UNARY),
            "/test.Probe/Silent": method(self.silent, Cardinality.UNARY_UNARY),
            "/test.Probe/Sink": method(self.sink, Cardinality.STREAM_UNARY),
        }

    async def echo(self, stream: ServerStream) -> None:
        self.seen = stream
        await stream.send_message(await stream.recv_message())

    async def join(self, stream: ServerStream) -> None:
        await stream.send_message(b"".join([message async for message in stream]))

    async def repeat(self, stream: ServerStream) -> None:
        """`size,count`: that many messages of that many bytes."""
        size, count = map(int, (await stream.recv_message()).split(b","))
        self.started.set()
        try:
            for _ in range(count):
                await stream.send_message(b"m" * size)
                self.produced += 1
        except trio.Cancelled:
            self._end("cancelled")
            raise

    async def echo_all(self, stream: ServerStream) -> None:
        await stream.send_initial_metadata(metadata={"early": "yes"})
        async for message in stream:
            self.received += 1
            await stream.send_message(message)
        await stream.send_trailing_metadata(metadata={"late": "yes"})

    async def hang(self, stream: ServerStream) -> None:
        self.seen = stream
        await stream.recv_message()
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            self._end("cancelled")

    async def wait(self, stream: ServerStream) -> None:
        message = await stream.recv_message()
        self.started.set()
        await self.release.wait()
        await stream.send_message(message)
        self._end("answered")

    async def fail(self, stream: ServerStream) -> None:
        kind = await stream.recv_message()
        if kind == b"own":
            raise NotFound("no model 'größe', there is\necho: 100 %")
        if kind == b"group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._raise, NotFound("from a child"))
                await trio.sleep_forever()
        raise KeyError("a bug")

    async def silent(self, stream: ServerStream) -> None:
        await stream.recv_message()

    async def sink(self, stream: ServerStream) -> None:
        """Reads one message, then waits to be released, then reads the rest."""
        await stream.recv_message()
        self.started.set()
        await self.release.wait()
        async for message in stream:
            self.received += len(message)
        await stream.send_message(b"%d" % self.received)

    async def until_ended(self) -> None:
        with trio.fail_after(20):
            await self._ended.wait()

    def _end(self, how: str) -> None:
        self.ended.append(how)
        self._ended.set()

    async def _raise(self, error: Exception) -> None:
        raise error


@attrs.frozen
class Wire:
    """What carries calls: how to serve, and how to call."""

    serve: Callable[..., Any]
    open_channel: Callable[..., Any]
    socket_of: Callable[[Any], Any]
    """The socket of a connection."""


WIRES = {
    "trio": Wire(trio_server.serve, trio_client.open_channel, lambda connection: connection._sock),
    "grpclib": Wire(
        grpclib_server.serve,
        grpclib_client.open_channel,
        lambda connection: connection.protocol._transport.get_extra_info("socket"),
    ),
}


@attrs.define
class Live:
    """A running server and the service in it."""

    wire: Wire
    server: Server
    probe: Probe
    stop: Callable[[], None]

    @property
    def target(self) -> str:
        return str(self.server.address)

    def open_channel(self, **options: Any) -> Any:
        """A channel of the same wire to it."""
        return self.wire.open_channel(self.target, **options)


@asynccontextmanager
async def run_live(wire: Wire, limits: Limits | None = None) -> AsyncIterator[Live]:
    probe = Probe()
    scope = trio.CancelScope()

    async def run(task_status: trio.TaskStatus[Server]) -> None:
        with scope:
            address = TcpAddress("127.0.0.1", 0)
            await wire.serve([probe], address, limits=limits, task_status=task_status)

    async with trio.open_nursery() as nursery:
        yield Live(wire, await nursery.start(run), probe, scope.cancel)
        scope.cancel()


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> Wire:
    """Either of them."""
    return WIRES[request.param]


@pytest.fixture
async def live(wire: Wire) -> AsyncIterator[Live]:
    async with run_live(wire) as live:
        yield live


@pytest.fixture
async def live_small(wire: Wire) -> AsyncIterator[Live]:
    """Messages of at most 8 MiB."""
    async with run_live(wire, Limits(max_message_bytes=8 * 1024 * 1024)) as live:
        yield live


def framed(message: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(message)) + message


@attrs.define
class Answer:
    """What a raw call was answered with."""

    headers: dict[str, str] = attrs.field(factory=dict)
    trailers: dict[str, str] = attrs.field(factory=dict)
    data: bytes = b""
    reset: int | None = None
    ended: bool = False

    @property
    def status(self) -> str | None:
        return self.trailers.get("grpc-status", self.headers.get("grpc-status"))


class RawClient:
    """HTTP/2 by hand: every frame under the test's control."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.socket = stream
        self.h2 = H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.answers: dict[int, Answer] = {}
        self.goaway: events.ConnectionTerminated | None = None
        self.closed = False
        self.pongs = 0
        self.auto_window = True

    async def greet(self) -> None:
        self.h2.initiate_connection()
        await self.flush()

    async def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            await self.send_raw(data)

    async def send_raw(self, data: bytes) -> None:
        """Bytes around h2, as hostile as wanted; the server may have closed already."""
        try:
            await self.socket.send_all(data)
        except trio.BrokenResourceError:
            self.closed = True

    def head(self, path: str, /, **extra: str | None) -> list[tuple[str, str]]:
        """Request headers; `te=None` leaves one out, `grpc_timeout="1S"` adds one."""
        headers: dict[str, str | None] = {
            ":method": "POST",
            ":scheme": "http",
            ":path": f"/test.Probe/{path}",
            ":authority": "test",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        for name, value in extra.items():
            pseudo = ":" + name
            headers[pseudo if pseudo in headers else name.replace("_", "-")] = value
        return [(name, value) for name, value in headers.items() if value is not None]

    async def call(
        self, path: str, data: bytes | None = None, /, *, end: bool = True, **extra: str | None
    ) -> int:
        """Begin a call with `data` as its raw body so far."""
        stream_id = self.h2.get_next_available_stream_id()
        self.answers[stream_id] = Answer()
        self.h2.send_headers(stream_id, self.head(path, **extra), end_stream=end and data is None)
        if data is not None:
            self.h2.send_data(stream_id, data, end_stream=end)
        await self.flush()
        return stream_id

    async def answer(self, stream_id: int) -> Answer:
        """The call's answer once it has ended or was reset."""
        await self.until(lambda: self.answers[stream_id].ended)
        return self.answers[stream_id]

    async def until(self, done: Any) -> None:
        """Read until `done()` or until the connection closes; five seconds at most."""
        with trio.fail_after(20):
            while not done() and not self.closed:
                await self.read()

    async def read(self) -> None:
        try:
            data = await self.socket.receive_some(65536)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self.closed = True
            return
        for event in self.h2.receive_data(data):
            self._take(event)
        if self.h2.state_machine.state.name != "CLOSED":
            await self.flush()

    def _take(self, event: events.Event) -> None:
        answer = self.answers.get(getattr(event, "stream_id", 0) or 0, Answer())
        match event:
            case events.ResponseReceived():
                answer.headers = dict(event.headers)
            case events.TrailersReceived():
                answer.trailers = dict(event.headers)
            case events.DataReceived():
                answer.data += event.data
                if self.auto_window:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case events.StreamEnded():
                answer.ended = True
            case events.StreamReset():
                if not answer.ended:
                    answer.reset = int(event.error_code)
                answer.ended = True
            case events.ConnectionTerminated():
                self.goaway = event
            case events.PingAckReceived():
                self.pongs += 1


@asynccontextmanager
async def connect_raw(live: Live) -> AsyncIterator[RawClient]:
    address = live.server.address
    assert isinstance(address, TcpAddress)
    stream = await trio.open_tcp_stream(address.host, address.port)
    async with stream:
        yield RawClient(stream)


@pytest.fixture
async def raw(live: Live) -> AsyncIterator[RawClient]:
    """A client that has greeted."""
    async with connect_raw(live) as client:
        await client.greet()
        yield client


@attrs.define
class Relay:
    """Passes bytes between clients and a server, and keeps what the clients send."""

    upstream: TcpAddress
    target: str = ""
    sent: list[bytearray] = attrs.field(factory=list)
    """One for each connection."""

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        self.target = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._connected, [listener])

    async def _connected(self, client: trio.SocketStream) -> None:
        kept = bytearray()
        self.sent.append(kept)
        server = await trio.open_tcp_stream(self.upstream.host, self.upstream.port)
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._pass, server, client, bytearray(), nursery.cancel_scope)
            await self._pass(client, server, kept, nursery.cancel_scope)

    async def _pass(self, source: Any, sink: Any, kept: bytearray, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError):
            while data := await source.receive_some(65536):
                kept += data
                await sink.send_all(data)
        scope.cancel()


@asynccontextmanager
async def run_relay(live: Live) -> AsyncIterator[Relay]:
    address = live.server.address
    assert isinstance(address, TcpAddress)
    relay = Relay(address)
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        yield relay
        nursery.cancel_scope.cancel()


@attrs.define
class Bystander:
    """A well-behaved client; every call it makes must be answered, and soon."""

    calls: int = 0
    slowest: float = 0.0
    """Seconds of CPU time, of client and server together: others on the machine do not count."""

    async def behave(self, live: Live) -> None:
        async with live.open_channel() as channel:
            while True:
                began = time.thread_time()
                assert await channel.unary("/test.Probe/Echo", b"well", bytes) == b"well"
                self.slowest = max(self.slowest, time.thread_time() - began)
                self.calls += 1

    async def turns(self, calls: int) -> None:
        """Wait until it has made so many calls more: the server has had time to do its worst."""
        target = self.calls + calls
        with trio.fail_after(30):
            while self.calls < target:
                await trio.lowlevel.checkpoint()


@asynccontextmanager
async def beside(live: Live) -> AsyncIterator[Bystander]:
    """A well-behaved client beside the block."""
    client = Bystander()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.behave, live)
        await client.turns(1)
        yield client
        await client.turns(3)
        nursery.cancel_scope.cancel()
    # A stall of seconds is what the attacks aim at.
    assert client.slowest < 1.0


@pytest.fixture
def bystander() -> Any:
    """A well-behaved client that must notice nothing: `async with bystander(live) as client`."""
    return beside


@pytest.fixture
def connect() -> Any:
    """Opens further raw clients: `async with connect(live) as client`."""
    return connect_raw


@pytest.fixture(scope="session")
def serving() -> Any:
    """Runs servers on the fast wire, for tests that start Trio: `async with serving() as live`."""
    return partial(run_live, WIRES["trio"])


@pytest.fixture(scope="session")
def relay() -> Any:
    """Listens in on clients: `async with relay(live) as between`, which has a `target`."""
    return run_relay


@pytest.fixture
def frame() -> Any:
    """Puts gRPC's prefix before a message."""
    return framed
