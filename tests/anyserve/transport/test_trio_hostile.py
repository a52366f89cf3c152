"""Hostile and broken peers of the fast wire, frame by frame, each beside a client that is well.

What both wires stand is in `test_wires_http2`.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
import trio.testing
from h2.settings import SettingCodes
from hpack import Encoder

pytestmark = pytest.mark.parametrize("wire", ["trio"], indirect=True)

MIB = 1024 * 1024
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED = 1, 4, 8
ENDED, PROTOCOL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 3
CLOSED_FOR_ABUSE = (2, 11)
"""INTERNAL_ERROR is what libnghttp2 says, ENHANCE_YOUR_CALM what we say."""


def h2_frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def frames_of(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, stream and payload of each whole frame."""
    while len(data) >= 9 + int.from_bytes(data[:3]):
        end = 9 + int.from_bytes(data[:3])
        yield data[3], int.from_bytes(data[5:9]), data[9:end]
        data = data[end:]


def setting(identifier: int, value: int) -> bytes:
    return struct.pack(">HI", identifier, value)


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def head_block(method: str, *more: tuple[str, str]) -> bytes:
    """A header block that can be sent again and again, since it leaves no trace in the table."""
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/test.Probe/{method}"),
        (":authority", "test"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]
    encoder = Encoder()
    return encoder.encode([(name, value, True) for name, value in headers])


HEAD = head_block("Hang")


def request(stream: int, flags: int = END_HEADERS, block: bytes = HEAD) -> bytes:
    return h2_frame(HEADERS, block, flags, stream)


def on_stream(stream: int, frame: bytes) -> bytes:
    """A frame of stream 0 as one of another."""
    return frame[:5] + struct.pack(">I", stream) + frame[9:]


def cancel(stream: int) -> bytes:
    return h2_frame(RST, b"\0\0\0\x08", stream=stream)


async def until_closed(client: Any) -> bytes:
    """What the server says until it closes the connection; five seconds at most."""
    said = b""
    with trio.fail_after(20):
        while True:
            try:
                data = await client.socket.receive_some(65536)
            except trio.BrokenResourceError:
                return said
            if not data:
                return said
            said += data


async def until_idle(live: Any) -> None:
    """Until no call is left; five seconds at most."""
    with trio.fail_after(20):
        while live.server.statistics().calls:
            await trio.lowlevel.checkpoint()


CONNECTION_ERRORS = {
    "HEADERS on an even stream": request(2),
    "HEADERS on stream 0": request(0),
    "DATA on stream 0": h2_frame(DATA, b"x"),
    "DATA after the end": request(1, END_HEADERS | END_STREAM) + h2_frame(DATA, b"x", stream=1),
    "DATA on an idle stream": h2_frame(DATA, b"x", stream=7),
    "RST_STREAM on stream 0": h2_frame(RST, bytes(4)),
    "RST_STREAM on an idle stream": h2_frame(RST, bytes(4), stream=9),
    "a short RST_STREAM": request(1) + h2_frame(RST, bytes(3), stream=1),
    "WINDOW_UPDATE on an idle stream": h2_frame(WINDOW, b"\0\0\0\1", stream=9),
    "a short WINDOW_UPDATE": h2_frame(WINDOW, bytes(3)),
    "SETTINGS on a stream": h2_frame(SETTINGS, stream=1),
    "an acknowledgement with settings": h2_frame(SETTINGS, bytes(6), flags=1),
    "ENABLE_PUSH of 2": h2_frame(SETTINGS, setting(2, 2)),
    "a window of 2 GiB": h2_frame(SETTINGS, setting(4, 2**31)),
    "frames of 100 bytes": h2_frame(SETTINGS, setting(5, 100)),
    "frames of 16 MiB": h2_frame(SETTINGS, setting(5, 2**24)),
    "PING on a stream": h2_frame(PING, bytes(8), stream=1),
    "a short PING": h2_frame(PING, bytes(7)),
    "GOAWAY on a stream": h2_frame(GOAWAY, bytes(8), stream=1),
    "a promise of a client": h2_frame(PUSH, b"\0\0\0\2" + HEAD, END_HEADERS, 1),
    "padding longer than its frame": request(1) + h2_frame(DATA, b"\x09abc", PADDED, 1),
    "a frame inside a header block": request(1, flags=0) + h2_frame(PING, bytes(8)),
    "CONTINUATION of another stream": request(1, flags=0) + h2_frame(CONTINUATION, b"", 4, 3),
    "a table index that is nowhere": h2_frame(HEADERS, b"\xff\xff\xff\x7f", END_HEADERS, 1),
    "a table larger than allowed": h2_frame(HEADERS, b"\x3f\xff\xff\x7f" + HEAD, END_HEADERS, 1),
    "a frame over 16 KiB": request(1) + h2_frame(DATA, bytes(16_385), stream=1),
    "a window increment of 0": request(1) + h2_frame(WINDOW, bytes(4), stream=1),
    "a window of a stream that overflows": request(1)
    + h2_frame(WINDOW, b"\x7f\xff\xff\xff", stream=1),
    "a window of the connection that overflows": h2_frame(WINDOW, b"\x7f\xff\xff\xff") * 2,
}


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
async def test_an_error_of_the_connection_ends_it_with_a_goaway(
    live: Any, connect: Any, bystander: Any, name: str
):
    async with bystander(live), connect(live) as client:
        await client.send_raw(PREFACE + h2_frame(SETTINGS) + CONNECTION_ERRORS[name])
        frames = list(frames_of(await until_closed(client)))
        goaways = [payload for kind, _, payload in frames if kind == GOAWAY]
        assert int.from_bytes(goaways[-1][4:8]) != ENDED
    await until_idle(live)


