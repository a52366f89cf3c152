"""Unary methods that are called back: with a task and without, on either wire.

A request that comes in one piece takes no task of the fast wire; in two pieces, and on the
reference, the same method runs as a task. What it promises is the same.
"""

from __future__ import annotations

import gzip
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from grpclib.const import Cardinality, Handler

from anyserve.errors import FailedPrecondition, NotFound
from anyserve.transport.address import TcpAddress
from anyserve.transport.callback import Callback, UnaryCall
from anyserve.transport.rpc import Limits
from anyserve.transport.server import Server

LIMIT = 8 * 1024 * 1024
LARGE = 1024 * 1024
"""Bytes of an answer that is more than a client's window, 64 KiB."""
OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND = "0", "3", "4", "5"
RESOURCE_EXHAUSTED, FAILED_PRECONDITION, INTERNAL, UNAVAILABLE = "8", "9", "13", "14"
REFUSED_STREAM, CANCEL = 7, 8


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


@pytest.fixture(params=WAYS)
async def office(
    wire: Any, connect: Any, frame: Any, request: pytest.FixtureRequest
) -> AsyncIterator[Office]:
    """Both ways of each wire."""
    async with run_office(wire, connect, frame, request.param) as office:
        yield office


@pytest.mark.parametrize("size", [0, 1, 1000, 60_000, 300_000])
async def test_an_answer_of_any_size_arrives_with_ok(office: Office, frame: Any, size: int):
    stream = await office.ask(b"what?")
    held = await office.desk.call()
    assert (held.message, held.gone, held.released, office.calls) == (b"what?", 0, 0, 1)
    body = bytes(size)
    held.answer(body[:7], memoryview(body)[7:])
    answer = await office.raw.answer(stream)
    assert (answer.status, answer.data, answer.reset) == (OK, frame(body), None)
    await held.hears()
    assert (held.gone, held.released) == (0, 1)
    await office.until_idle()


async def test_an_answer_may_be_given_before_begin_returns(office: Office, frame: Any):
    office.desk.at_once = lambda held: held.answer(b"at once")
    answer = await office.raw.answer(await office.ask())
    assert (answer.status, answer.data) == (OK, frame(b"at once"))
    await office.until_idle()
    assert [(held.gone, held.released) for held in office.desk.calls] == [(0, 1)]


async def test_a_call_may_fail_later(office: Office):
    stream = await office.ask()
    (await office.desk.call()).call.fail(NotFound("no such größe"))
    answer = await office.raw.answer(stream)
    assert answer.status == NOT_FOUND
    assert answer.headers["grpc-message"] == "no such gr%C3%B6%C3%9Fe"
    await office.until_idle()
    assert office.desk.calls[0].gone == 0


async def test_what_begin_raises_ends_the_call_and_nobody_is_told_of_its_end(office: Office):
    def refuse(held: Held) -> None:
        raise FailedPrecondition("not now")

    office.desk.at_once = refuse
    answer = await office.raw.answer(await office.ask())
    assert (answer.status, answer.headers["grpc-message"]) == (FAILED_PRECONDITION, "not now")
    await office.until_idle()
    held = office.desk.calls[0]
    held.answer(b"too late")
    assert (held.gone, held.released) == (0, 1)


async def test_an_exception_of_another_kind_is_internal_and_logged(
    office: Office, caplog: pytest.LogCaptureFixture
):
    def fail(held: Held) -> None:
        raise KeyError("a bug")

    office.desk.at_once = fail
    with caplog.at_level(logging.ERROR):
        answer = await office.raw.answer(await office.ask())
    assert answer.status == INTERNAL
    assert "/test.Probe/Ask failed" in caplog.text
    assert "Traceback" in caplog.text
    await office.until_idle()


async def test_the_first_answer_counts_and_later_ones_are_given_back(office: Office, frame: Any):
    stream = await office.ask()
    held = await office.desk.call()
    later = Held(held.call, b"")
    held.answer(b"first")
    later.answer(b"second")
    assert later.released == 1
    held.call.fail(NotFound("too late"))
    answer = await office.raw.answer(stream)
    assert (answer.status, answer.data) == (OK, frame(b"first"))
    await office.until_idle()
    later.answer(b"third")
    assert (held.gone, held.released, later.released) == (0, 1, 2)


async def test_an_answer_after_a_failure_is_given_back(office: Office):
    stream = await office.ask()
    held = await office.desk.call()
    held.call.fail(NotFound("first"))
    held.answer(b"second")
    assert held.released == 1
    assert (await office.raw.answer(stream)).status == NOT_FOUND
    await office.until_idle()


async def reset(office: Office, stream: int) -> None:
    office.raw.h2.reset_stream(stream, CANCEL)
    await office.raw.flush()


async def hang_up(office: Office, stream: int) -> None:
    await office.raw.socket.aclose()


async def half_close(office: Office, stream: int) -> None:
    await office.raw.socket.send_eof()


