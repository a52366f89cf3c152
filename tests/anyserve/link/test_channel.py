from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from anyserve.link import frames
from anyserve.link.channel import FrameChannel, LinkClosed
from anyserve.link.frames import Frame, Kind


@pytest.fixture
async def ends() -> AsyncIterator[tuple[FrameChannel, FrameChannel]]:
    pair = socket.socketpair(socket.AF_UNIX)
    one, two = map(FrameChannel, pair)
    yield one, two
    await one.aclose()
    await two.aclose()


async def received(channel: FrameChannel, count: int) -> list[Frame]:
    found: list[Frame] = []
    with trio.fail_after(10):
        while len(found) < count:
            found += await channel.receive()
    return found


@pytest.mark.parametrize("seed", range(5))
async def test_frames_of_all_sizes_arrive_whole_and_in_order(ends, seed: int) -> None:
    one, two = ends
    chance = random.Random(seed)
    bodies = [chance.randbytes(chance.choice([0, 5, 3000, 70_000, 400_000])) for _ in range(60)]

    async def send() -> None:
        for number, body in enumerate(bodies):
            if chance.random() < 0.5:
                one.send(frames.encode(Kind.PING, number, body))
            else:
                one.send([frames.encode(Kind.PING, number, body)])
            if chance.random() < 0.3:
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run_writer)
        nursery.start_soon(send)
        found = await received(two, len(bodies))
        nursery.cancel_scope.cancel()
    assert [frame.call for frame in found] == list(range(len(bodies)))
    assert [bytes(frame.body) for frame in found] == bodies


async def test_frames_wait_in_order_while_nobody_reads(ends) -> None:
    one, two = ends
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run_writer)
        for number in range(200):
            one.send(frames.encode(Kind.PING, number, bytes(10_000)))
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        found = await received(two, 200)
        nursery.cancel_scope.cancel()
    assert [frame.call for frame in found] == list(range(200))


async def test_the_writer_says_when_the_other_end_is_gone_and_sends_are_dropped_then(ends) -> None:
    one, two = ends
    await two.aclose()
    one.send(frames.encode(Kind.PING, 1, bytes(1000)))
    with pytest.raises(LinkClosed):
        await one.flush()
    one.send(frames.encode(Kind.PING, 2))
    assert await one.receive() == []