STREAM_ERRORS = {
    "trailers that do not end the stream": request(1, block=b"\x00\x01x\x01y"),
    "trailers with a pseudo-header": h2_frame(HEADERS, b"\x84", END_HEADERS | END_STREAM, 1),
}


@pytest.mark.parametrize("name", STREAM_ERRORS)
async def test_an_error_of_a_stream_cancels_its_handler_and_nothing_else(
    live: Any, raw: Any, frame: Any, name: str
):
    stream_id = await raw.call("Hang", frame(b"x"), end=False)
    await live.probe.started.wait()
    await raw.send_raw(STREAM_ERRORS[name])
    answer = await raw.answer(stream_id)
    assert answer.reset == PROTOCOL_ERROR
    await live.probe.until_ended()
    assert live.probe.ended == ["cancelled"]
    assert (await raw.answer(await raw.call("Echo", frame(b"next")))).data == frame(b"next")


@pytest.mark.parametrize(
    "extra",
    [
        {"te": "gzip"},
        {"connection": "close"},
        {"transfer_encoding": "chunked"},
        {"UPPER": "case"},
        {"content_length": "3"},
        {"path": ""},
    ],
    ids=str,
)
async def test_a_malformed_request_is_reset_and_nothing_else(raw: Any, frame: Any, extra: Any):
    answer = await raw.answer(await raw.call("Echo", frame(b"x"), **extra))
    assert answer.reset == PROTOCOL_ERROR or answer.headers[":status"] == "400"
    assert (await raw.answer(await raw.call("Echo", frame(b"next")))).data == frame(b"next")


async def test_trailers_without_data_are_a_request_without_a_message(raw: Any):
    stream_id = await raw.call("Echo", None, end=False)
    raw.h2.send_headers(stream_id, [("late", "yes")], end_stream=True)
    await raw.flush()
    answer = await raw.answer(stream_id)
    assert answer.headers["grpc-message"] == "the request ends without a message"


async def test_trailers_after_data_end_the_request(raw: Any, frame: Any):
    stream_id = await raw.call("Join", frame(b"ab"), end=False)
    raw.h2.send_headers(stream_id, [("late", "yes")], end_stream=True)
    await raw.flush()
    assert (await raw.answer(stream_id)).data == frame(b"ab")


async def test_data_beyond_the_window_ends_no_more_than_its_connection(
    live: Any, connect: Any, frame: Any, bystander: Any
):
    async with bystander(live), connect(live) as client:
        await client.greet()
        await client.call("Sink", frame(b"first"), end=False)
        await client.send_raw(h2_frame(DATA, bytes(16_384), stream=1) * 300)
        await client.until(lambda: client.goaway)
        assert client.closed or client.goaway.error_code == FLOW_CONTROL_ERROR
    await until_idle(live)


MESSAGE = h2_frame(DATA, bytes(5), END_STREAM)
RESETS = {
    "a rapid reset": lambda n: request(n) + cancel(n),
    "a rapid reset of whole requests": lambda n: request(n) + on_stream(n, MESSAGE) + cancel(n),
    # From here on the server is made to reset, while the client seems well-behaved.
    "a length that is not kept": lambda n: (
        request(n, block=head_block("Hang", ("content-length", "3"))) + on_stream(n, MESSAGE)
    ),
    "names in upper case": lambda n: request(n, block=HEAD + b"\x00\x01X\x01y"),
    "trailers that do not end": lambda n: request(n) + request(n, block=b"\x00\x01x\x01y"),
    "trailers with a method": lambda n: request(n) + request(n, END_HEADERS | END_STREAM, b"\x84"),
    "a prefix of 4 GiB": lambda n: request(n) + h2_frame(DATA, b"\0\xff\xff\xff\xff", stream=n),
    "a deadline that has passed": lambda n: (
        request(n, block=head_block("Hang", ("grpc-timeout", "1n")))
        + h2_frame(DATA, bytes(5), 0, n)
    ),
    "streams over the limit": request,
}


