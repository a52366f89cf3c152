"""What a method that is called back is given, and which requests never reach it."""

from __future__ import annotations

import gzip
import math
from typing import Any

import pytest
import trio
import trio.testing

from anyserve.transport.rpc import Limits

LIMIT = 8 * 1024 * 1024
"""Bytes of the largest message, as the fixture has it."""
OK, INVALID_ARGUMENT = "0", "3"
RESOURCE_EXHAUSTED, INTERNAL = "8", "13"
REFUSED_STREAM = 7


async def test_the_method_sees_metadata_and_deadline(office: Any):
    await office.ask(grpc_timeout="1000S", key="one", raw_bin="AP8=")
    first = await office.desk.call()
    await office.ask()
    second = await office.desk.call(1)
    assert list(first.call.metadata) == [("key", "one"), ("raw-bin", b"\0\xff")]
    assert first.call.deadline == pytest.approx(trio.current_time() + 1000, abs=5)
    assert (list(second.call.metadata), second.call.deadline) == ([], math.inf)
    for held in (first, second):
        held.answer(b"")


async def test_the_calls_of_a_connection_are_counted_against_its_limit(
    open_office: Any, frame: Any
):
    async with open_office(limits=Limits(max_streams=2)) as office:
        streams = [await office.ask(b"0"), await office.ask(b"1")]
        held = await office.desk.call(1)
        # It has not read the limit from the server's settings, and goes over it.
        assert (await office.raw.answer(await office.ask())).reset == REFUSED_STREAM
        assert office.calls == 2
        held.answer(b"room again")
        await office.raw.answer(streams[int(held.message)])
        stream = await office.ask()
        (await office.desk.call(2)).answer(b"taken")
        assert (await office.raw.answer(stream)).status == OK


async def test_a_call_whose_message_does_not_end_is_begun_when_it_does(
    open_office: Any, frame: Any
):
    async with open_office() as office:
        stream = await office.raw.call("Ask", frame(b"all"), end=False)
        await trio.testing.wait_all_tasks_blocked()
        office.raw.h2.send_headers(stream, [("late", "yes")], end_stream=True)
        await office.raw.flush()
        held = await office.desk.call()
        assert held.message == b"all"
        held.answer(b"with trailers")
        assert (await office.raw.answer(stream)).data == frame(b"with trailers")


@pytest.mark.parametrize("size", [0, 5, 100_000])
async def test_a_compressed_message_is_inflated_first(office: Any, frame: Any, size: int):
    packed = frame(gzip.compress(bytes(size)), flag=1)
    stream = await office.raw.call("Ask", packed, grpc_encoding="gzip")
    held = await office.desk.call()
    assert held.message == bytes(size)
    held.answer(b"")
    assert (await office.raw.answer(stream)).status == OK


def cut(frame: Any) -> bytes:
    body: bytes = frame(b"cut short")
    return body[:-1]


BODIES = {
    "over the limit": (lambda frame: b"\0" + (LIMIT + 1).to_bytes(4, "big"), RESOURCE_EXHAUSTED),
    "cut short": (cut, INVALID_ARGUMENT),
    "with half a prefix": (lambda frame: b"\0\0", INVALID_ARGUMENT),
    "with no message": (lambda frame: b"", INVALID_ARGUMENT),
    "compressed as nobody said": (lambda frame: frame(b"x", flag=1), INTERNAL),
    "of a flag that is none": (lambda frame: frame(b"x", flag=2), INTERNAL),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_request_that_is_wrong_never_begins(open_office: Any, frame: Any, name: str):
    body, status = BODIES[name]
    async with open_office() as office:
        answer = await office.raw.answer(await office.raw.call("Ask", body(frame)))
        assert answer.status == status
        await office.until_idle()
        assert office.desk.calls == []


async def test_a_request_that_is_nothing_but_headers_never_begins(open_office: Any, frame: Any):
    async with open_office() as office:
        answer = await office.raw.answer(await office.raw.call("Ask"))
        assert answer.status == INVALID_ARGUMENT
        assert office.desk.calls == []
