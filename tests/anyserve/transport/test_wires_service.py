"""The server as our own channel and the system see it: calls, cancellation, drain, listening."""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from anyserve_protos.grpc.health.v1 import HealthCheckRequest
from grpclib.const import Cardinality, Handler

from anyserve.errors import (
    AnyServeError,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from anyserve.transport.address import TcpAddress, UnixAddress
from anyserve.transport.listening import CannotListen

MIB = 1024 * 1024


@pytest.fixture
async def channel(live: Any) -> AsyncIterator[Any]:
    async with live.open_channel() as channel:
        yield channel


async def call(channel: Any, method: str, message: bytes = b"") -> bytes:
    with trio.fail_after(10):
        return await channel.unary(f"/test.Probe/{method}", message, bytes)


@pytest.mark.parametrize("size", [0, 1, 16_384, 100_000, 5 * MIB, 33 * MIB])
async def test_a_message_of_any_size_comes_back(channel: Any, size: int):
    message = os.urandom(min(size, 1000)) * (size // 1000 + 1)
    message = message[:size]
    assert await call(channel, "Echo", message) == message


async def test_many_calls_share_a_connection(live: Any, channel: Any):
    answers: dict[int, bytes] = {}

    async def one(number: int) -> None:
        answers[number] = await call(channel, "Echo", b"%d" % number)

    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(one, number)
    assert answers == {number: b"%d" % number for number in range(300)}
    assert live.server.statistics().connections == 1
    assert live.server.statistics().calls == 0


async def test_streams_run_in_both_directions_with_metadata(channel: Any):
    async with channel.stream("/test.Probe/EchoAll", bytes, bytes) as stream:
        for number in range(5):
            await stream.send(b"%d" % number)
            assert await stream.recv() == b"%d" % number
        assert stream.initial_metadata is not None
        assert stream.initial_metadata["early"] == "yes"
        await stream.end()
        assert await stream.recv() is None
        assert stream.trailing_metadata is not None
        assert stream.trailing_metadata["late"] == "yes"


async def test_a_client_stream_and_a_server_stream(channel: Any):
    async with channel.stream("/test.Probe/Join", bytes, bytes) as stream:
        await stream.send(b"a")
        await stream.send(b"b", end=True)
        assert [message async for message in stream] == [b"ab"]
    async with channel.stream("/test.Probe/Repeat", bytes, bytes) as stream:
        await stream.send(b"3,4", end=True)
        assert [message async for message in stream] == [b"mmm"] * 4


async def test_concurrent_senders_on_one_stream_keep_their_messages_whole(channel: Any):
    sizes = [10, 3 * MIB, 20, 2 * MIB, 30]
    async with (
        channel.stream("/test.Probe/EchoAll", bytes, bytes) as stream,
        trio.open_nursery() as nursery,
    ):
        for size in sizes:
            nursery.start_soon(stream.send, bytes([size % 251]) * size)
        got = [await stream.recv() for _ in sizes]
        assert sorted(len(message or b"") for message in got) == sorted(sizes)
        assert all(message == message[:1] * len(message) for message in got if message)


async def test_an_error_of_ours_arrives_with_its_status_and_message(channel: Any):
    with pytest.raises(NotFound) as caught:
        await call(channel, "Fail", b"own")
    assert caught.value.message == "no model 'größe', there is\necho: 100 %"


async def test_an_error_in_the_handlers_nursery_is_found_in_its_groups(channel: Any):
    with pytest.raises(NotFound, match="from a child"):
        await call(channel, "Fail", b"group")


async def test_another_exception_is_internal_and_its_traceback_only_in_the_log(
    channel: Any, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.ERROR), pytest.raises(Internal) as caught:
        await call(channel, "Fail", b"bug")
    assert caught.value.message == "KeyError: 'a bug'"
    assert "/test.Probe/Fail failed" in caplog.text
    assert "Traceback" in caplog.text


async def test_a_handler_that_sends_no_reply_is_internal(channel: Any):
    with pytest.raises(Internal, match="without a reply"):
        await call(channel, "Silent")


async def test_an_unknown_method_is_unimplemented(channel: Any):
    with pytest.raises(Unimplemented, match="Nothing"):
        await call(channel, "Nothing")


async def test_a_message_over_the_limit_is_refused_and_the_connection_lives(live_small: Any):
    async with live_small.open_channel() as channel:
        with pytest.raises(ResourceExhausted, match="over the limit of 8388608 bytes"):
            await call(channel, "Echo", bytes(8 * MIB + 1))
        assert await call(channel, "Echo", bytes(8 * MIB)) == bytes(8 * MIB)
        assert live_small.server.statistics().connections == 1


async def test_the_callers_deadline_reaches_the_handler(live: Any, channel: Any):
    with trio.fail_after(1000):
        await channel.unary("/test.Probe/Echo", b"", bytes)
    assert live.probe.seen.deadline == pytest.approx(trio.current_time() + 1000, abs=5)
    await channel.unary("/test.Probe/Echo", b"", bytes)
    assert live.probe.seen.deadline == float("inf")


async def test_the_handler_sees_metadata_and_peer(live: Any, channel: Any):
    metadata = [("key", "one"), ("key", "two"), ("raw-bin", b"\0\xff")]
    await channel.unary("/test.Probe/Echo", b"", bytes, metadata=metadata)
    assert list(live.probe.seen.metadata.items()) == metadata
    assert live.probe.seen.peer.startswith("127.0.0.1:")


async def test_the_server_ends_a_call_at_its_deadline(live: Any, raw: Any, frame: Any):
    started = trio.current_time()
    answer = await raw.answer(await raw.call("Hang", frame(b""), grpc_timeout="30m"))
    assert answer.status == "4"
    assert 0.03 <= trio.current_time() - started < 3
    assert live.probe.ended == ["cancelled"]


async def test_a_spent_deadline_is_answered_at_once(raw: Any, frame: Any):
    assert (await raw.answer(await raw.call("Hang", frame(b""), grpc_timeout="0n"))).status == "4"


async def test_cancelling_the_caller_cancels_the_handler(live: Any, channel: Any):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, channel, "Hang")
        await live.probe.started.wait()
        nursery.cancel_scope.cancel()
    await live.probe.until_ended()
    assert live.probe.ended == ["cancelled"]
    assert await call(channel, "Echo", b"still here") == b"still here"
    assert live.server.statistics().connections == 1


async def test_a_broken_connection_cancels_the_handler(live: Any, connect: Any, frame: Any):
    async with connect(live) as client:
        await client.greet()
        await client.call("Hang", frame(b""))
        await live.probe.started.wait()
    await live.probe.until_ended()
    assert live.probe.ended == ["cancelled"]


async def test_a_half_closed_socket_counts_as_gone(live: Any, raw: Any, frame: Any):
    await raw.call("Hang", frame(b""))
    await live.probe.started.wait()
    await raw.socket.send_eof()
    await live.probe.until_ended()


async def test_a_call_counts_until_its_handler_has_ended(live: Any, channel: Any):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, channel, "Wait", b"x")
        await live.probe.started.wait()
        assert live.server.statistics().calls == 1
        live.probe.release.set()
    assert live.server.statistics().calls == 0


