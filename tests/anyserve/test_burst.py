"""Output that gathers, and is written at the end of what it came in."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

import attrs
import pytest
import trio
import trio.testing

from anyserve.burst import burst, defer, each_turn, now, woke
from anyserve.waiting import Waiter


@attrs.define(eq=False)
class Outlet:
    """Notes that it settles, and does what the test wants then."""

    log: list[str]
    name: str = "one"
    then: Callable[[], object] = lambda: None

    def settle(self) -> None:
        self.log.append(self.name)
        self.then()


def _fail() -> None:
    raise ValueError("broken")


def _send(*outlets: Outlet) -> None:
    with burst:
        for outlet in outlets:
            defer(outlet)


@pytest.fixture
def log() -> list[str]:
    """What has settled, in order."""
    return []


async def test_outside_of_a_burst_and_a_turn_nothing_is_deferred(log: list[str]):
    assert not defer(Outlet(log))
    with burst:
        pass
    with each_turn():
        pass
    assert not defer(Outlet(log))
    assert log == []


async def test_what_is_due_settles_once_at_the_end_of_the_burst(log: list[str]):
    one, two = Outlet(log, "one"), Outlet(log, "two")
    with burst:
        assert defer(one)
        assert defer(two)
        assert defer(one)
        assert log == []
    assert log == ["one", "two"]


async def test_only_the_outermost_of_nested_bursts_settles(log: list[str]):
    with burst:
        with burst:
            defer(Outlet(log))
        assert log == []
    assert log == ["one"]


async def test_what_becomes_due_while_others_settle_settles_too(log: list[str]):
    last = Outlet(log, "last")
    with burst:
        defer(Outlet(log, "first", lambda: defer(last)))
    assert log == ["first", "last"]


async def test_an_outlet_may_become_due_again_while_it_settles(log: list[str]):
    outlet = Outlet(log)
    outlet.then = lambda: len(log) < 3 and defer(outlet)
    with burst:
        defer(outlet)
    assert log == ["one"] * 3


async def test_a_burst_whose_block_fails_settles_what_was_sent_before(log: list[str]):
    with suppress(ValueError), burst:
        defer(Outlet(log))
        raise ValueError("broken")
    assert log == ["one"]
    assert not defer(Outlet(log))


async def test_an_outlet_that_fails_keeps_neither_the_burst_open_nor_the_others_back(
    log: list[str],
):
    with pytest.raises(ValueError, match="broken"):
        _send(Outlet(log, "fails", _fail), Outlet(log, "other"))
    assert not defer(Outlet(log))
    with burst:
        pass
    assert log == ["fails", "other"]


async def test_the_time_stands_still_in_a_burst(mock_clock: trio.testing.MockClock):
    with burst:
        began = now()
        mock_clock.jump(5)
        with burst:
            assert now() == began
        assert now() == began
    assert now() == began + 5
    with burst:
        assert now() == began + 5
    mock_clock.jump(1)
    assert now() == began + 6


async def test_each_turn_settles_once_all_tasks_have_had_theirs(log: list[str]):
    outlet = Outlet(log)

    async def send(name: str) -> None:
        assert defer(outlet)
        log.append(name)
        await trio.testing.wait_all_tasks_blocked()

    with each_turn():
        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c"):
                nursery.start_soon(send, name)
    assert sorted(log[:3]) == ["a", "b", "c"]
    assert log[3:] == ["one"]


async def test_a_task_that_is_woken_by_settling_runs_at_once(log: list[str]):
    """Trio has then found nobody to run, and would wait for whatever comes first."""
    waiter, scope = Waiter(), trio.CancelScope()

    def cancel() -> None:
        scope.cancel()
        woke()

    began = trio.current_time()
    with each_turn(), trio.fail_after(10):
        defer(Outlet(log, then=waiter.wake))
        await waiter.wait()
        defer(Outlet(log, then=cancel))
        with scope:
            await trio.sleep_forever()
    assert trio.current_time() - began < 5


async def test_a_task_that_is_woken_beside_an_outlet_that_fails_runs_at_once(log: list[str]):
    waiter = Waiter()

    def wake_and_fail() -> None:
        waiter.wake()
        raise ValueError("broken")

    began = trio.current_time()
    with each_turn(), trio.fail_after(10):
        defer(Outlet(log, then=wake_and_fail))
        await waiter.wait()
    assert trio.current_time() - began < 5


async def test_an_outlet_that_fails_is_logged_and_later_turns_settle(
    log: list[str], caplog: pytest.LogCaptureFixture
):
    with each_turn():
        with caplog.at_level(logging.ERROR):
            defer(Outlet(log, "fails", _fail))
            defer(Outlet(log, "other"))
            await trio.testing.wait_all_tasks_blocked()
        assert "an outlet can't be settled" in caplog.text
        defer(Outlet(log, "later"))
        await trio.testing.wait_all_tasks_blocked()
    assert log == ["fails", "other", "later"]


async def test_a_burst_among_turns_settles_at_its_own_end(log: list[str]):
    with each_turn():
        with burst:
            defer(Outlet(log))
        assert log == ["one"]


async def test_what_is_due_when_the_turns_end_settles(log: list[str]):
    with each_turn():
        defer(Outlet(log))
    assert log == ["one"]


async def test_turns_go_on_until_the_last_who_wants_them_has_left(log: list[str]):
    with each_turn():
        with each_turn():
            pass
        assert defer(Outlet(log))
        await trio.testing.wait_all_tasks_blocked()
        assert log == ["one"]
    assert not defer(Outlet(log))


def test_one_run_after_another_finds_nothing_of_the_first(log: list[str]):
    async def run(name: str) -> None:
        assert not defer(Outlet(log))
        with each_turn():
            defer(Outlet(log, name))
            await trio.testing.wait_all_tasks_blocked()

    for name in ("first", "second"):
        trio.run(run, name)
    assert log == ["first", "second"]


async def test_another_threads_run_has_bursts_of_its_own(log: list[str]):
    opened, closed = threading.Event(), threading.Event()

    async def other() -> None:
        with burst:
            defer(Outlet(log, "theirs"))
            opened.set()
            assert closed.wait(10)
        assert log == ["ours", "theirs"]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, trio.run, other)
        await trio.to_thread.run_sync(opened.wait, 10)
        assert not defer(Outlet(log))
        with burst:
            defer(Outlet(log, "ours"))
        assert log == ["ours"]
        closed.set()
