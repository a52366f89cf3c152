"""Waiting for one other task's word."""

from __future__ import annotations

import trio
import trio.testing

from anyserve.waiting import Waiter


async def test_a_wake_lets_the_waiting_task_go_on_once(autojump_clock: trio.testing.MockClock):
    waiter = Waiter()
    turns = 0

    async def wait() -> None:
        nonlocal turns
        while True:
            await waiter.wait()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        waiter.wake()
        waiter.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert turns == 1
        nursery.cancel_scope.cancel()


async def test_a_wake_before_the_wait_is_not_remembered(autojump_clock: trio.testing.MockClock):
    waiter = Waiter()
    waiter.wake()
    with trio.move_on_after(1) as scope:
        await waiter.wait()
    assert scope.cancelled_caught


async def test_a_cancelled_wait_leaves_nothing(autojump_clock: trio.testing.MockClock):
    waiter = Waiter()
    with trio.move_on_after(1):
        await waiter.wait()
    waiter.wake()
    with trio.move_on_after(1) as scope:
        await waiter.wait()
    assert scope.cancelled_caught