async def test_stopping_tells_clients_unavailable(live: Any):
    async with live.open_channel() as channel:
        failures: list[AnyServeError] = []

        async def hang() -> None:
            try:
                await call(channel, "Hang")
            except AnyServeError as error:
                failures.append(error)

        async with trio.open_nursery() as calls:
            calls.start_soon(hang)
            await live.probe.started.wait()
            live.stop()
    assert [type(error) for error in failures] == [Unavailable]
    assert "stopping" in failures[0].message
    assert live.probe.ended == ["cancelled"]


async def test_a_drain_lets_calls_finish_and_takes_no_new_ones(live: Any, channel: Any):
    answers: list[bytes] = []

    async def finish() -> None:
        answers.append(await call(channel, "Wait", b"finished"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish)
        await live.probe.started.wait()
        nursery.start_soon(live.server.drain)
        await trio.testing.wait_all_tasks_blocked()
        assert live.server.statistics().draining
        with pytest.raises(Unavailable, match=f"cannot connect to {live.target}"):
            await call(channel, "Echo")
        assert not answers
        live.probe.release.set()
    assert answers == [b"finished"]


async def test_a_call_that_crosses_the_goaway_never_begins(live: Any, raw: Any, frame: Any):
    waiting = await raw.call("Wait", frame(b"x"))
    await live.probe.started.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live.server.drain)
        await trio.testing.wait_all_tasks_blocked()
        late = await raw.call("Echo", frame(b"late"))
        raw.h2.ping(b"12345678")
        await raw.flush()
        goaway_last_stream_1 = (
            b"\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00"
        )
        pong = b"\x00\x00\x08\x06\x01\x00\x00\x00\x00" + b"12345678"
        data = b""
        with trio.fail_after(5):
            while pong not in data:
                data += await raw.socket.receive_some(4096)
        assert goaway_last_stream_1 in data
        assert live.probe.seen is None
        live.probe.release.set()
    assert (waiting, late) == (1, 3)
    assert live.probe.ended == ["answered"]


