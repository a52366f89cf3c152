"""Conversations made up, and replayed from a real client with errors in them, on the fast wire.

After each the server is as it was: a well-behaved client on another connection is answered, and
no connection, call or task of the hostile one is left.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import attrs
import grpc
import pytest
import trio
import trio.testing
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = 150
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED = 1, 4, 8


def h2_frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


@attrs.frozen
class Begin:
    """A call on the next stream."""

    method: str
    more: tuple[tuple[str, str], ...]
    ended: bool
    split_at: int
    """Where its header block goes on in a CONTINUATION; 0: nowhere."""


@attrs.frozen
class Message:
    """DATA on a stream that there is."""

    pick: int
    body: bytes
    padding: int
    ended: bool


@attrs.frozen
class Frame:
    """Any frame, on a stream that there is or on none."""

    kind: int
    payload: bytes
    flags: int = 0
    pick: int | None = None


class Speaker:
    """Spells a conversation out."""

    def __init__(self) -> None:
        self._streams: list[int] = []

    def say(self, move: Begin | Message | Frame) -> bytes:
        match move:
            case Begin():
                self._streams.append(2 * len(self._streams) + 1)
                return self._begin(move, self._streams[-1])
            case Message(pick, body, padding, ended):
                flags = END_STREAM if ended else 0
                if padding:
                    flags |= PADDED
                    body = bytes([padding]) + body + bytes(padding)
                return h2_frame(DATA, body, flags, self._stream(pick))
            case Frame(kind, payload, flags, pick):
                return h2_frame(kind, payload, flags, 0 if pick is None else self._stream(pick))

    def _begin(self, move: Begin, stream: int) -> bytes:
        head = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", f"/test.Probe/{move.method}"),
            (":authority", "test"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        )
        block = Encoder().encode([(name, value, True) for name, value in head + move.more])
        flags = END_STREAM if move.ended else 0
        if not move.split_at:
            return h2_frame(HEADERS, block, flags | END_HEADERS, stream)
        first, rest = block[: move.split_at], block[move.split_at :]
        return h2_frame(HEADERS, first, flags, stream) + h2_frame(
            CONTINUATION, rest, END_HEADERS, stream
        )

    def _stream(self, pick: int) -> int:
        return self._streams[pick % len(self._streams)] if self._streams else 1


def framed(message: bytes, flag: int) -> bytes:
    return struct.pack(">BI", flag, len(message)) + message


picks = st.integers(0, 6)
words = st.integers(0, 2**32 - 1).map(lambda word: struct.pack(">I", word))
bodies = st.one_of(
    st.builds(
        framed,
        st.sampled_from([b"", b"text", b"own", b"group", b"5,50", b"100000,20"]),
        st.sampled_from([0, 0, 0, 1]),
    ),
    st.sampled_from([b"", b"\0\xff\xff\xff\xff", b"\0\0\0\0\x09half", bytes(16_000)]),
    st.binary(max_size=20),
)
begins = st.builds(
    Begin,
    method=st.sampled_from(
        ["Echo", "Join", "Repeat", "EchoAll", "Hang", "Wait", "Fail", "Silent", "Sink", "Nope"]
    ),
    more=st.sampled_from(
        [(), (), (("grpc-timeout", "1n"),), (("grpc-timeout", "1S"),), (("grpc-encoding", "gzip"),)]
    ),
    ended=st.sampled_from([False, False, True]),
    split_at=st.sampled_from([0, 0, 0, 1, 30]),
)
messages = st.builds(
    Message, picks, bodies, st.sampled_from([0, 0, 1, 255]), st.sampled_from([False, False, True])
)
frames = st.one_of(
    st.builds(Frame, st.just(RST), words, pick=picks),
    st.builds(Frame, st.just(WINDOW), words, pick=st.none() | picks),
    st.builds(Frame, st.just(WINDOW), st.just(b"\0\0\x10\0"), pick=st.none() | picks),
    st.builds(Frame, st.just(PING), st.just(b"12345678"), st.integers(0, 1)),
    st.builds(
        Frame,
        st.just(SETTINGS),
        # Windows, frame sizes, table sizes and numbers of streams, allowed or not.
        st.lists(
            st.builds(
                lambda name, value: struct.pack(">HI", name, value),
                st.integers(1, 7),
                st.sampled_from([0, 1, 100, 16_384, 65_535, 2**24, 2**31 - 1, 2**31]),
            ),
            max_size=3,
        ).map(b"".join),
    ),
    st.builds(Frame, st.just(PRIORITY), st.binary(min_size=5, max_size=5), pick=picks),
    st.builds(Frame, st.just(GOAWAY), st.just(bytes(8))),
    # Trailers.
    st.builds(Frame, st.just(HEADERS), st.just(b"\x00\x01x\x01y"), st.sampled_from([4, 5]), picks),
    # Whatever.
    st.builds(
        Frame, st.integers(0, 12), st.binary(max_size=30), st.integers(0, 255), st.none() | picks
    ),
)
conversations = st.lists(st.one_of(begins, messages, messages, frames), max_size=25)


@attrs.frozen
class Delivery:
    """How bytes reach the server."""

    cuts: Sequence[int]
    """Where, modulo their number, what is sent is cut into pieces that arrive one by one."""
    length: float
    """The part that is sent at all."""
    ending: str
    """`shut` reads what is answered; `close` and `abort` leave without a word."""

    def pieces(self, data: bytes) -> list[bytes]:
        data = data[: round(len(data) * self.length)]
        places = sorted({cut % (len(data) + 1) for cut in self.cuts} | {0, len(data)})
        return [data[start:end] for start, end in pairwise(places)]


deliveries = st.builds(
    Delivery,
    cuts=st.lists(st.integers(0, 10_000), max_size=6),
    length=st.one_of(st.just(1.0), st.floats(0, 1)),
    ending=st.sampled_from(["shut", "close", "abort"]),
)


async def deliver(live: Any, data: bytes, how: Delivery) -> None:
    stream = await trio.open_tcp_stream(live.server.address.host, live.server.address.port)
    async with stream:
        with suppress(trio.BrokenResourceError):
            for piece in how.pieces(data):
                await stream.send_all(piece)
                await trio.testing.wait_all_tasks_blocked()
            if how.ending == "shut":
                await stream.send_eof()
                while await stream.receive_some(65_536):
                    pass
            elif how.ending == "abort":
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def no_surprises() -> Iterator[None]:
    """The connection's last resort, which logs what it did not expect, is not needed."""

    class Surprises(logging.Handler):
        def __init__(self) -> None:
            super().__init__(logging.ERROR)
            self.seen: list[str] = []

        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("cannot read"):
                self.seen.append(logging.Formatter().format(record))

    handler = Surprises()
    logger = logging.getLogger("anyserve.transport")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    assert handler.seen == []


