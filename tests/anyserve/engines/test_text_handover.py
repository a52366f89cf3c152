"""What threads bring reaches its readers: all of it, in order, and not too far ahead of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest
import trio
import trio.testing

from anyserve.engines.text.handover import Bell, Handover
from anyserve.waiting import Waiter

LIMIT = 8
MANY = 2000


async def run(handover: Handover[int], work: Callable[[], None]) -> None:
    """As an engine does: run `work` in a thread, and say how it ended."""
    try:
        await trio.to_thread.run_sync(work)
    except Exception as error:
        handover.end(error)
    finally:
        handover.end()


async def everything(handover: Handover[int]) -> list[int]:
    return [item async for item in handover]


async def test_all_that_many_threads_bring_is_read_once_and_in_order() -> None:
    bell = Bell()
    read: dict[int, list[int]] = {}

    def bring(handover: Handover[int]) -> None:
        for item in range(MANY):
            handover.put(item)

    async def reader(number: int, handover: Handover[int]) -> None:
        read[number] = await everything(handover)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            handover: Handover[int] = Handover(bell, LIMIT)
            nursery.start_soon(reader, number, handover)
            nursery.start_soon(run, handover, partial(bring, handover))
    assert read == {number: list(range(MANY)) for number in range(8)}


async def test_a_thread_is_never_further_ahead_than_the_limit() -> None:
    handover: Handover[int] = Handover(Bell(), LIMIT)
    begun = 0

    def bring() -> None:
        nonlocal begun
        for item in range(MANY):
            begun += 1
            handover.put(item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, handover, bring)
        ahead = [begun - item async for item in handover]
    assert max(ahead) <= LIMIT + 1  # the item that was just read among them
    assert max(ahead) > 1


async def test_a_cancelled_thread_stops_waiting_for_its_reader_and_what_it_brought_is_read() -> (
    None
):
    handover: Handover[int] = Handover(Bell(), LIMIT)
    full = trio.Event()

    def bring() -> None:
        for item in range(LIMIT - 1):
            handover.put(item)
        trio.from_thread.run_sync(full.set)
        handover.put(LIMIT - 1)
        raise AssertionError("nobody has read")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, handover, bring)
            await full.wait()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await everything(handover) == list(range(LIMIT))


async def test_a_cancelled_reader_takes_nothing() -> None:
    handover: Handover[int] = Handover(Bell(), LIMIT)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, handover)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    await trio.to_thread.run_sync(handover.put, 1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await anext(handover)
    assert scope.cancelled_caught
    assert await anext(handover) == 1


async def test_an_error_comes_after_all_items() -> None:
    handover: Handover[int] = Handover(Bell(), LIMIT)

    def bring() -> None:
        handover.put(1)
        handover.put(2)
        raise ValueError("broken")

    await run(handover, bring)
    assert [await anext(handover), await anext(handover)] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        await anext(handover)


async def test_a_reader_that_waits_is_told_the_end() -> None:
    handover: Handover[int] = Handover(Bell(), LIMIT)
    async with trio.open_nursery() as nursery:

        async def reader() -> None:
            assert await everything(handover) == []

        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        handover.end()


async def test_reading_what_is_there_lets_other_tasks_run() -> None:
    handover: Handover[int] = Handover(Bell(), LIMIT)
    await trio.to_thread.run_sync(handover.put, 1)
    with trio.testing.assert_checkpoints():
        assert await anext(handover) == 1


async def test_trio_is_woken_once_for_all_that_threads_have_brought() -> None:
    bell = Bell()
    waiters = [Waiter() for _ in range(8)]
    woken: list[int] = []

    async def wait(number: int) -> None:
        await waiters[number].wait()
        woken.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(wait, number)
        await trio.testing.wait_all_tasks_blocked()
        for waiter in waiters:
            thread = threading.Thread(target=bell.ring, args=(waiter,))
            thread.start()
            thread.join()  # in Trio's thread, which can't answer meanwhile
        assert trio.lowlevel.current_statistics().run_sync_soon_queue_size == 1
    assert sorted(woken) == list(range(8))