async def stop(office: Office, stream: int) -> None:
    office.stop()


ENDS = [reset, hang_up, half_close, stop]


@pytest.mark.parametrize("end", ENDS)
async def test_when_nobody_waits_any_more_the_call_is_told_once(office: Office, end: Any):
    stream = await office.ask()
    held = await office.desk.call()
    await end(office, stream)
    await held.hears()
    await office.until_idle()
    held.answer(b"to nobody")
    held.call.fail(NotFound("to nobody"))
    await trio.testing.wait_all_tasks_blocked()
    assert (held.gone, held.released) == (1, 1)


@pytest.mark.parametrize("end", ENDS)
async def test_an_answer_that_waits_for_its_client_is_given_back_once(office: Office, end: Any):
    office.raw.auto_window = False
    stream = await office.ask()
    held = await office.desk.call()
    held.answer(bytes(LARGE))
    await office.raw.until(lambda: len(office.raw.answers[stream].data) == 65_535)
    assert (held.released, office.calls) == (0, 1)
    await end(office, stream)
    await held.hears()
    await office.until_idle()
    assert (held.gone, held.released) == (0, 1)


async def test_an_answer_waits_for_its_client_and_is_given_back_when_sent(
    office: Office, frame: Any
):
    office.raw.auto_window = False
    stream = await office.ask()
    held = await office.desk.call()
    held.answer(bytes(LARGE))
    await office.raw.until(lambda: len(office.raw.answers[stream].data) == 65_535)
    await trio.testing.wait_all_tasks_blocked()
    assert (held.released, office.calls) == (0, 1)
    for stream_id in (None, stream):
        office.raw.h2.increment_flow_control_window(2 * LARGE, stream_id)
    await office.raw.flush()
    answer = await office.raw.answer(stream)
    assert (answer.status, answer.data) == (OK, frame(bytes(LARGE)))
    await office.until_idle()
    assert (held.gone, held.released) == (0, 1)


async def test_an_answer_that_waits_past_the_deadline_ends_with_it(
    mock_clock: trio.testing.MockClock, office: Office
):
    office.raw.auto_window = False
    stream = await office.ask(grpc_timeout="10S")
    held = await office.desk.call()
    held.answer(bytes(LARGE))
    await office.raw.until(lambda: len(office.raw.answers[stream].data) == 65_535)
    assert held.released == 0
    mock_clock.jump(11)
    await held.hears()
    await office.until_idle()
    assert (held.gone, held.released) == (0, 1)
    for stream_id in (None, stream):  # the status is behind what the client has not read
        office.raw.h2.increment_flow_control_window(LARGE, stream_id)
    await office.raw.flush()
    answer = await office.raw.answer(stream)
    assert answer.status == DEADLINE_EXCEEDED
    assert len(answer.data) < LARGE


async def test_stopping_the_server_tells_the_client_unavailable(office: Office):
    stream = await office.ask()
    await office.desk.call()
    office.stop()
    answer = await office.raw.answer(stream)
    assert answer.status == UNAVAILABLE
    assert answer.headers["grpc-message"] == "the server is stopping"


async def test_the_method_sees_metadata_and_deadline(office: Office):
    await office.ask(grpc_timeout="1000S", key="one", raw_bin="AP8=")
    first = await office.desk.call()
    await office.ask()
    second = await office.desk.call(1)
    assert list(first.call.metadata) == [("key", "one"), ("raw-bin", b"\0\xff")]
    assert first.call.deadline == pytest.approx(trio.current_time() + 1000, abs=5)
    assert (list(second.call.metadata), second.call.deadline) == ([], math.inf)
    for held in (first, second):
        held.answer(b"")


async def test_a_drain_waits_for_the_call(office: Office, frame: Any):
    await office.ask()
    held = await office.desk.call()
    drained = trio.Event()

    async def drain() -> None:
        await office.server.drain()
        drained.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        await trio.testing.wait_all_tasks_blocked()
        assert not drained.is_set()
        held.answer(b"finished")
        with trio.fail_after(5):
            await drained.wait()
            said = b""  # h2 reads nothing behind a GOAWAY
            while frame(b"finished") not in said:
                said += await office.raw.socket.receive_some(65536)


async def test_the_calls_of_a_connection_are_counted_against_its_limit(
    wire: Any, connect: Any, frame: Any
):
    async with run_office(wire, connect, frame, limits=Limits(max_streams=2)) as office:
        streams = [await office.ask(b"0"), await office.ask(b"1")]
        held = await office.desk.call(1)
        # It has not read the limit from the server's settings, and goes over it.
        assert (await office.raw.answer(await office.ask())).reset == REFUSED_STREAM
        assert office.calls == 2
        held.answer(b"room again")
        await office.raw.answer(streams[int(held.message)])
        stream = await office.ask()
        (await office.desk.call(2)).answer(b"taken")
        assert (await office.raw.answer(stream)).status == OK