@pytest.mark.parametrize("name", RESETS)
async def test_twenty_thousand_resets_are_closed_after_few_have_cost_anything(
    live: Any, connect: Any, bystander: Any, name: str
):
    attack = b"".join(RESETS[name](stream) for stream in range(1, 40_000, 2))
    began = trio.current_time()
    async with bystander(live), connect(live) as client:
        before = resident()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_raw, PREFACE + h2_frame(SETTINGS) + attack)
            said = await until_closed(client)
            nursery.cancel_scope.cancel()
        assert resident() - before < 32 * MIB
        # What closes first may take the GOAWAY with it.
        goaways = [payload for kind, _, payload in frames_of(said) if kind == GOAWAY]
        assert not goaways or int.from_bytes(goaways[-1][4:8]) in CLOSED_FOR_ABUSE
    await until_idle(live)
    # A handler was begun for few, as many in a second as are no flood yet.
    assert len(live.probe.ended) < 5_000 * (1 + trio.current_time() - began)


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(lambda n: request(n), id="streams over the limit"),
        pytest.param(lambda n: request(n, block=head_block("Nope")), id="unknown methods"),
        pytest.param(lambda n: request(n, block=HEAD + b"\x00\x01X\x01y"), id="bad names"),
        pytest.param(lambda n: h2_frame(SETTINGS, setting(4, n)), id="SETTINGS"),
        pytest.param(lambda n: h2_frame(PING, bytes(8)), id="PING"),
    ],
)
async def test_a_peer_that_asks_and_never_reads_costs_little_memory(
    live: Any, connect: Any, bystander: Any, attack: Any
):
    batches = [
        b"".join(attack(n) for n in range(start, start + 10_000, 2))
        for start in range(1, 200_000, 10_000)
    ]
    async with bystander(live), connect(live) as client:
        await client.send_raw(PREFACE + h2_frame(SETTINGS))
        before = resident()
        with trio.move_on_after(5):
            for batch in batches:
                await client.send_raw(batch)
                if client.closed:
                    break
        assert resident() - before < 32 * MIB
    await until_idle(live)


async def test_many_slow_readers_cost_little_memory_and_disturb_nobody(
    live: Any, connect: Any, frame: Any, bystander: Any
):
    before = resident()
    async with AsyncExitStack() as stack:
        beside = await stack.enter_async_context(bystander(live))
        for _ in range(50):
            client = await stack.enter_async_context(connect(live))
            await client.greet()
            client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
            client.h2.increment_flow_control_window(2**31 - 1 - 65_535)
            await client.call("Repeat", frame(b"100000,10000"))
        await beside.turns(200)
        assert live.server.statistics().calls >= 50
        # A part that is queued, and one on its way to the socket, for each.
        assert resident() - before < 64 * MIB
    await until_idle(live)


async def test_half_open_calls_hold_no_other_up(
    live: Any, connect: Any, frame: Any, bystander: Any
):
    async with bystander(live), connect(live) as client:
        await client.greet()
        await client.until(lambda: client.h2.remote_settings.max_concurrent_streams == 1024)
        for _ in range(500):
            await client.call("Echo", frame(b"never whole")[:-1], end=False)
        assert (await client.answer(await client.call("Echo", frame(b"x")))).status == "0"
        assert live.server.statistics().calls >= 500
    await until_idle(live)


async def test_windows_that_are_opened_byte_by_byte_are_closed_when_that_floods(
    live: Any, connect: Any, frame: Any, bystander: Any
):
    async with bystander(live), connect(live) as client:
        client.h2.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = 0
        await client.greet()
        stream_id = await client.call("Repeat", frame(b"1000,1000"))
        await live.probe.started.wait()
        await client.send_raw(h2_frame(WINDOW, b"\0\0\0\1", stream=stream_id) * 20_000)
        await until_closed(client)
    await until_idle(live)


