"""The watchdog's thread, with event loops that are really blocked."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing

from anyserve import App, Response
from anyserve.worker import watchdog
from anyserve.worker.watchdog import BLOCKED_AFTER, Watchdog

app, other_app = App(), App()


@app.capability("blocks")
async def blocks(request: Any, context: Any) -> Response:
    request()
    return Response()


@other_app.capability("blocks_too")
async def blocks_too(request: Any, context: Any) -> Response:
    request()
    return Response()


def running() -> list[str]:
    return ["blocks"]


def looked_at(watched: Watchdog, *looks: float) -> Callable[[], None]:
    """Blocks in native code while another thread has `watched` look, so long after its pulse."""
    blocked, done = threading.Lock(), threading.Lock()
    blocked.acquire()
    done.acquire()

    def look() -> None:
        assert blocked.acquire(timeout=10)
        for seconds in looks:
            watched.look(watched._pulse + seconds)
        done.release()

    threading.Thread(target=look).start()

    def block() -> None:
        blocked.release()
        assert done.acquire(timeout=10)

    return block


LATE = BLOCKED_AFTER + 0.5


async def test_the_handler_that_blocks_is_named_once_with_the_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = Watchdog()
    with watched.watching(app.handlers, running):
        await blocks(looked_at(watched, 0.5 * BLOCKED_AFTER), None)
        assert caplog.messages == []
        await blocks(looked_at(watched, LATE, 2 * LATE), None)
    (message,) = caplog.messages
    assert caplog.records[0].levelno == logging.ERROR
    assert message.startswith("the handler of 'blocks' has blocked the event loop for 1.5 s, at ")
    assert "test_worker_watchdog.py:" in message


async def test_where_no_handler_is_to_blame_it_says_what_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = Watchdog()
    with (
        watched.watching(app.handlers, running),
        watched.watching(other_app.handlers, lambda: ["blocks_too"]),
    ):
        looked_at(watched, LATE)()
    (message,) = caplog.messages
    assert message.startswith("something (running: ['blocks', 'blocks_too']) has blocked")


async def test_one_watchdog_names_the_handlers_of_all_apps_for_as_long_as_they_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = Watchdog()
    with watched.watching(app.handlers, running):
        with watched.watching(other_app.handlers, list):
            await blocks_too(looked_at(watched, LATE), None)
        assert "the handler of 'blocks_too' has" in caplog.messages.pop()
    looked_at(watched, 2 * LATE)()
    assert len(caplog.messages) == 1, "nobody is watched any more"


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Lock]:
    """Free once somebody was named, by a watchdog in a hurry."""
    monkeypatch.setattr(watchdog, "BLOCKED_AFTER", 0.05)
    lock = threading.Lock()
    lock.acquire()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if lock.locked():
                lock.release()

    handler = Handler()
    watchdog.log.addHandler(handler)
    yield lock
    watchdog.log.removeHandler(handler)


async def test_its_thread_looks_while_the_loop_is_blocked(named: threading.Lock) -> None:
    watched = Watchdog()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.run)
        await trio.testing.wait_all_tasks_blocked()
        with watched.watching(app.handlers, running):
            await blocks(lambda: named.acquire(timeout=10) or pytest.fail("not named"), None)
        nursery.cancel_scope.cancel()


def test_a_loop_that_waits_for_its_turn_blames_nobody_until_somebody_blocks_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a starved loop looks like from the thread: its innermost frame is one of Trio's."""

    async def main() -> None:
        watched = Watchdog()
        waiting = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def look() -> None:
            deadline = time.monotonic() + 10
            while watched._describe(LATE) is not None and time.monotonic() < deadline:
                pass  # the loop has not got to waiting yet
            watched.look(watched._pulse + LATE)
            token.run_sync_soon(waiting.set)

        with watched.watching(app.handlers, running):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, look)
                await waiting.wait()
            assert caplog.messages == []
            await blocks(looked_at(watched, LATE), None)  # before the loop had a pulse again
        assert len(caplog.messages) == 1

    trio.run(main)