async def test_a_call_whose_message_does_not_end_is_begun_when_it_does(
    wire: Any, connect: Any, frame: Any
):
    async with run_office(wire, connect, frame) as office:
        stream = await office.raw.call("Ask", frame(b"all"), end=False)
        await trio.testing.wait_all_tasks_blocked()
        office.raw.h2.send_headers(stream, [("late", "yes")], end_stream=True)
        await office.raw.flush()
        held = await office.desk.call()
        assert held.message == b"all"
        held.answer(b"with trailers")
        assert (await office.raw.answer(stream)).data == frame(b"with trailers")


async def test_a_client_that_resets_before_its_message_is_whole_begins_nothing(
    wire: Any, connect: Any, frame: Any
):
    async with run_office(wire, connect, frame) as office:
        stream = await office.raw.call("Ask", frame(b"half")[:-1], end=False)
        await trio.testing.wait_all_tasks_blocked()
        await reset(office, stream)
        await office.until_idle()
        assert office.desk.calls == []


@pytest.mark.parametrize("together", [True, False], ids=["together", "apart"])
async def test_a_reset_right_behind_the_request_is_told(
    wire: Any, connect: Any, frame: Any, together: bool
):
    """In one read with it, where even an answer at once comes too late."""
    async with run_office(wire, connect, frame) as office:
        raw, desk = office.raw, office.desk
        desk.at_once = lambda held: held.answer(bytes(LARGE))
        stream = raw.h2.get_next_available_stream_id()
        raw.h2.send_headers(stream, raw.head("Ask"))
        raw.h2.send_data(stream, frame(b"?"), end_stream=True)
        if not together:
            await raw.flush()
            await desk.call()
        raw.h2.reset_stream(stream, CANCEL)
        await raw.flush()
        following = await office.ask()
        desk.at_once = lambda held: held.answer(b"")
        assert (await raw.answer(following)).status == OK
        await office.until_idle()
        assert all(held.released == 1 for held in desk.calls)


@pytest.mark.parametrize("size", [0, 5, 100_000])
async def test_a_compressed_message_is_inflated_first(office: Office, frame: Any, size: int):
    packed = frame(gzip.compress(bytes(size)), flag=1)
    stream = await office.raw.call("Ask", packed, grpc_encoding="gzip")
    held = await office.desk.call()
    assert held.message == bytes(size)
    held.answer(b"")
    assert (await office.raw.answer(stream)).status == OK


def cut(frame: Any) -> bytes:
    body: bytes = frame(b"cut short")
    return body[:-1]


BODIES = {
    "over the limit": (lambda frame: b"\0" + (LIMIT + 1).to_bytes(4, "big"), RESOURCE_EXHAUSTED),
    "cut short": (cut, INVALID_ARGUMENT),
    "with half a prefix": (lambda frame: b"\0\0", INVALID_ARGUMENT),
    "with no message": (lambda frame: b"", INVALID_ARGUMENT),
    "compressed as nobody said": (lambda frame: frame(b"x", flag=1), INTERNAL),
    "of a flag that is none": (lambda frame: frame(b"x", flag=2), INTERNAL),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_request_that_is_wrong_never_begins(wire: Any, connect: Any, frame: Any, name: str):
    body, status = BODIES[name]
    async with run_office(wire, connect, frame) as office:
        answer = await office.raw.answer(await office.raw.call("Ask", body(frame)))
        assert answer.status == status
        await office.until_idle()
        assert office.desk.calls == []


async def test_a_request_that_is_nothing_but_headers_never_begins(
    wire: Any, connect: Any, frame: Any
):
    async with run_office(wire, connect, frame) as office:
        answer = await office.raw.answer(await office.raw.call("Ask"))
        assert answer.status == INVALID_ARGUMENT
        assert office.desk.calls == []


async def test_a_task_of_a_call_ends_at_its_deadline(
    mock_clock: trio.testing.MockClock, wire: Any, connect: Any, frame: Any
):
    """Without a task the method alone keeps the deadline."""
    async with run_office(wire, connect, frame, "in pieces") as office:
        stream = await office.ask(grpc_timeout="10S")
        held = await office.desk.call()
        mock_clock.jump(11)
        assert (await office.raw.answer(stream)).status == DEADLINE_EXCEEDED
        await office.until_idle()
        held.answer(b"too late")
        assert (held.gone, held.released) == (1, 1)


async def test_many_calls_in_flight_are_answered_in_any_order(office: Office, frame: Any):
    streams = [await office.ask(b"%d" % number) for number in range(20)]
    await office.desk.call(19)
    assert office.calls == 20
    for held in reversed(office.desk.calls):
        held.answer(held.message)
    for number, stream in enumerate(streams):
        assert (await office.raw.answer(stream)).data == frame(b"%d" % number)
    await office.until_idle()
    assert all((held.gone, held.released) == (0, 1) for held in office.desk.calls)
