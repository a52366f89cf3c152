"""Small window updates: many clients send some for each answer, and only a flood is one.

The clock stands still, so that all that a test sends is in one second.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
import trio
import trio.testing

pytestmark = pytest.mark.parametrize("wire", ["trio"], indirect=True)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, GOAWAY, WINDOW, CLOSED = 0, 1, 4, 7, 8, -1
END_STREAM, END_HEADERS = 1, 4
AT_ONCE = 100


def h2_frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def update(increment: int, stream: int = 0) -> bytes:
    return h2_frame(WINDOW, struct.pack(">I", increment), stream=stream)


class Frames:
    """Reads a server's frames."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._data = b""

    async def read(self) -> list[tuple[int, int, int]]:
        """Kind, flags and stream of those that the next read completes; `CLOSED` at the end."""
        try:
            more = await self._stream.receive_some(65536)
        except trio.BrokenResourceError:
            more = b""
        if not more:
            return [(CLOSED, 0, 0)]
        self._data += more
        found = []
        while len(self._data) >= 9 + int.from_bytes(self._data[:3]):
            length, kind, flags = int.from_bytes(self._data[:3]), *self._data[3:5]
            found.append((kind, flags, int.from_bytes(self._data[5:9])))
            self._data = self._data[9 + length :]
        return found


async def test_two_small_updates_for_each_small_answer_are_no_flood(
    mock_clock: trio.testing.MockClock, live: Any, connect: Any, frame: Any, caplog: Any
):
    """As grpcio does, which calls as fast as it can on one connection."""
    calls, begun, answered = 5_000, AT_ONCE, 0
    async with connect(live) as client:
        await client.send_raw(PREFACE + h2_frame(SETTINGS))
        head = client.h2.encoder.encode(client.head("Echo"))
        again = client.h2.encoder.encode(client.head("Echo"))  # its names are in the table now
        body = frame(b"")

        def call(stream: int) -> bytes:
            block = head if stream == 1 else again
            return h2_frame(HEADERS, block, END_HEADERS, stream) + h2_frame(
                DATA, body, END_STREAM, stream
            )

        await client.send_raw(b"".join(call(2 * number + 1) for number in range(AT_ONCE)))
        reply = b""
        frames = Frames(client.socket)
        while answered < calls:
            for kind, flags, stream in await frames.read():
                assert kind not in (GOAWAY, CLOSED)
                if kind == DATA:
                    reply += update(5) + update(5, stream)
                elif kind == HEADERS and flags & END_STREAM:
                    answered += 1
                    if begun < calls:
                        reply += call(2 * begun + 1)
                        begun += 1
            await client.send_raw(reply)
            reply = b""
        await trio.testing.wait_all_tasks_blocked()
        assert live.server.statistics().connections == 1
    assert answered == calls
    assert "flood" not in caplog.text


@pytest.mark.parametrize("on_a_stream", [False, True])
async def test_small_updates_for_nothing_are_a_flood(
    mock_clock: trio.testing.MockClock,
    live: Any,
    connect: Any,
    frame: Any,
    caplog: Any,
    on_a_stream: bool,
):
    async with connect(live) as client:
        await client.greet()
        stream = await client.call("Hang", frame(b"x"))
        await live.probe.started.wait()
        updates = update(5, stream if on_a_stream else 0)
        await client.send_raw(updates * 3_000)
        await trio.testing.wait_all_tasks_blocked()
        assert live.server.statistics().connections == 1
        await client.send_raw(updates * 3_000)
        frames, seen = Frames(client.socket), [0]
        while seen[-1] != CLOSED:
            seen += [kind for kind, _, _ in await frames.read()]
        assert seen[-2] == GOAWAY
    assert "flood" in caplog.text
    await live.probe.until_ended()


async def test_what_a_peer_was_sent_long_ago_pays_for_no_more_than_it_can_have_in_hand(
    mock_clock: trio.testing.MockClock, live: Any, connect: Any, frame: Any
):
    """A large answer earns many updates, and not without end."""
    async with connect(live) as client:
        await client.greet()
        await client.answer(await client.call("Repeat", frame(b"100000,5")))
        mock_clock.jump(100)
        await client.send_raw(update(5) * 10_000)
        await trio.testing.wait_all_tasks_blocked()
        assert live.server.statistics().connections == 1
        await client.send_raw(update(5) * 6_000)
        await client.until(lambda: client.goaway)
        assert client.goaway or client.closed
