"""Calls to a method that is called back whose client, time or server ends first."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from anyserve.errors import NotFound

LARGE = 1024 * 1024
"""Bytes of an answer that is more than a client's window, 64 KiB."""
OK, DEADLINE_EXCEEDED, UNAVAILABLE = "0", "4", "14"
CANCEL = 8


async def reset(office: Any, stream: int) -> None:
    office.raw.h2.reset_stream(stream, CANCEL)
    await office.raw.flush()


async def hang_up(office: Any, stream: int) -> None:
    await office.raw.socket.aclose()


async def half_close(office: Any, stream: int) -> None:
    await office.raw.socket.send_eof()


async def stop(office: Any, stream: int) -> None:
    office.stop()


ENDS = [reset, hang_up, half_close, stop]


@pytest.mark.parametrize("end", ENDS)
async def test_when_nobody_waits_any_more_the_call_is_told_once(office: Any, end: Any):
    stream = await office.ask()
    held = await office.desk.call()
    await end(office, stream)
    await held.hears()
    await office.until_idle()
    held.answer(b"to nobody")
    held.call.fail(NotFound("to nobody"))
    await trio.testing.wait_all_tasks_blocked()
    assert (held.gone, held.released) == (1, 1)


@pytest.mark.parametrize("end", ENDS)
async def test_an_answer_that_waits_for_its_client_is_given_back_once(office: Any, end: Any):
    office.raw.auto_window = False
    stream = await office.ask()
    held = await office.desk.call()
    held.answer(bytes(LARGE))
    await office.raw.until(lambda: len(office.raw.answers[stream].data) == 65_535)
    assert (held.released, office.calls) == (0, 1)
    await end(office, stream)
    await held.hears()
    await office.until_idle()
    assert (held.gone, held.released) == (0, 1)


async def test_an_answer_that_waits_past_the_deadline_ends_with_it(
    mock_clock: trio.testing.MockClock, office: Any
):
    office.raw.auto_window = False
    stream = await office.ask(grpc_timeout="10S")
    held = await office.desk.call()
    held.answer(bytes(LARGE))
    await office.raw.until(lambda: len(office.raw.answers[stream].data) == 65_535)
    assert held.released == 0
    mock_clock.jump(11)
    await held.hears()
    await office.until_idle()
    assert (held.gone, held.released) == (0, 1)
    for stream_id in (None, stream):  # the status is behind what the client has not read
        office.raw.h2.increment_flow_control_window(LARGE, stream_id)
    await office.raw.flush()
    answer = await office.raw.answer(stream)
    assert answer.status == DEADLINE_EXCEEDED
    assert len(answer.data) < LARGE


async def test_stopping_the_server_tells_the_client_unavailable(office: Any):
    stream = await office.ask()
    await office.desk.call()
    office.stop()
    answer = await office.raw.answer(stream)
    assert answer.status == UNAVAILABLE
    assert answer.headers["grpc-message"] == "the server is stopping"


async def test_a_drain_waits_for_the_call(office: Any, frame: Any):
    await office.ask()
    held = await office.desk.call()
    drained = trio.Event()

    async def drain() -> None:
        await office.server.drain()
        drained.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        await trio.testing.wait_all_tasks_blocked()
        assert not drained.is_set()
        held.answer(b"finished")
        with trio.fail_after(5):
            await drained.wait()
            said = b""  # h2 reads nothing behind a GOAWAY
            while frame(b"finished") not in said:
                said += await office.raw.socket.receive_some(65536)


async def test_a_client_that_resets_before_its_message_is_whole_begins_nothing(
    open_office: Any, frame: Any
):
    async with open_office() as office:
        stream = await office.raw.call("Ask", frame(b"half")[:-1], end=False)
        await trio.testing.wait_all_tasks_blocked()
        await reset(office, stream)
        await office.until_idle()
        assert office.desk.calls == []


@pytest.mark.parametrize("together", [True, False], ids=["together", "apart"])
async def test_a_reset_right_behind_the_request_is_told(
    open_office: Any, frame: Any, together: bool
):
    """In one read with it, where even an answer at once comes too late."""
    async with open_office() as office:
        raw, desk = office.raw, office.desk
        desk.at_once = lambda held: held.answer(bytes(LARGE))
        stream = raw.h2.get_next_available_stream_id()
        raw.h2.send_headers(stream, raw.head("Ask"))
        raw.h2.send_data(stream, frame(b"?"), end_stream=True)
        if not together:
            await raw.flush()
            await desk.call()
        raw.h2.reset_stream(stream, CANCEL)
        await raw.flush()
        following = await office.ask()
        desk.at_once = lambda held: held.answer(b"")
        assert (await raw.answer(following)).status == OK
        await office.until_idle()
        assert all(held.released == 1 for held in desk.calls)


async def test_a_task_of_a_call_ends_at_its_deadline(
    mock_clock: trio.testing.MockClock, open_office: Any, frame: Any
):
    """Without a task the method alone keeps the deadline."""
    async with open_office("in pieces") as office:
        stream = await office.ask(grpc_timeout="10S")
        held = await office.desk.call()
        mock_clock.jump(11)
        assert (await office.raw.answer(stream)).status == DEADLINE_EXCEEDED
        await office.until_idle()
        held.answer(b"too late")
        assert (held.gone, held.released) == (1, 1)
