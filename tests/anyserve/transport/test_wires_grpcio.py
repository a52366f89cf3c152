"""grpcio, unmodified, as the client of our server and as the server of our channel."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import trio

from anyserve.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Unavailable,
    Unimplemented,
    Unknown,
)

MIB = 1024 * 1024
UNLIMITED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A subchannel of its own for each test, so that no test meets another's back-off.
    ("grpc.use_local_subchannel_pool", 1),
]


async def in_thread(live: Any, work: Callable[[grpc.Channel], Any], **options: Any) -> Any:
    """Run `work` with a grpcio channel, in a thread."""

    def run() -> Any:
        with grpc.insecure_channel(live.target, options=UNLIMITED, **options) as channel:
            return work(channel)

    with trio.fail_after(20):
        return await trio.to_thread.run_sync(run)


@pytest.mark.parametrize("size", [0, 100, 4 * MIB, 32 * MIB])
async def test_grpcio_unary_of_any_size(live: Any, size: int):
    message = b"x" * size
    answer = await in_thread(
        live, lambda channel: channel.unary_unary("/test.Probe/Echo")(message, timeout=15)
    )
    assert answer == message


async def test_grpcio_streams_of_all_kinds(live: Any):
    def work(channel: grpc.Channel) -> Any:
        many = [b"%d" % number for number in range(100)]
        assert channel.stream_unary("/test.Probe/Join")(iter(many)) == b"".join(many)
        assert list(channel.unary_stream("/test.Probe/Repeat")(b"5,50")) == [b"mmmmm"] * 50
        assert list(channel.stream_stream("/test.Probe/EchoAll")(iter(many))) == many
        assert list(channel.stream_stream("/test.Probe/EchoAll")(iter([]))) == []

    await in_thread(live, work)


async def test_grpcio_ping_pong(live: Any):
    def work(channel: grpc.Channel) -> list[bytes]:
        gate = threading.Semaphore(1)
        answers: list[bytes] = []

        def requests() -> Iterator[bytes]:
            for number in range(20):
                gate.acquire()
                yield b"%d" % number

        for answer in channel.stream_stream("/test.Probe/EchoAll")(requests()):
            answers.append(answer)
            gate.release()
        return answers

    assert await in_thread(live, work) == [b"%d" % number for number in range(20)]


async def test_grpcio_metadata_of_both_ends(live: Any):
    def work(channel: grpc.Channel) -> None:
        metadata = [("key", "value"), ("raw-bin", b"\0\xff")]
        channel.unary_unary("/test.Probe/Echo")(b"", metadata=metadata)
        call = channel.stream_stream("/test.Probe/EchoAll")(iter([b"x"]))
        assert ("early", "yes") in call.initial_metadata()
        assert list(call) == [b"x"]
        assert ("late", "yes") in call.trailing_metadata()

    await in_thread(live, work)
    assert live.probe.seen.metadata["key"] == "value"
    assert live.probe.seen.metadata["raw-bin"] == b"\0\xff"


@pytest.mark.parametrize(
    "method, message, code, details",
    [
        (
            "Fail",
            b"own",
            grpc.StatusCode.NOT_FOUND,
            "no model 'größe', there is\necho: 100 %",
        ),
        ("Fail", b"bug", grpc.StatusCode.INTERNAL, "KeyError: 'a bug'"),
        ("Nope", b"", grpc.StatusCode.UNIMPLEMENTED, "no method '/test.Probe/Nope'"),
        ("/no.Service/Nope", b"", grpc.StatusCode.UNIMPLEMENTED, "no method '/no.Service/Nope'"),
    ],
)
async def test_grpcio_statuses(
    live: Any, method: str, message: bytes, code: grpc.StatusCode, details: str
):
    path = method if method.startswith("/") else f"/test.Probe/{method}"

    def work(channel: grpc.Channel) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path)(message)
        return caught.value.code(), caught.value.details()

    assert await in_thread(live, work) == (code, details)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_grpcio_compresses(live: Any, compression: grpc.Compression):
    def work(channel: grpc.Channel) -> None:
        message = b"compress me " * 10_000
        assert channel.unary_unary("/test.Probe/Echo")(message) == message
        many = [message, b"", b"x"]
        assert list(channel.stream_stream("/test.Probe/EchoAll")(iter(many))) == many

    await in_thread(live, work, compression=compression)


async def test_grpcio_deadline_ends_the_handler(live: Any):
    def work(channel: grpc.Channel) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Probe/Hang")(b"", timeout=0.2)
        code: grpc.StatusCode = caught.value.code()
        return code

    assert await in_thread(live, work) is grpc.StatusCode.DEADLINE_EXCEEDED
    await live.probe.until_ended()
    assert live.probe.ended == ["cancelled"]


async def test_grpcio_cancels_after_it_has_begun(live: Any):
    def work(channel: grpc.Channel) -> grpc.StatusCode:
        call = channel.unary_unary("/test.Probe/Hang").future(b"")
        trio.from_thread.run(live.probe.started.wait)
        call.cancel()
        assert channel.unary_unary("/test.Probe/Echo")(b"next") == b"next"
        code: grpc.StatusCode = call.code()
        return code

    assert await in_thread(live, work) is grpc.StatusCode.CANCELLED
    await live.probe.until_ended()
    assert live.probe.ended == ["cancelled"]


async def test_grpcio_cancels_after_the_first_response(live: Any):
    def work(channel: grpc.Channel) -> None:
        call = channel.unary_stream("/test.Probe/Repeat")(b"1000,1000000")
        assert next(call) == b"m" * 1000
        call.cancel()
        assert channel.unary_unary("/test.Probe/Echo")(b"next") == b"next"

    await in_thread(live, work)
    await live.probe.until_ended()
    assert live.probe.ended == ["cancelled"]


async def test_grpcio_many_calls_at_once(live: Any):
    def work(channel: grpc.Channel) -> set[bytes]:
        echo = channel.unary_unary("/test.Probe/Echo")
        calls = [echo.future(b"%d" % number) for number in range(500)]
        return {call.result() for call in calls}

    assert len(await in_thread(live, work)) == 500


class Theirs:
    """A grpcio server for our channel."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(4)
        self.server = grpc.server(self.pool, options=UNLIMITED)
        self.hanging = threading.Event()
        self.cancelled = threading.Event()
        self.release = threading.Event()
        self.remaining: float | None = None
        self.metadata: list[Any] = []
        self.server.add_generic_rpc_handlers((self._handlers(),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def _handlers(self) -> grpc.GenericRpcHandler:
        def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.remaining = context.time_remaining()
            self.metadata = list(context.invocation_metadata())
            return request

        def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "schön: nein")

        def bug(request: bytes, context: grpc.ServicerContext) -> bytes:
            raise KeyError("theirs")

        def echo_all(requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
            context.send_initial_metadata([("early", "yes")])
            yield from requests
            context.set_trailing_metadata([("late", "yes"), ("raw-bin", b"\0\xff")])

        def hang(request: bytes, context: grpc.ServicerContext) -> bytes:
            context.add_callback(self.cancelled.set)
            self.hanging.set()
            self.release.wait(10)
            return b"released"

        return grpc.method_handlers_generic_handler(
            "t.T",
            {
                "Echo": grpc.unary_unary_rpc_method_handler(echo),
                "Fail": grpc.unary_unary_rpc_method_handler(fail),
                "Bug": grpc.unary_unary_rpc_method_handler(bug),
                "EchoAll": grpc.stream_stream_rpc_method_handler(echo_all),
                "Hang": grpc.unary_unary_rpc_method_handler(hang),
            },
        )

    def stop(self, grace: float | None = None) -> None:
        self.server.stop(grace).wait(10)


@pytest.fixture
async def theirs() -> AsyncIterator[Theirs]:
    theirs = Theirs()
    yield theirs
    theirs.release.set()
    await trio.to_thread.run_sync(theirs.stop)
    theirs.pool.shutdown()


async def test_our_channel_calls_a_grpcio_server(wire: Any, theirs: Theirs):
    async with wire.open_channel(f"127.0.0.1:{theirs.port}") as channel:
        with trio.fail_after(20):
            for size in (0, 10, 4 * MIB, 20 * MIB):
                assert await channel.unary("/t.T/Echo", b"x" * size, bytes) == b"x" * size
        assert theirs.remaining == pytest.approx(20, abs=5)
        await channel.unary("/t.T/Echo", b"", bytes, metadata={"key": "v", "raw-bin": b"\xff"})
        assert ("key", "v") in theirs.metadata
        assert ("raw-bin", b"\xff") in theirs.metadata


async def test_our_channel_streams_with_a_grpcio_server(wire: Any, theirs: Theirs):
    async with (
        wire.open_channel(f"127.0.0.1:{theirs.port}") as channel,
        channel.stream("/t.T/EchoAll", bytes, bytes) as stream,
    ):
        for number in range(20):
            await stream.send(b"%d" % number)
            assert await stream.recv() == b"%d" % number
        assert stream.initial_metadata is not None
        assert stream.initial_metadata["early"] == "yes"
        await stream.end()
        assert await stream.recv() is None
        assert stream.trailing_metadata is not None
        assert stream.trailing_metadata["late"] == "yes"
        assert stream.trailing_metadata["raw-bin"] == b"\0\xff"


async def test_a_grpcio_servers_errors_are_ours(wire: Any, theirs: Theirs):
    async with wire.open_channel(f"127.0.0.1:{theirs.port}") as channel:
        with pytest.raises(FailedPrecondition) as caught:
            await channel.unary("/t.T/Fail", b"", bytes)
        assert caught.value.message == "schön: nein"
        with pytest.raises(Unknown, match="theirs"):
            await channel.unary("/t.T/Bug", b"", bytes)
        with pytest.raises(Unimplemented):
            await channel.unary("/t.T/Nope", b"", bytes)


async def test_our_cancellation_and_deadline_reach_a_grpcio_server(wire: Any, theirs: Theirs):
    async with wire.open_channel(f"127.0.0.1:{theirs.port}") as channel:
        # Whichever of the two clocks comes first.
        with pytest.raises((trio.TooSlowError, DeadlineExceeded)), trio.fail_after(0.2):
            await channel.unary("/t.T/Hang", b"", bytes)
        assert await trio.to_thread.run_sync(theirs.cancelled.wait, 5)


async def test_our_call_survives_a_grpcio_servers_goaway(wire: Any, theirs: Theirs):
    async with wire.open_channel(f"127.0.0.1:{theirs.port}") as channel:
        answers: list[bytes] = []

        async def hang() -> None:
            answers.append(await channel.unary("/t.T/Hang", b"", bytes))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang)
            await channel.unary("/t.T/Echo", b"", bytes)
            assert await trio.to_thread.run_sync(theirs.hanging.wait, 5)
            stopped = theirs.server.stop(10)
            with trio.fail_after(5):
                while channel._connection is not None and channel._connection.usable:
                    await trio.lowlevel.checkpoint()
            with pytest.raises(Unavailable):
                await channel.unary("/t.T/Echo", b"", bytes)
            theirs.release.set()
        assert answers == [b"released"]
        assert await trio.to_thread.run_sync(stopped.wait, 5)
