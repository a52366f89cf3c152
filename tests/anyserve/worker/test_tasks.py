"""Tasks that run one job after another, each as if it were the only one."""

from __future__ import annotations

import contextvars
import gc
import logging
import math
import weakref
from collections.abc import Awaitable, Callable

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from anyserve.worker import tasks
from anyserve.worker.tasks import Tasks

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@attrs.define(eq=False)
class Work:
    """A job that notes which task runs it, and that it was cut off."""

    body: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    scope: trio.CancelScope = attrs.field(init=False)
    task: trio.lowlevel.Task | None = None
    ended: bool = False
    cut_off: bool = False

    async def run(self) -> None:
        self.task = trio.lowlevel.current_task()
        try:
            await self.body()
        except trio.Cancelled:
            self.cut_off = True
            raise
        finally:
            self.ended = True


async def run(pool: Tasks, work: Work) -> Work:
    """Start it, and wait until nothing goes on."""
    pool.start(work)
    await wait_all_tasks_blocked()
    return work


async def test_a_task_whose_job_has_ended_runs_the_next(nursery: trio.Nursery) -> None:
    pool = Tasks(nursery, "call echo")
    first, second = await run(pool, Work()), await run(pool, Work())
    assert first.ended
    assert second.ended
    assert first.task is second.task
    assert first.task is not None
    assert first.task.name == "call echo"


async def test_jobs_that_run_at_once_have_tasks_and_scopes_of_their_own(
    nursery: trio.Nursery,
) -> None:
    pool = Tasks(nursery, "call")
    held = [Work(trio.sleep_forever) for _ in range(3)]
    for work in held:
        await run(pool, work)
    assert len({work.task for work in held}) == len({work.scope for work in held}) == 3
    held[1].scope.cancel()
    await wait_all_tasks_blocked()
    assert [work.cut_off for work in held] == [False, True, False]


async def test_a_scope_that_was_cancelled_is_not_used_again(nursery: trio.Nursery) -> None:
    pool = Tasks(nursery, "call")
    cancelled = await run(pool, Work(trio.sleep_forever))
    cancelled.scope.cancel()
    await wait_all_tasks_blocked()

    async def too_late() -> None:
        late.scope.cancel()

    late = await run(pool, Work(too_late))
    following = await run(pool, Work())
    assert (cancelled.cut_off, late.cut_off, following.cut_off) == (True, False, False)
    assert len({cancelled.scope, late.scope, following.scope}) == 3
    assert following.ended


async def test_a_deadline_ends_with_its_job(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    pool = Tasks(nursery, "call")

    async def hurry() -> None:
        first.scope.deadline = trio.current_time() + 1
        await trio.sleep(0.5)

    first = Work(hurry)
    pool.start(first)
    await trio.sleep(0.9)

    async def take_long() -> None:
        await trio.sleep(10)

    second = Work(take_long)
    pool.start(second)
    await trio.sleep(20)
    assert second.task is first.task
    assert (second.ended, second.cut_off) == (True, False)
    assert second.scope.deadline == math.inf


async def test_a_deadline_that_passes_cuts_its_job_off(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    pool = Tasks(nursery, "call")

    async def overrun() -> None:
        work.scope.deadline = trio.current_time() + 1
        await trio.sleep_forever()

    work = Work(overrun)
    pool.start(work)
    await trio.sleep(2)
    assert work.cut_off


async def test_what_a_job_sets_in_its_context_is_not_seen_by_the_next(
    nursery: trio.Nursery,
) -> None:
    pool = Tasks(nursery, "call")
    seen: list[str] = []

    async def see_and_set() -> None:
        seen.append(variable.get())
        variable.set("by a job")
        await trio.lowlevel.checkpoint()
        seen.append(variable.get())

    first = await run(pool, Work(see_and_set))
    variable.set("by who starts it")
    second = await run(pool, Work(see_and_set))
    assert first.task is second.task
    assert seen == ["unset", "by a job", "by who starts it", "by a job"]


async def test_the_end_of_the_nursery_ends_jobs_and_tasks_that_wait(nursery: trio.Nursery) -> None:
    async with trio.open_nursery() as inner:
        pool = Tasks(inner, "call")
        await run(pool, Work())
        held = Work(trio.sleep_forever)
        pool.start(Work())
        await run(pool, held)
        inner.cancel_scope.cancel()
    assert held.cut_off


async def test_no_more_tasks_wait_than_are_worth_keeping(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_KEPT", 2)
    pool = Tasks(nursery, "call")
    for _ in range(5):
        pool.start(Work())
    await wait_all_tasks_blocked()
    assert len(nursery.child_tasks) == 2


async def test_a_task_that_waits_keeps_nothing_of_its_job(nursery: trio.Nursery) -> None:
    pool = Tasks(nursery, "call")
    work = await run(pool, Work())
    work.task = None
    kept = weakref.ref(work)
    del work
    gc.collect()
    assert kept() is None


async def test_what_fails_beside_the_cancellation_is_logged_and_harms_no_other(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_while_cancelled() -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("beside it")

    pool = Tasks(nursery, "call")
    work = await run(pool, Work(fail_while_cancelled))
    with caplog.at_level(logging.ERROR):
        work.scope.cancel()
        await wait_all_tasks_blocked()
    assert "beside it" in caplog.text
    assert (await run(pool, Work())).ended