async def test_the_port_can_be_taken_only_once(wire: Any, live: Any):
    with pytest.raises(CannotListen) as caught:
        await wire.serve([], live.server.address)
    assert str(caught.value) == f"cannot listen on {live.target}: Address already in use"


@pytest.mark.parametrize(
    "address",
    [
        TcpAddress("no.such.host.invalid", 0),
        TcpAddress("192.0.2.1", 0),
        UnixAddress("/no/such/folder/x.sock"),
        UnixAddress("/tmp/" + "x" * 200),
    ],
    ids=["unknown host", "foreign address", "no folder", "long path"],
)
async def test_an_address_that_cannot_be_listened_on_is_one_line(wire: Any, address: Any):
    with pytest.raises(CannotListen, match="cannot listen on") as caught:
        await wire.serve([], address)
    assert "\n" not in str(caught.value)


async def test_localhost_is_one_port_on_all_its_addresses(wire: Any, nursery: trio.Nursery):
    server = await nursery.start(wire.serve, [], TcpAddress("localhost", 0))
    for family, _, _, _, place in socket.getaddrinfo("localhost", server.address.port):
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.connect(place)
    nursery.cancel_scope.cancel()


async def test_a_unix_socket_is_private_and_is_removed_at_the_end(
    wire: Any, live: Any, tmp_path: Path
):
    path = tmp_path / "admin.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(wire.serve, [live.probe], UnixAddress(str(path)))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with wire.open_channel(f"unix:{path}") as channel:
            assert await call(channel, "Echo", b"over unix") == b"over unix"
            assert live.probe.seen.peer == "unix"
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_accepted_and_dialled_sockets_have_nodelay(live: Any, channel: Any):
    await call(channel, "Echo")
    for connection in (*live.server.connections, channel._connection):
        sock = live.wire.socket_of(connection)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_nothing_is_left_open_after_a_server_and_a_channel(wire: Any, tmp_path: Path):
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def once() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(wire.serve, [], TcpAddress("127.0.0.1", 0))
            async with wire.open_channel(server.address) as channel:
                with pytest.raises(Unimplemented):
                    await call(channel, "Echo")
            nursery.cancel_scope.cancel()

    await once()
    before = descriptors()
    await once()
    assert descriptors() == before


class Upper:
    """A service with messages that are decoded."""

    def __mapping__(self) -> dict[str, Handler]:
        types = (HealthCheckRequest, HealthCheckRequest)
        return {"/t.T/Upper": Handler(self.upper, Cardinality.UNARY_UNARY, *types)}

    async def upper(self, stream: Any) -> None:
        message = await stream.recv_message()
        reply: Any = HealthCheckRequest(service=message.service.upper())
        await stream.send_message(b"not a message" if reply.service == "BUG" else reply)


async def test_typed_messages_are_decoded_and_malformed_ones_are_invalid(
    wire: Any, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
):
    server = await nursery.start(wire.serve, [Upper()], TcpAddress("127.0.0.1", 0))
    async with wire.open_channel(server.address) as channel:
        request = HealthCheckRequest(service="abc")
        reply = await channel.unary("/t.T/Upper", request, HealthCheckRequest)
        assert reply.service == "ABC"
        with pytest.raises(InvalidArgument, match="malformed HealthCheckRequest"):
            await channel.unary("/t.T/Upper", b"\x0a\x01\xff", bytes)
        with pytest.raises(Internal, match="expected a HealthCheckRequest, got a bytes"):
            await channel.unary("/t.T/Upper", HealthCheckRequest(service="bug"), bytes)
    nursery.cancel_scope.cancel()