def check(serving: Any, data: bytes, how: Delivery) -> None:
    """Deliver `data` to a server, and see that it is as it was."""

    async def main() -> None:
        with trio.fail_after(20), no_surprises():
            async with serving() as live, live.open_channel() as channel:
                assert await channel.unary("/test.Probe/Echo", b"before", bytes) == b"before"
                before, tasks = live.server.statistics(), trio.lowlevel.current_statistics()
                await deliver(live, data, how)
                assert await channel.unary("/test.Probe/Echo", b"after", bytes) == b"after"
                with trio.fail_after(5):
                    while (
                        live.server.statistics() != before
                        or trio.lowlevel.current_statistics().tasks_living != tasks.tasks_living
                    ):
                        await trio.lowlevel.checkpoint()

    trio.run(main)


@settings(max_examples=EXAMPLES)
@given(conversation=conversations, how=deliveries)
def test_a_conversation_of_good_and_broken_frames_leaves_the_server_as_it_was(
    serving: Any, conversation: list[Begin | Message | Frame], how: Delivery
):
    speaker = Speaker()
    said = b"".join(map(speaker.say, conversation))
    check(serving, PREFACE + h2_frame(SETTINGS) + said, how)


@pytest.fixture(scope="module")
def recorded(serving: Any, relay: Any) -> bytes:
    """What grpcio sends on a connection for calls of all kinds."""

    def work(target: str) -> None:
        with grpc.insecure_channel(target, compression=grpc.Compression.Gzip) as channel:
            echo = channel.unary_unary("/test.Probe/Echo")
            for message in (b"", b"hello" * 20):
                echo(message, timeout=5, metadata=[("key", "value"), ("raw-bin", b"\0\xff")])
            many = [b"%d" % number for number in range(20)]
            list(channel.stream_stream("/test.Probe/EchoAll")(iter(many)))
            channel.stream_unary("/test.Probe/Join")(iter(many))
            list(channel.unary_stream("/test.Probe/Repeat")(b"100,20"))
            cancelled = channel.unary_stream("/test.Probe/Repeat")(b"1000,1000000")
            next(cancelled)
            cancelled.cancel()
            echo(b"last", timeout=5)

    async def main() -> bytes:
        async with serving() as live, relay(live) as between:
            await trio.to_thread.run_sync(work, between.target)
            return bytes(max(between.sent, key=len))

    return trio.run(main)


@attrs.frozen
class Flip:
    """A bit is another."""

    place: int
    bit: int

    def apply(self, data: bytearray) -> None:
        data[self.place % len(data)] ^= 1 << self.bit


@attrs.frozen
class Move:
    """A part is left out, or comes twice, or comes elsewhere too."""

    start: int
    size: int
    target: int
    kept: bool

    def apply(self, data: bytearray) -> None:
        start = self.start % len(data)
        part = data[start : start + self.size]
        if not self.kept:
            del data[start : start + self.size]
        target = self.target % (len(data) + 1)
        data[target:target] = part


places = st.integers(0, 100_000)
errors = st.one_of(
    st.builds(Flip, places, st.integers(0, 7)),
    st.builds(Move, places, st.integers(1, 300), places, st.booleans()),
)


@settings(max_examples=EXAMPLES)
@given(mistakes=st.lists(errors, max_size=4), how=deliveries)
def test_a_replayed_client_with_errors_leaves_the_server_as_it_was(
    serving: Any, recorded: bytes, mistakes: list[Flip | Move], how: Delivery
):
    data = bytearray(recorded[len(PREFACE) :])
    for mistake in mistakes:
        mistake.apply(data)
    check(serving, PREFACE + bytes(data), how)


def test_a_replayed_client_without_errors_is_served_again(serving: Any, recorded: bytes):
    async def main() -> None:
        async with serving() as live:
            address = live.server.address
            async with await trio.open_tcp_stream(address.host, address.port) as stream:
                await stream.send_all(recorded)
                answered = b""
                with trio.fail_after(5):
                    # In any order: each call is a task.
                    while not all(framed(data, 0) in answered for data in (b"hello" * 20, b"last")):
                        answered += await stream.receive_some(65_536)

    trio.run(main)
