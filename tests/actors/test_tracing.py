"""Tracing a live Trio program, with real steps on the real clock."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator

import pytest
import trio
from anyserve_actors import TracingError, span, tracing
from anyserve_actors.recording import Recording, Span, Step
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked


@pytest.fixture(autouse=True)
def not_traced() -> Iterator[None]:
    yield
    assert not tracing.active()


def steps_of(recording: Recording, name: str) -> list[Step]:
    return [step for step in recording.steps() if recording.rows[step.row] == name]


def instruments() -> int:
    runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner  # no public way to count them
    return len(runner.instruments["_all"])


def busy(seconds: float) -> None:
    """Keep the thread for `seconds`, as a handler that blocks does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def test_task_steps_are_recorded_between_start_and_stop() -> None:
    turns = 5

    async def walk() -> None:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(walk, name="before")
    tracing.start("me")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(walk, name="walker")
    recording = tracing.stop()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(walk, name="after")

    assert recording.process == "me"
    assert "before" not in recording.rows
    assert "after" not in recording.rows
    steps = steps_of(recording, "walker")
    assert len(steps) == turns + 1
    assert all(
        recording.began <= step.began <= step.began + step.duration <= recording.ended
        for step in steps
    )
    assert recording.dropped == 0


async def test_nothing_is_installed_while_tracing_is_off() -> None:
    before = instruments()
    tracing.start()
    assert instruments() == before + 1
    tracing.stop()
    assert instruments() == before
    assert span("a", "1") is span("b", "2")


async def test_a_step_says_how_long_its_task_could_have_run_already() -> None:
    async with trio.open_nursery() as nursery:
        tracing.start()
        event = trio.Event()

        async def wait() -> None:
            await event.wait()

        nursery.start_soon(wait, name="waiter")
        await wait_all_tasks_blocked()
        event.set()
        busy(0.02)
    recording = tracing.stop()
    last = steps_of(recording, "waiter")[-1]
    assert last.waited >= 0.02e9
    assert last.duration < 0.02e9


async def test_a_step_that_blocks_shows_its_duration() -> None:
    async def block() -> None:
        busy(0.02)

    tracing.start(blocking=0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(block, name="blocker")
    recording = tracing.stop()
    assert recording.blocking == 10_000_000
    assert [step.duration >= 0.02e9 for step in steps_of(recording, "blocker")] == [True]


async def test_spans_carry_request_name_task_and_arguments() -> None:
    async def handle() -> None:
        with span("decode", "r1", tokens=3):
            await trio.lowlevel.checkpoint()

    with span("before", "r0"):
        tracing.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle, name="handler")
    recording = tracing.stop()
    (recorded,) = recording.spans
    assert (recorded.name, recorded.request_id, recorded.args) == ("decode", "r1", {"tokens": 3})
    assert recording.rows[recorded.row] == "handler"
    assert recorded.duration > 0


async def test_a_span_that_fails_says_with_what() -> None:
    tracing.start()
    with pytest.raises(ValueError, match="no"), span("decode", "r1"):
        raise ValueError("no")
    with trio.CancelScope() as scope, span("decode", "r2"):
        scope.cancel()
        await trio.lowlevel.checkpoint()
    errors = [recorded.args["error"] for recorded in tracing.stop().spans]
    assert errors == ["ValueError", "Cancelled"]


async def test_a_span_that_has_not_ended_is_recorded_as_unfinished_and_only_once() -> None:
    tracing.start()
    with span("decode", "r1"):
        first = tracing.stop()
        tracing.start()
    second = tracing.stop()
    assert [recorded.args for recorded in first.spans] == [{"unfinished": True}]
    assert second.spans == ()


async def test_spans_work_in_threads() -> None:
    def work() -> None:
        with span("embed", "r1"):
            pass

    tracing.start()
    await trio.to_thread.run_sync(work)
    recording = tracing.stop()
    (recorded,) = recording.spans
    assert recording.rows[recorded.row].startswith("thread ")


async def test_what_does_not_fit_is_counted() -> None:
    tracing.start(limit=10)
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    with span("late", "r1"):
        pass
    recording = tracing.stop()
    assert len(list(recording.steps())) == 10
    assert recording.spans == ()
    assert recording.dropped == 9 + 1  # of 19 whole steps, and the span


async def test_names_past_the_limit_share_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "ROW_LIMIT", 3)
    tracing.start()
    async with trio.open_nursery() as nursery:
        for index in range(10):
            nursery.start_soon(trio.lowlevel.checkpoint, name=f"task-{index}")
    recording = tracing.stop()
    assert len(recording.rows) == 3
    assert len(steps_of(recording, "(other tasks)")) >= 16


async def test_tracing_twice_at_once_or_stopping_nothing_is_an_error() -> None:
    with pytest.raises(TracingError, match="is not being traced"):
        tracing.stop()
    tracing.start()
    with pytest.raises(TracingError, match="already"):
        tracing.start()
    tracing.stop()


def test_a_trace_ends_with_its_run() -> None:
    async def main() -> None:
        tracing.start()

    trio.run(main)
    assert not tracing.active()


async def test_a_recording_survives_the_way_to_another_process() -> None:
    tracing.start("worker")
    with span("decode", "r1", tokens=3, model="m", done=None):
        await trio.lowlevel.checkpoint()
    recording = tracing.stop()
    copy = Recording.from_bytes(recording.to_bytes())
    assert list(copy.steps()) == list(recording.steps())
    assert copy.spans == recording.spans
    assert (copy.pid, copy.process, copy.rows) == (recording.pid, "worker", recording.rows)
    assert (copy.began, copy.ended, copy.dropped) == (recording.began, recording.ended, 0)


@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_recording_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a recording"):
        Recording.from_bytes(data)


@given(data=st.data())
def test_a_damaged_recording_is_refused_or_still_whole(data: st.DataObject) -> None:
    spans = (Span("decode", "r1", 1, 5, 7, {"tokens": 3}),)
    steps = array("q", [0, 4, 9, 1, 1, 6, 2, 3])
    whole = bytearray(Recording(17, "worker", 3, 20, ("a", "b"), spans, 0, 100, steps).to_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        recording = Recording.from_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    except ValueError:
        return
    assert all(recording.rows[step.row] for step in recording.steps())
