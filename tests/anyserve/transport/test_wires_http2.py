"""HTTP/2 by hand against a live server: what gRPC and RFC 9113 ask for, and hostile peers."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from h2.settings import SettingCodes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyserve.transport.address import TcpAddress

MIB = 1024 * 1024
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
INVALID_ARGUMENT, UNIMPLEMENTED, RESOURCE_EXHAUSTED, INTERNAL = "3", "12", "8", "13"


def h2_frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("size", [1, 4])
async def test_half_a_prefix_is_an_error_at_once(raw: Any, frame: Any, size: int):
    answer = await raw.answer(await raw.call("Echo", frame(b"abc")[:size]))
    assert answer.status == INVALID_ARGUMENT


async def test_a_cut_message_is_an_error_at_once(raw: Any, frame: Any):
    answer = await raw.answer(await raw.call("Echo", frame(b"abcdef")[:-1]))
    assert answer.status == INVALID_ARGUMENT
    assert "1%20bytes" in answer.headers["grpc-message"].replace(" ", "%20")


@pytest.mark.parametrize("data", [None, b""])
async def test_no_message_in_a_unary_call_is_an_error_at_once(raw: Any, data: bytes | None):
    answer = await raw.answer(await raw.call("Echo", data))
    assert answer.status == INVALID_ARGUMENT
    assert answer.headers["grpc-message"] == "the request ends without a message"


async def test_a_stream_without_a_message_is_fine(raw: Any):
    assert (await raw.answer(await raw.call("EchoAll", None))).status == "0"


async def test_a_4_gib_prefix_is_refused_while_the_call_is_open(raw: Any):
    before = resident()
    answer = await raw.answer(await raw.call("Echo", b"\0\xff\xff\xff\xff", end=False))
    assert answer.status == RESOURCE_EXHAUSTED
    assert resident() - before < 16 * MIB


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_compressed_requests_are_read(raw: Any, frame: Any, encoding: str):
    squeeze = gzip.compress if encoding == "gzip" else zlib.compress
    body = frame(squeeze(b"hello" * 100), flag=1)
    answer = await raw.answer(await raw.call("Echo", body, grpc_encoding=encoding))
    assert answer.status == "0"
    assert answer.data == frame(b"hello" * 100)


async def test_an_encoding_named_and_not_used_is_fine(raw: Any, frame: Any):
    answer = await raw.answer(await raw.call("Echo", frame(b"plain"), grpc_encoding="gzip"))
    assert answer.data == frame(b"plain")


async def test_compression_without_an_encoding_is_internal(raw: Any, frame: Any):
    body = frame(gzip.compress(b"x"), flag=1)
    assert (await raw.answer(await raw.call("Echo", body))).status == INTERNAL


async def test_an_unknown_encoding_is_unimplemented_and_told_the_known_ones(raw: Any, frame: Any):
    answer = await raw.answer(await raw.call("Echo", frame(b"x"), grpc_encoding="zstd"))
    assert answer.status == UNIMPLEMENTED
    assert answer.headers["grpc-accept-encoding"] == "identity,deflate,gzip"


async def test_a_bomb_costs_no_more_than_the_cap(
    live_small: Any, connect: Any, frame: Any, bystander: Any
):
    bomb = frame(gzip.compress(b"\0" * (256 * MIB)), flag=1)
    async with connect(live_small) as client, bystander(live_small):
        await client.greet()
        before = resident()
        stream_id = await client.call("Echo", None, end=False, grpc_encoding="gzip")
        for start in range(0, len(bomb), 16_384):
            if client.h2.local_flow_control_window(stream_id) < 16_384:
                break
            client.h2.send_data(stream_id, bomb[start : start + 16_384])
        await client.flush()
        assert (await client.answer(stream_id)).status == RESOURCE_EXHAUSTED
        assert resident() - before < 40 * MIB


async def test_padded_data_works_and_its_window_is_given_back(raw: Any, frame: Any):
    message = os.urandom(10_000)
    stream_id = await raw.call("EchoAll", None, end=False)
    for _ in range(600):
        # 6 MB with padding, more than a stream's window.
        while raw.h2.local_flow_control_window(stream_id) < 20_000:
            await raw.read()
        raw.h2.send_data(stream_id, frame(message), pad_length=255)
        await raw.flush()
    raw.h2.end_stream(stream_id)
    await raw.flush()
    answer = await raw.answer(stream_id)
    assert answer.status == "0"
    assert answer.data == frame(message) * 600


async def test_binary_metadata_is_read_padded_or_not(live: Any, raw: Any, frame: Any):
    for encoded in ("AP8=", "AP8"):
        await raw.answer(await raw.call("Echo", frame(b""), key_bin=encoded))
        assert live.probe.seen.metadata["key-bin"] == b"\0\xff"


async def test_an_error_before_any_message_is_one_headers_frame(raw: Any, frame: Any):
    answer = await raw.answer(await raw.call("Fail", frame(b"own")))
    assert answer.trailers == {}
    assert answer.headers["content-type"] == "application/grpc"
    assert answer.headers["grpc-message"] == (
        "no model 'gr%C3%B6%C3%9Fe', there is%0Aecho: 100 %25"
    )


@pytest.mark.parametrize(
    "extra, http_status",
    [
        ({"content_type": "text/plain"}, "415"),
        ({"content_type": None}, "415"),
        ({"te": None}, "400"),
        ({"method": "GET"}, "405"),
    ],
)
async def test_what_is_not_grpc_is_refused(raw: Any, frame: Any, extra: Any, http_status: str):
    answer = await raw.answer(await raw.call("Echo", frame(b""), **extra))
    assert answer.headers[":status"] == http_status
    assert (await raw.answer(await raw.call("Echo", frame(b"")))).status == "0"


@pytest.mark.parametrize("missing", [":method", ":path"])
async def test_missing_pseudo_headers_end_the_call_and_nothing_else(raw: Any, missing: str):
    stream_id = await raw.call("Echo", b"", **{missing[1:]: None})
    answer = await raw.answer(stream_id)
    assert answer.ended
    assert answer.status != "0"


@pytest.mark.parametrize("value", ["1", "-5S", "99999999999S", "soon"])
async def test_a_malformed_timeout_is_refused(raw: Any, frame: Any, value: str):
    answer = await raw.answer(await raw.call("Echo", frame(b""), grpc_timeout=value))
    assert answer.status == INVALID_ARGUMENT


@pytest.mark.parametrize("value", ["1H", "1M", "1S", "900m", "900000u", "90000000n"])
async def test_all_six_units_of_a_timeout_reach_the_handler(
    live: Any, raw: Any, frame: Any, value: str
):
    seconds = {"1H": 3600, "1M": 60, "1S": 1, "900m": 0.9, "900000u": 0.9, "90000000n": 0.09}
    before = trio.current_time()
    await raw.answer(await raw.call("Echo", frame(b""), grpc_timeout=value))
    assert live.probe.seen.deadline - before == pytest.approx(seconds[value], abs=0.05)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        bytes(100),
        PREFACE + h2_frame(0, b"data first", stream=1),
        PREFACE + SETTINGS + h2_frame(4, b"12345"),
        PREFACE + SETTINGS + h2_frame(1, b"\xff" * 20, flags=4, stream=1),
        PREFACE + SETTINGS + h2_frame(9, b"", stream=1),
        PREFACE + SETTINGS + h2_frame(8, b"\0\0\0\0"),
        PREFACE + SETTINGS + b"\xff\xff\xff\x00\0\0\0\0\x01" + bytes(20 * MIB),
    ],
    ids=[
        "HTTP/1.1",
        "TLS",
        "zeros",
        "DATA first",
        "short SETTINGS",
        "bad HPACK",
        "naked CONTINUATION",
        "window increment 0",
        "oversize frame",
    ],
)
async def test_what_is_not_http2_gets_a_closed_connection(
    live: Any, connect: Any, data: bytes, bystander: Any
):
    async with bystander(live), connect(live) as client:
        await client.send_raw(data)
        with trio.fail_after(20):
            while True:
                try:
                    if not await client.socket.receive_some(65536):
                        break
                except trio.BrokenResourceError:
                    break


async def test_an_unknown_frame_is_ignored(raw: Any, frame: Any):
    await raw.send_raw(h2_frame(0xBE, b"extension"))
    assert (await raw.answer(await raw.call("Echo", frame(b"")))).status == "0"


async def test_headers_with_any_bytes_do_not_end_the_connection(raw: Any, frame: Any):
    raw.h2.config.header_encoding = None
    stream_id = await raw.call(
        "Echo", frame(b""), odd="\udcff\udcfe".encode("utf-8", "surrogateescape")
    )
    raw.h2.config.header_encoding = "utf-8"
    assert (await raw.answer(stream_id)).status == "0"


async def test_a_reset_stops_the_output_and_leaves_the_connection_usable(
    live: Any, raw: Any, frame: Any
):
    stream_id = await raw.call("Repeat", frame(b"1000,1000000"))
    await live.probe.started.wait()
    await raw.read()
    raw.h2.reset_stream(stream_id)
    await raw.flush()
    await live.probe.until_ended()
    assert live.probe.ended == ["cancelled"]
    produced = live.probe.produced
    assert (await raw.answer(await raw.call("Echo", frame(b"next")))).data == frame(b"next")
    assert live.probe.produced == produced < 1_000_000


async def test_a_slow_reader_holds_the_handler(live: Any, raw: Any, frame: Any):
    raw.auto_window = False
    stream_id = await raw.call("Repeat", frame(b"1000,1000"))
    with trio.fail_after(20):
        while len(raw.answers[stream_id].data) < 65_535:
            await raw.read()
    await trio.testing.wait_all_tasks_blocked()
    assert live.probe.produced == 65
    # The window is 0; another call, which needs none, is answered all the same.
    assert (await raw.answer(await raw.call("Echo", None))).status == INVALID_ARGUMENT
    raw.h2.increment_flow_control_window(100_000, stream_id)
    raw.h2.increment_flow_control_window(100_000)
    await raw.flush()
    with trio.fail_after(20):
        while len(raw.answers[stream_id].data) < 165_535:
            await raw.read()
    await trio.testing.wait_all_tasks_blocked()
    assert live.probe.produced == 164


async def test_a_reader_that_leaves_everything_in_its_socket_holds_the_handler(
    live: Any, connect: Any, frame: Any, bystander: Any
):
    async with bystander(live) as beside, connect(live) as client:
        await client.greet()
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
        client.h2.increment_flow_control_window(2**31 - 1 - 65_535)
        before = resident()
        await client.call("Repeat", frame(b"100000,10000"))
        await live.probe.started.wait()
        last = -1
        while live.probe.produced != last:
            last = live.probe.produced
            await beside.turns(50)
        assert 0 < live.probe.produced < 500
        assert resident() - before < 64 * MIB


async def test_a_slow_handler_holds_the_client(live: Any, raw: Any, frame: Any):
    stream_id = await raw.call("Sink", frame(b"first"), end=False)
    await live.probe.started.wait()
    await trio.testing.wait_all_tasks_blocked()
    with trio.move_on_after(0.2):
        await raw.read()
    body, sent = frame(bytes(16_000)), 0
    while raw.h2.local_flow_control_window(stream_id) >= len(body):
        raw.h2.send_data(stream_id, body)
        sent += 16_000
    await raw.flush()
    assert sent < 4 * MIB + 16_000
    # Another call on the connection is not held up by it.
    assert (await raw.answer(await raw.call("Echo", frame(b"x")))).status == "0"
    assert raw.h2.local_flow_control_window(stream_id) < len(body)
    live.probe.release.set()
    raw.h2.end_stream(stream_id)
    await raw.flush()
    assert (await raw.answer(stream_id)).data == frame(b"%d" % sent)


async def test_the_peers_frame_size_window_and_table_size_are_obeyed(
    live: Any, connect: Any, frame: Any
):
    async with connect(live) as client:
        client.h2.local_settings.update(
            {
                SettingCodes.INITIAL_WINDOW_SIZE: 0,
                SettingCodes.HEADER_TABLE_SIZE: 0,
            }
        )
        client.h2.local_settings.acknowledge()
        client.h2.decoder.max_allowed_table_size = 0
        await client.greet()
        message = bytes(70_000)
        stream_id = await client.call("Echo", None, end=False)
        for start in range(0, len(frame(message)), 16_384):
            while client.h2.local_flow_control_window(stream_id) < 16_384:
                await client.read()
            client.h2.send_data(stream_id, frame(message)[start : start + 16_384])
        client.h2.end_stream(stream_id)
        await client.flush()
        await trio.testing.wait_all_tasks_blocked()
        assert client.answers[stream_id].data == b""
        # h2 refuses frames over 16,384 bytes, the default that this client has left as it is.
        client.h2.increment_flow_control_window(100_000, stream_id)
        client.h2.increment_flow_control_window(100_000)
        await client.flush()
        assert (await client.answer(stream_id)).data == frame(message)


async def test_streams_in_flight_survive_the_clients_goaway(live: Any, raw: Any, frame: Any):
    stream_id = await raw.call("Wait", frame(b"kept"))
    await live.probe.started.wait()
    await raw.send_raw(h2_frame(7, bytes(8)))
    await raw.send_raw(h2_frame(6, b"12345678"))
    await raw.until(lambda: raw.pongs)
    live.probe.release.set()
    assert (await raw.answer(stream_id)).data == frame(b"kept")


async def test_pings_are_answered_and_calls_after_them(raw: Any, frame: Any):
    for _ in range(50):
        raw.h2.ping(b"12345678")
    await raw.flush()
    await raw.until(lambda: raw.pongs == 50)
    assert (await raw.answer(await raw.call("Echo", frame(b"")))).status == "0"


async def test_an_idle_client_that_pings_every_second_gets_its_next_call_answered(
    live: Any, raw: Any, frame: Any, autojump_clock: trio.testing.MockClock
):
    for second in range(1, 301):
        raw.h2.ping(b"12345678")
        await raw.flush()
        await raw.until(lambda: raw.pongs == second)  # noqa: B023 - it is called in this turn
        await trio.sleep(1)
    assert (await raw.answer(await raw.call("Echo", frame(b"next")))).data == frame(b"next")
    assert raw.goaway is None


FLOODS = {
    "PING": h2_frame(6, b"12345678"),
    "SETTINGS": SETTINGS,
    "PRIORITY": h2_frame(2, b"\0\0\0\0\x10", stream=3),
    "WINDOW_UPDATE": h2_frame(8, b"\0\0\0\x01"),
    "unknown frames": h2_frame(0xBE),
    "PING that nobody asked for": h2_frame(6, b"12345678", flags=1),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_is_closed(live: Any, connect: Any, name: str, bystander: Any):
    async with bystander(live), connect(live) as client:
        await client.greet()
        await client.send_raw(FLOODS[name] * 20_000)
        await client.until(lambda: client.goaway)
        assert client.closed or client.goaway.error_code == 11  # ENHANCE_YOUR_CALM


async def test_a_flood_of_empty_data_is_closed(live: Any, connect: Any, bystander: Any):
    async with bystander(live), connect(live) as client:
        await client.greet()
        stream_id = await client.call("EchoAll", None, end=False)
        await client.send_raw(h2_frame(0, stream=stream_id) * 5_000)
        await client.until(lambda: client.goaway)
        assert client.closed or client.goaway.error_code == 11


async def test_a_flood_without_reading_costs_no_memory(live: Any, connect: Any, bystander: Any):
    async with bystander(live), connect(live) as client:
        await client.greet()
        before = resident()
        with trio.move_on_after(20):
            for _ in range(50):
                await client.send_raw(FLOODS["PING"] * 20_000)
                if client.closed:
                    break
        assert client.closed
        assert resident() - before < 32 * MIB


async def test_a_rapid_reset_is_closed_and_leaves_no_calls(
    live: Any, connect: Any, frame: Any, bystander: Any
):
    async with connect(live) as client:
        await client.greet()
        batch = b""
        for _ in range(5_000):
            stream_id = client.h2.get_next_available_stream_id()
            client.h2.send_headers(stream_id, client.head("Hang"))
            client.h2.reset_stream(stream_id)
            batch += client.h2.data_to_send()
        async with bystander(live):
            await client.send_raw(batch)
            await client.until(lambda: client.goaway)
        assert client.closed or client.goaway.error_code in (2, 11)
    with trio.fail_after(20):
        await live.server.drain()
    assert live.server.statistics().calls == 0


async def test_a_continuation_flood_is_closed(live: Any, connect: Any, bystander: Any):
    async with bystander(live), connect(live) as client:
        await client.send_raw(
            PREFACE
            + SETTINGS
            + h2_frame(1, b"", stream=1)
            + h2_frame(9, b"\x00\x01a\x01b" * 3000, stream=1) * 2_000
        )
        await client.until(lambda: False)
        assert client.closed


async def test_a_header_bomb_is_closed(live: Any, connect: Any, bystander: Any):
    # One long field in the table, then 10,000 references to it: 40 MB out of 14 kB.
    block = b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4000 + b"\xbe" * 10_000
    async with bystander(live), connect(live) as client:
        before = resident()
        await client.send_raw(PREFACE + SETTINGS + h2_frame(1, block, flags=4, stream=1))
        await client.until(lambda: False)
        assert client.closed
        assert resident() - before < 16 * MIB


async def test_a_thousand_streams_at_once_all_have_one_answer(
    live: Any, raw: Any, frame: Any, bystander: Any
):
    async with bystander(live):
        await raw.until(lambda: raw.h2.remote_settings.max_concurrent_streams == 1024)
        ids = [await raw.call("Wait", frame(b"x")) for _ in range(1000)]
        await live.probe.started.wait()
        live.probe.release.set()
        for stream_id in ids:
            assert (await raw.answer(stream_id)).status == "0"


async def test_calls_over_the_connections_limit_are_refused_or_end_the_connection(
    live: Any, raw: Any, frame: Any, bystander: Any
):
    async with bystander(live):
        raw.h2.remote_settings.max_concurrent_streams = 10_000
        for _ in range(1100):
            await raw.call("Hang", frame(b"x"))
        refused = 7
        await raw.until(
            lambda: (
                raw.goaway or [a.reset for a in raw.answers.values()].count(refused) == 1100 - 1024
            )
        )
        assert raw.goaway is None or raw.goaway.error_code == 1


async def test_many_silent_connections_disturb_nobody(live: Any, connect: Any, bystander: Any):
    async with trio.open_nursery() as nursery:
        opened = 0
        stop = trio.Event()

        async def silent() -> None:
            nonlocal opened
            async with connect(live) as client:
                opened += 1
                await client.send_raw(PREFACE[: opened % 24])
                await stop.wait()

        async with bystander(live) as beside:
            for _ in range(100):
                nursery.start_soon(silent)
            await beside.turns(50)
            assert opened == 100
        stop.set()


async def test_a_connection_that_never_greets_is_closed(
    wire: Any, mock_clock: trio.testing.MockClock
):
    async with trio.open_nursery() as nursery:
        server = await nursery.start(wire.serve, [], TcpAddress("127.0.0.1", 0))
        stream = await trio.open_tcp_stream("127.0.0.1", server.address.port)
        async with stream:
            await stream.send_all(PREFACE[:10])
            while b"\0\0" not in await stream.receive_some(4096):
                pass
            await trio.testing.wait_all_tasks_blocked(0.01)
            mock_clock.jump(21)
            with suppress(trio.BrokenResourceError):
                while await stream.receive_some(4096):
                    pass
        nursery.cancel_scope.cancel()


hostile_frame = st.one_of(
    st.binary(max_size=60),
    st.builds(
        h2_frame,
        kind=st.integers(0, 12),
        payload=st.binary(max_size=40),
        flags=st.integers(0, 255),
        stream=st.integers(0, 9),
    ),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(frames=st.lists(hostile_frame, max_size=12), greeted=st.booleans())
def test_fuzzed_frames_end_at_most_their_own_connection(
    wire: Any, frames: list[bytes], greeted: bool
):
    from grpclib.const import Cardinality, Handler

    class Echo:
        def __mapping__(self) -> dict[str, Handler]:
            return {"/e/e": Handler(self.echo, Cardinality.UNARY_UNARY, bytes, bytes)}

        async def echo(self, stream: Any) -> None:
            await stream.send_message(await stream.recv_message())

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                server = await nursery.start(wire.serve, [Echo()], TcpAddress("127.0.0.1", 0))
                async with wire.open_channel(server.address) as channel:
                    assert await channel.unary("/e/e", b"before", bytes) == b"before"
                    stream = await trio.open_tcp_stream("127.0.0.1", server.address.port)
                    async with stream:
                        try:
                            if greeted:
                                await stream.send_all(PREFACE + SETTINGS)
                            await stream.send_all(b"".join(frames))
                            await stream.send_eof()
                            while await stream.receive_some(65536):
                                pass
                        except trio.BrokenResourceError:
                            pass
                    assert await channel.unary("/e/e", b"after", bytes) == b"after"
                    assert server.statistics().calls == 0
                nursery.cancel_scope.cancel()

    trio.run(main)
