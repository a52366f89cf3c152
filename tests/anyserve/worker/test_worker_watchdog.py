"""The watchdog's thread, with event loops that are really blocked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from anyserve import App, Response
from anyserve.worker import watchdog
from anyserve.worker.watchdog import Watchdog

app = App()


@app.capability("blocks")
async def blocks(request: Any, context: Any) -> Response:
    request()
    return Response()


@pytest.fixture
def blocked_until(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[[int], None]:
    """Blocks until so many lines are logged, with a watchdog in a hurry."""
    monkeypatch.setattr(watchdog, "BLOCKED_AFTER", 0.05)

    def block(lines: int) -> None:
        deadline = time.monotonic() + 10
        while len(caplog.messages) < lines and time.monotonic() < deadline:
            time.sleep(0.01)

    return block


async def test_the_handler_that_blocks_is_named_once_with_the_place(
    blocked_until: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Watchdog(app.handlers, lambda: ["blocks"]).run)
        await trio.testing.wait_all_tasks_blocked()

        def block() -> None:
            blocked_until(1)
            time.sleep(0.15)  # it looks again, and has nothing new to say

        await blocks(block, None)
        nursery.cancel_scope.cancel()
    (message,) = caplog.messages
    assert caplog.records[0].levelno == logging.ERROR
    assert message.startswith("the handler of 'blocks' has blocked the event loop for 0.")
    assert "test_worker_watchdog.py:" in message


async def test_where_no_handler_is_to_blame_it_says_what_runs(
    blocked_until: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Watchdog(app.handlers, lambda: ["blocks"]).run)
        await trio.testing.wait_all_tasks_blocked()
        blocked_until(1)
        await trio.testing.wait_all_tasks_blocked()  # the loop has a pulse again
        blocked_until(2)
        nursery.cancel_scope.cancel()
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith("something (running: ['blocks']) has blocked")


def test_a_loop_that_only_waits_for_its_turn_on_the_machine_blames_nobody() -> None:
    """What a starved loop looks like from the thread: its innermost frame is one of Trio's."""
    seen: list[str | None] = []

    async def main() -> None:
        watched = Watchdog(app.handlers, list)
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def look() -> None:
            deadline = time.monotonic() + 10
            while (found := watched._describe(2.0)) is not None and time.monotonic() < deadline:
                pass  # the loop has not got to waiting yet
            seen.append(found)
            token.run_sync_soon(done.set)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, look)
            await done.wait()

    trio.run(main)
    assert seen == [None]
