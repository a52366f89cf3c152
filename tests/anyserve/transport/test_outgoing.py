"""Calls that no task waits for: what they are answered with, and that they leave nothing behind."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from anyserve.burst import burst
from anyserve.errors import AnyServeError, Internal, NotFound, ResourceExhausted, Unavailable
from anyserve.transport import trio_client
from anyserve.transport.framing import Splitter
from anyserve.transport.rpc import MIB, Metadata
from anyserve.transport.wire import NotTaken


@attrs.define(eq=False)
class Heard:
    """Whoever listens."""

    messages: list[bytes] = attrs.field(factory=list)
    error: AnyServeError | None = None
    ended: trio.Event = attrs.field(factory=trio.Event)

    def on_messages(self, messages: Sequence[bytes]) -> None:
        assert not self.ended.is_set()
        self.messages += messages

    def on_end(self, error: AnyServeError | None, metadata: Metadata) -> None:
        assert not self.ended.is_set()
        self.error = error
        self.ended.set()

    async def until_ended(self) -> None:
        with trio.fail_after(10):
            await self.ended.wait()


async def warm(channel: Any) -> None:
    """Let the channel have its connection."""
    await channel.unary("/test.Probe/Echo", b"", bytes)


@pytest.mark.parametrize("size", [0, 100, 200_000, 9 * MIB])
@pytest.mark.parametrize("connected", [True, False])
async def test_a_call_is_answered_whether_it_can_begin_at_once_or_not(
    live: Any, size: int, connected: bool
) -> None:
    heard = Heard()
    async with trio_client.open_channel(live.target) as channel:
        if connected:
            await warm(channel)
        channel.call("/test.Probe/Echo", (b"m" * size,), heard)
        await heard.until_ended()
    assert (heard.error, heard.messages) == (None, [b"m" * size])


async def test_its_metadata_and_its_deadline_go_along(live: Any) -> None:
    heard = Heard()
    async with trio_client.open_channel(live.target) as channel:
        deadline = trio.current_time() + 60
        channel.call(
            "/test.Probe/Echo",
            (b"m",),
            heard,
            deadline=deadline,
            metadata=(("a", "1"), ("b-bin", b"\0")),
        )
        await heard.until_ended()
    assert live.probe.seen.metadata["a"] == "1"
    assert live.probe.seen.metadata["b-bin"] == b"\0"
    assert abs(live.probe.seen.deadline - deadline) < 1


async def test_an_error_comes_with_its_status_and_message(live: Any) -> None:
    heard = Heard()
    async with trio_client.open_channel(live.target) as channel:
        channel.call("/test.Probe/Fail", (b"own",), heard)
        await heard.until_ended()
    assert isinstance(heard.error, NotFound)
    assert "größe" in heard.error.message


async def test_where_nobody_listens_the_call_was_not_taken() -> None:
    heard = Heard()
    async with trio_client.open_channel("127.0.0.1:1") as channel:
        channel.call("/test.Probe/Echo", (b"m",), heard)
        await heard.until_ended()
    assert isinstance(heard.error, NotTaken)


async def test_a_server_that_drains_has_not_taken_the_call(live: Any) -> None:
    heard = Heard()
    async with trio_client.open_channel(live.target) as channel, trio.open_nursery() as nursery:
        await warm(channel)
        nursery.start_soon(channel.unary, "/test.Probe/Wait", b"", bytes)
        await live.probe.started.wait()
        live.server.draining = True  # before the client has heard of it
        channel.call("/test.Probe/Echo", (b"m",), heard)
        await heard.until_ended()
        live.probe.release.set()
    assert isinstance(heard.error, NotTaken)


def h2_frame(kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, 0) + payload


async def test_what_a_server_said_before_it_closed_is_read_though_nothing_can_be_sent() -> None:
    taken, sent = Heard(), Heard()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listener.socket.getsockname()
    async with listener, trio_client.open_channel(f"{host}:{port}") as channel:
        channel.call("/test.Probe/Echo", (b"m",), taken)
        server = await listener.accept()
        await server.send_all(h2_frame(4) + h2_frame(4, flags=1))  # SETTINGS, and theirs
        said = b""
        while not said.endswith(b"m"):
            said += await server.receive_some()
        await server.send_all(h2_frame(7, struct.pack(">II", 1, 0)))  # GOAWAY after stream 1
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.socket.close()
        with burst:  # at its end it is sent, before anything is read
            channel.call("/test.Probe/Echo", (b"m",), sent)
        await sent.until_ended()
        await taken.until_ended()
    assert isinstance(sent.error, NotTaken)
    assert isinstance(taken.error, Unavailable)
    assert not isinstance(taken.error, NotTaken)


async def test_a_call_that_is_cancelled_is_reset_and_nothing_is_heard(live: Any) -> None:
    heard = Heard()
    async with trio_client.open_channel(live.target) as channel:
        await warm(channel)
        call = channel.call("/test.Probe/Hang", (b"m",), heard)
        await live.probe.started.wait()
        call.cancel()
        await live.probe.until_ended()
    assert not heard.ended.is_set()


@pytest.mark.parametrize("connected", [True, False])
async def test_a_call_that_is_cancelled_at_once_is_never_heard_of(
    live: Any, connected: bool
) -> None:
    heard = Heard()
    async with trio_client.open_channel(live.target) as channel:
        if connected:
            await warm(channel)
        channel.call("/test.Probe/Echo", (b"m" * 5 * MIB,), heard).cancel()
        await trio.testing.wait_all_tasks_blocked()
        await warm(channel)
    assert not heard.ended.is_set()


async def test_a_lost_connection_and_a_closed_channel_end_it(live: Any) -> None:
    lost, closed = Heard(), Heard()
    async with trio_client.open_channel(live.target) as channel:
        await warm(channel)
        channel.call("/test.Probe/Hang", (b"m",), closed)
        await live.probe.started.wait()
    assert isinstance(closed.error, Unavailable)
    async with trio_client.open_channel(live.target) as channel:
        await warm(channel)
        channel.call("/test.Probe/Hang", (b"m",), lost)
        await trio.testing.wait_all_tasks_blocked()
        live.stop()
        await lost.until_ended()
    assert isinstance(lost.error, Unavailable)


async def test_while_it_is_held_the_server_has_to_wait(live: Any) -> None:
    heard = Heard()
    async with trio_client.open_channel(live.target) as channel:
        await warm(channel)
        call = channel.call("/test.Probe/Repeat", (b"65536,256",), heard)
        call.hold()
        await live.probe.started.wait()
        for _ in range(50):
            await trio.testing.wait_all_tasks_blocked(0.002)
        assert heard.messages == []
        assert live.probe.produced < 128
        call.resume()
        await heard.until_ended()
    assert heard.error is None
    assert len(heard.messages) == 256


async def test_a_message_over_the_limit_ends_it(live: Any) -> None:
    heard = Heard()
    async with trio_client.open_channel(live.target) as channel:
        channel.limits = attrs.evolve(channel.limits, max_message_bytes=1000)
        channel.call("/test.Probe/Repeat", (b"1001,1",), heard)
        await heard.until_ended()
    assert isinstance(heard.error, ResourceExhausted)


@given(
    st.lists(st.binary(max_size=30), max_size=8),
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
)
def test_messages_are_the_same_however_their_bytes_are_cut(
    messages: list[bytes], sizes: list[int]
) -> None:
    data = b"".join(struct.pack(">BI", 0, len(m)) + m for m in messages)
    splitter, found, at, turn = Splitter(30), list[bytes](), 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        found += splitter.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    assert found == messages
    assert not splitter.unfinished


def test_what_is_compressed_too_large_or_cut_is_told() -> None:
    with pytest.raises(Internal):
        Splitter(30).feed(struct.pack(">BI", 1, 0))
    with pytest.raises(ResourceExhausted):
        Splitter(30).feed(struct.pack(">BI", 0, 31))
    splitter = Splitter(30)
    assert splitter.feed(struct.pack(">BI", 0, 3) + b"ab") == []
    assert splitter.unfinished
