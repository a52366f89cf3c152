from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from anyserve.burst import burst, each_turn
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


async def test_what_a_burst_sends_is_written_at_its_end_in_one_piece(ends) -> None:
    one, two = ends
    with burst:
        for number in range(100):
            one.send(frames.encode(Kind.PING, number))
    # Nobody runs the writer.
    assert [frame.call for frame in await two.receive()] == list(range(100))


async def test_what_the_tasks_of_a_turn_send_is_written_together(ends) -> None:
    one, two = ends

    async def send(number: int) -> None:
        one.send(frames.encode(Kind.PING, number))

    with each_turn():
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(send, number)
        found = await two.receive()
    assert sorted(frame.call for frame in found) == list(range(20))


async def test_the_last_frame_for_a_while_is_written_at_once_behind_those_before(ends) -> None:
    one, two = ends
    with burst:
        one.send(frames.encode(Kind.PING, 1))
        one.send(frames.encode(Kind.PING, 2), last=True)
        assert [frame.call for frame in await two.receive()] == [1, 2]
        one.send(frames.encode(Kind.PING, 3))
    assert [frame.call for frame in await two.receive()] == [3]


async def test_what_the_socket_does_not_take_is_written_as_the_other_end_reads(ends) -> None:
    one, two = ends
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run_writer)
        for start in (0, 100):
            with burst:
                for number in range(start, start + 100):
                    one.send(frames.encode(Kind.PING, number, bytes(30_000)))
            await trio.testing.wait_all_tasks_blocked()
        one.send(frames.encode(Kind.PING, 200), last=True)
        found = await received(two, 201)
        nursery.cancel_scope.cancel()
    assert [frame.call for frame in found] == list(range(201))


async def test_a_flush_that_is_cancelled_keeps_the_rest(ends) -> None:
    one, two = ends
    for number in range(100):
        one.send(frames.encode(Kind.PING, number, bytes(30_000)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.flush)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    one.send(frames.encode(Kind.PING, 100))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run_writer)
        found = await received(two, 101)
        nursery.cancel_scope.cancel()
    assert [frame.call for frame in found] == list(range(101))


async def test_a_burst_to_an_end_that_is_gone_disturbs_nobody(ends) -> None:
    one, two = ends
    await two.aclose()
    for _ in range(2):
        with burst:
            one.send(frames.encode(Kind.PING, 1))
    assert await one.receive() == []
