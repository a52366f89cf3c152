"""A server with a method that is called back, whose calls the test answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from grpclib.const import Cardinality, Handler

from anyserve.transport.address import TcpAddress
from anyserve.transport.callback import Callback, UnaryCall
from anyserve.transport.rpc import Limits
from anyserve.transport.server import Server

LIMIT = 8 * 1024 * 1024
"""Bytes of the largest message."""


@attrs.define(eq=False)
class Held:
    """A call that has come, and what it has heard."""

    call: UnaryCall
    message: bytes
    gone: int = 0
    """How often it was told that nobody waits."""
    released: int = 0
    """How often its answer was given back."""
    news: trio.Event = attrs.field(factory=trio.Event)

    def on_gone(self) -> None:
        self.gone += 1
        self.news.set()

    def release(self) -> None:
        self.released += 1
        self.news.set()

    def answer(self, *pieces: bytes) -> None:
        self.call.answer(pieces, self.release)

    async def hears(self) -> None:
        """Wait until it hears something."""
        with trio.fail_after(5):
            await self.news.wait()


class Desk:
    """A service with one method, whose calls the test answers."""

    def __init__(self) -> None:
        self.calls: list[Held] = []
        self.at_once: Callable[[Held], None] = lambda held: None
        """What it does before `begin` returns."""
        self._came = trio.Event()

    def __mapping__(self) -> dict[str, Handler]:
        method = Handler(Callback(self.begin), Cardinality.UNARY_UNARY, bytes, bytes)
        return {"/test.Probe/Ask": method}

    def begin(self, call: UnaryCall, message: bytes) -> None:
        held = Held(call, message)
        call.on_gone = held.on_gone
        self.calls.append(held)
        self._came.set()
        self.at_once(held)

    async def call(self, number: int = 0) -> Held:
        """The call with that number, once it is there."""
        with trio.fail_after(5):
            while len(self.calls) <= number:
                self._came = trio.Event()
                await self._came.wait()
        return self.calls[number]


@attrs.define
class Office:
    """A server with a desk, and one raw client of it."""

    server: Server
    desk: Desk
    raw: Any
    stop: Callable[[], None]
    ask: Callable[..., Any]
    """Sends a message in the way that is under test; the stream."""

    @property
    def calls(self) -> int:
        """Calls in flight."""
        return self.server.statistics().calls

    async def until_idle(self) -> None:
        """Until the server counts no call; five seconds at most."""
        with trio.fail_after(5):
            while self.calls:
                await trio.lowlevel.checkpoint()


async def _whole(raw: Any, body: bytes, **extra: str) -> int:
    stream: int = await raw.call("Ask", body, **extra)
    return stream


async def _in_pieces(raw: Any, body: bytes, **extra: str) -> int:
    stream: int = await raw.call("Ask", None, end=False, **extra)
    for piece in (body[:3], body[3:]):
        await trio.testing.wait_all_tasks_blocked()
        raw.h2.send_data(stream, piece)
        await raw.flush()
    await trio.testing.wait_all_tasks_blocked()
    raw.h2.end_stream(stream)
    await raw.flush()
    return stream


WAYS = {"whole": _whole, "in pieces": _in_pieces}


@asynccontextmanager
async def run_office(
    wire: Any, connect: Any, frame: Any, way: str = "whole", limits: Limits | None = None
) -> AsyncIterator[Office]:
    desk, scope = Desk(), trio.CancelScope()
    limits = limits or Limits(max_message_bytes=LIMIT)

    async def run(task_status: trio.TaskStatus[Server]) -> None:
        address = TcpAddress("127.0.0.1", 0)
        with scope:
            await wire.serve([desk], address, limits=limits, task_status=task_status)

    async with trio.open_nursery() as nursery:
        office = Office(await nursery.start(run), desk, None, scope.cancel, None)
        async with connect(office) as raw:
            office.raw = raw
            office.ask = lambda message=b"?", **extra: WAYS[way](raw, frame(message), **extra)
            await raw.greet()
            yield office
        scope.cancel()


@pytest.fixture
def open_office(wire: Any, connect: Any, frame: Any) -> Any:
    """Opens one; the way and the server's limits may be given."""
    return partial(run_office, wire, connect, frame)


@pytest.fixture(params=WAYS)
async def office(open_office: Any, request: pytest.FixtureRequest) -> AsyncIterator[Office]:
    """Both ways of each wire."""
    async with open_office(request.param) as office:
        yield office