async def test_a_window_of_one_byte_gets_one_byte(live: Any, connect: Any, frame: Any):
    async with connect(live) as client:
        client.auto_window = False
        client.h2.local_settings.update({SettingCodes.INITIAL_WINDOW_SIZE: 1})
        client.h2.local_settings.acknowledge()
        await client.greet()
        stream_id = await client.call("Repeat", frame(b"100,1"))
        await client.until(lambda: client.answers[stream_id].data)
        await trio.testing.wait_all_tasks_blocked()
        assert client.answers[stream_id].data == frame(b"m" * 100)[:1]
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 105})
        await client.flush()
        await client.until(lambda: len(client.answers[stream_id].data) == 105)


async def test_a_shut_window_holds_its_stream_and_no_other(live: Any, raw: Any, frame: Any):
    raw.auto_window = False
    stalled = await raw.call("Repeat", frame(b"1000,1000"))
    await raw.until(lambda: len(raw.answers[stalled].data) == 65_535)
    raw.h2.increment_flow_control_window(1_000_000)
    await raw.flush()
    answer = await raw.answer(await raw.call("Echo", frame(b"x" * 10_000)))
    assert answer.data == frame(b"x" * 10_000)
    assert len(raw.answers[stalled].data) == 65_535


async def test_a_large_answer_lets_small_ones_pass(live: Any, connect: Any, frame: Any):
    async with connect(live) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        await client.greet()
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
        client.h2.increment_flow_control_window(2**31 - 1 - 65_535)
        large = await client.call("Repeat", frame(b"67108864,1"))
        await client.until(lambda: len(client.answers[large].data) > MIB)
        before = len(client.answers[large].data)
        assert (await client.answer(await client.call("Echo", frame(b"x")))).status == "0"
        # What waits in the kernel's buffers is ahead of it, and little else.
        assert len(client.answers[large].data) - before < 16 * MIB


async def test_large_answers_share_a_connection(live: Any):
    """Each takes its turns; none is forgotten when others end, fail or are cancelled."""
    message = os.urandom(MIB)
    done = 0

    async def one(channel: Any, patience: float) -> None:
        nonlocal done
        with trio.move_on_after(patience):
            assert await channel.unary("/test.Probe/Echo", message, bytes) == message
            done += 1

    with trio.fail_after(20):
        async with live.open_channel() as channel, trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(one, channel, 0.02 * number if number % 2 else 30)
    assert done >= 30
    await until_idle(live)


async def test_a_connection_whose_window_has_leaked_away_is_replaced(
    live: Any, connect: Any, frame: Any
):
    """ngh2 forgets the part of a frame that came before its stream was reset."""
    part = h2_frame(DATA, bytes(16_384))[9:-9]
    async with connect(live) as client:
        await client.send_raw(PREFACE + h2_frame(SETTINGS))
        said = b""
        with trio.fail_after(30):
            for stream in range(1, 3_000, 2):
                await client.send_raw(
                    request(stream, block=head_block("Echo"))
                    + h2_frame(DATA, b"\0\xff\xff\xff\xff", stream=stream)
                    + h2_frame(DATA, bytes(16_384), stream=stream)[:9]
                    + part
                )
                reset = h2_frame(RST, bytes(4), stream=stream)
                while reset not in said:
                    said += await client.socket.receive_some(65536)
                goaways = [payload for kind, _, payload in frames_of(said) if kind == GOAWAY]
                if goaways:
                    break
                said = b""
                await client.send_raw(bytes(9))
        assert int.from_bytes(goaways[-1][4:8]) == ENDED
        # In time: there was room for more.
        assert stream * 8_192 < 12 * MIB
    async with live.open_channel() as channel:
        assert await channel.unary("/test.Probe/Echo", b"again", bytes) == b"again"


async def test_a_conversation_with_flipped_bits_ends_at_most_its_own_connection(
    live: Any, connect: Any, frame: Any, bystander: Any
):
    """Replays a valid conversation with a few bits changed, from a fixed seed."""
    chance = random.Random(20_261_124)
    body = frame(b"hello") * 3
    valid = PREFACE + h2_frame(SETTINGS, setting(4, 70_000))
    for stream, method in ((1, "Echo"), (3, "EchoAll"), (5, "Join"), (7, "Hang")):
        valid += request(stream, block=head_block(method, ("grpc-timeout", "1S")))
        valid += h2_frame(DATA, body, END_STREAM, stream) + h2_frame(WINDOW, b"\0\0\1\0", 0, stream)
    async with bystander(live):
        for _ in range(150):
            mutated = bytearray(valid)
            for _ in range(chance.randrange(1, 4)):
                mutated[chance.randrange(24, len(mutated))] ^= 1 << chance.randrange(8)
            async with connect(live) as client:
                await client.send_raw(bytes(mutated))
                await client.socket.send_eof()
                await until_closed(client)
    with trio.fail_after(20):
        while live.server.statistics().connections:
            await trio.lowlevel.checkpoint()
