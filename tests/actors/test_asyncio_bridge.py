"""The asyncio bridge: results, errors and cancellation in both directions, and its close."""

from __future__ import annotations

import asyncio
import contextvars
import logging

import pytest
import trio
import trio.testing
from anyserve_actors.asyncio_bridge import Bridge, open_bridge


class OwnError(Exception):
    pass


@pytest.fixture
async def bridge():
    async with open_bridge() as bridge:
        yield bridge


async def test_a_result_of_asyncio_code_comes_back_to_trio(bridge: Bridge):
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return number * 2

    assert await bridge.run_asyncio(double, 21) == 42


async def test_a_result_of_trio_code_comes_back_to_asyncio(bridge: Bridge):
    async def double(number: int) -> int:
        await trio.lowlevel.checkpoint()
        return number * 2

    assert await bridge.run_asyncio(bridge.run_trio, double, 21) == 42


async def test_a_function_may_ask_for_the_running_loop_before_it_awaits(bridge: Bridge):
    def answer() -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future.set_result(7)
        return future

    assert await bridge.run_asyncio(answer) == 7


@pytest.mark.parametrize(
    "error",
    [
        OwnError("mine"),
        KeyError("k"),
        TimeoutError(),
        ExceptionGroup("made by the user", [OwnError("a"), ValueError("b")]),
        ExceptionGroup("of one", [OwnError("a")]),
    ],
    ids=repr,
)
async def test_errors_come_back_as_themselves_in_both_directions(bridge: Bridge, error: Exception):
    async def fail() -> None:
        raise error

    with pytest.raises(type(error)) as from_asyncio:
        await bridge.run_asyncio(fail)
    assert from_asyncio.value is error

    with pytest.raises(type(error)) as through_both:
        await bridge.run_asyncio(bridge.run_trio, fail)
    assert through_both.value is error


async def test_cancelling_trio_cancels_the_asyncio_task_and_waits_for_its_cleanup(bridge: Bridge):
    steps: list[str] = []

    async def work() -> None:
        try:
            steps.append("started")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            steps.append("cleaned up")
            raise

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bridge.run_asyncio, work)
        await trio.testing.wait_all_tasks_blocked()
        assert steps == ["started"]
        nursery.cancel_scope.cancel()
    assert steps == ["started", "cleaned up"]


async def test_a_result_that_beats_the_cancellation_is_returned(bridge: Bridge):
    async def work() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "finished all the same"
        return "never"

    results: list[str] = []

    async def run() -> None:
        results.append(await bridge.run_asyncio(work))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert results == ["finished all the same"]


async def test_cancelling_the_asyncio_task_cancels_the_trio_child_and_waits_for_its_cleanup(
    bridge: Bridge,
):
    steps: list[str] = []

    started = asyncio.Event()

    async def child() -> None:
        try:
            steps.append("started")
            started.set()
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            steps.append("cleaned up")

    async def work() -> None:
        task = asyncio.ensure_future(bridge.run_trio(child))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        steps.append("awaited")

    await bridge.run_asyncio(work)
    assert steps == ["started", "cleaned up", "awaited"]


async def test_a_cancellation_goes_through_both_worlds_and_back(bridge: Bridge):
    steps: list[str] = []

    async def inner() -> None:
        try:
            await trio.sleep_forever()
        finally:
            steps.append("inner")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bridge.run_asyncio, bridge.run_trio, inner)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert steps == ["inner"]


async def test_asyncio_code_that_cancels_itself_is_told_apart_from_a_trio_cancel(bridge: Bridge):
    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await bridge.run_asyncio(give_up)


async def test_context_variables_reach_the_other_side(bridge: Bridge):
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")

    async def read() -> str:
        return request.get()

    request.set("r-1")
    assert await bridge.run_asyncio(read) == "r-1"
    assert await bridge.run_asyncio(bridge.run_trio, read) == "r-1"


async def test_closing_ends_background_tasks_of_both_kinds():
    ended: list[str] = []

    async def trio_background() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("trio")

    async with open_bridge() as bridge:

        async def asyncio_background() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("asyncio")

        async def start() -> list[asyncio.Future[None]]:
            return [
                asyncio.ensure_future(asyncio_background()),
                asyncio.ensure_future(bridge.run_trio(trio_background)),
            ]

        tasks = await bridge.run_asyncio(start)
        await trio.testing.wait_all_tasks_blocked()
        assert not ended
    assert sorted(ended) == ["asyncio", "trio"]
    assert all(task.done() for task in tasks)


async def test_the_close_is_bounded_when_a_task_ignores_its_cancellation(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
):
    async def stubborn() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    async def start() -> asyncio.Task[None]:
        return asyncio.create_task(stubborn(), name="stubborn")

    with trio.fail_after(60):
        async with open_bridge() as bridge:
            task = await bridge.run_asyncio(start)
            await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() == pytest.approx(5, abs=0.1)
    assert task.done()
    assert "stubborn ignored its cancellation" in caplog.text


async def test_what_the_block_raises_comes_out_as_itself():
    error = OwnError("from the block")
    with pytest.raises(OwnError) as caught:
        async with open_bridge():
            raise error
    assert caught.value is error


async def test_cancelling_the_block_closes_the_bridge():
    with trio.CancelScope() as scope:
        async with open_bridge() as bridge:
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert bridge.loop.is_closed()


async def test_a_closed_bridge_refuses_work():
    async with open_bridge() as bridge:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await bridge.run_asyncio(asyncio.sleep, 0)


async def test_an_error_that_no_task_owns_is_logged_and_ends_nothing(
    bridge: Bridge, caplog: pytest.LogCaptureFixture
):
    def explode() -> None:
        raise OwnError("in a callback")

    with caplog.at_level(logging.ERROR):
        bridge.loop.call_soon(explode)
        await trio.testing.wait_all_tasks_blocked()
    assert "in a callback" in caplog.text
    await bridge.run_asyncio(asyncio.sleep, 0)


async def test_two_bridges_live_side_by_side():
    async with open_bridge() as one, open_bridge() as other:
        assert one.loop is not other.loop

        async def loop_of() -> asyncio.AbstractEventLoop:
            return asyncio.get_running_loop()

        assert await one.run_asyncio(loop_of) is one.loop
        assert await other.run_asyncio(loop_of) is other.loop
