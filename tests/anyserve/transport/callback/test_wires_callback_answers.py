"""Unary methods that are called back: with a task and without, on either wire.

A request that comes in one piece takes no task of the fast wire; in two pieces, and on the
reference, the same method runs as a task. What it promises is the same.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing

from anyserve.errors import FailedPrecondition, NotFound

LARGE = 1024 * 1024
"""Bytes of an answer that is more than a client's window, 64 KiB."""
OK, NOT_FOUND = "0", "5"
FAILED_PRECONDITION, INTERNAL = "9", "13"


@pytest.mark.parametrize("size", [0, 1, 1000, 60_000, 300_000])
async def test_an_answer_of_any_size_arrives_with_ok(office: Any, frame: Any, size: int):
    stream = await office.ask(b"what?")
    held = await office.desk.call()
    assert (held.message, held.gone, held.released, office.calls) == (b"what?", 0, 0, 1)
    body = bytes(size)
    held.answer(body[:7], memoryview(body)[7:])
    answer = await office.raw.answer(stream)
    assert (answer.status, answer.data, answer.reset) == (OK, frame(body), None)
    await held.hears()
    assert (held.gone, held.released) == (0, 1)
    await office.until_idle()


async def test_an_answer_may_be_given_before_begin_returns(office: Any, frame: Any):
    office.desk.at_once = lambda held: held.answer(b"at once")
    answer = await office.raw.answer(await office.ask())
    assert (answer.status, answer.data) == (OK, frame(b"at once"))
    await office.until_idle()
    assert [(held.gone, held.released) for held in office.desk.calls] == [(0, 1)]


async def test_a_call_may_fail_later(office: Any):
    stream = await office.ask()
    (await office.desk.call()).call.fail(NotFound("no such größe"))
    answer = await office.raw.answer(stream)
    assert answer.status == NOT_FOUND
    assert answer.headers["grpc-message"] == "no such gr%C3%B6%C3%9Fe"
    await office.until_idle()
    assert office.desk.calls[0].gone == 0


async def test_what_begin_raises_ends_the_call_and_nobody_is_told_of_its_end(office: Any):
    def refuse(held: Any) -> None:
        raise FailedPrecondition("not now")

    office.desk.at_once = refuse
    answer = await office.raw.answer(await office.ask())
    assert (answer.status, answer.headers["grpc-message"]) == (FAILED_PRECONDITION, "not now")
    await office.until_idle()
    held = office.desk.calls[0]
    held.answer(b"too late")
    assert (held.gone, held.released) == (0, 1)


async def test_an_exception_of_another_kind_is_internal_and_logged(
    office: Any, caplog: pytest.LogCaptureFixture
):
    def fail(held: Any) -> None:
        raise KeyError("a bug")

    office.desk.at_once = fail
    with caplog.at_level(logging.ERROR):
        answer = await office.raw.answer(await office.ask())
    assert answer.status == INTERNAL
    assert "/test.Probe/Ask failed" in caplog.text
    assert "Traceback" in caplog.text
    await office.until_idle()


async def test_the_first_answer_counts_and_later_ones_are_given_back(office: Any, frame: Any):
    stream = await office.ask()
    held = await office.desk.call()
    later = type(held)(held.call, b"")
    held.answer(b"first")
    later.answer(b"second")
    assert later.released == 1
    held.call.fail(NotFound("too late"))
    answer = await office.raw.answer(stream)
    assert (answer.status, answer.data) == (OK, frame(b"first"))
    await office.until_idle()
    later.answer(b"third")
    assert (held.gone, held.released, later.released) == (0, 1, 2)


async def test_an_answer_after_a_failure_is_given_back(office: Any):
    stream = await office.ask()
    held = await office.desk.call()
    held.call.fail(NotFound("first"))
    held.answer(b"second")
    assert held.released == 1
    assert (await office.raw.answer(stream)).status == NOT_FOUND
    await office.until_idle()


async def test_an_answer_waits_for_its_client_and_is_given_back_when_sent(office: Any, frame: Any):
    office.raw.auto_window = False
    stream = await office.ask()
    held = await office.desk.call()
    held.answer(bytes(LARGE))
    await office.raw.until(lambda: len(office.raw.answers[stream].data) == 65_535)
    await trio.testing.wait_all_tasks_blocked()
    assert (held.released, office.calls) == (0, 1)
    for stream_id in (None, stream):
        office.raw.h2.increment_flow_control_window(2 * LARGE, stream_id)
    await office.raw.flush()
    answer = await office.raw.answer(stream)
    assert (answer.status, answer.data) == (OK, frame(bytes(LARGE)))
    await office.until_idle()
    assert (held.gone, held.released) == (0, 1)


async def test_many_calls_in_flight_are_answered_in_any_order(office: Any, frame: Any):
    streams = [await office.ask(b"%d" % number) for number in range(20)]
    await office.desk.call(19)
    assert office.calls == 20
    for held in reversed(office.desk.calls):
        held.answer(held.message)
    for number, stream in enumerate(streams):
        assert (await office.raw.answer(stream)).data == frame(b"%d" % number)
    await office.until_idle()
    assert all((held.gone, held.released) == (0, 1) for held in office.desk.calls)
