"""The worker's side of the link, with the replica's end of the socket pair in the test's hands."""

from __future__ import annotations

import gc
import math
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import attrs
import numpy as np
import pytest
import trio
from anyserve_protos.infer_wire import response_pieces, scan_request
from anyserve_protos.response_head import OutputHead, encode_response_head

from anyserve import App, Context, Request, Response
from anyserve.client import encode_request
from anyserve.errors import FailedPrecondition, Status
from anyserve.link import frames
from anyserve.link.channel import FrameChannel
from anyserve.link.frames import Frame, Kind, RequestBody
from anyserve.objects.arena import Arena
from anyserve.objects.leases import Block
from anyserve.objects.mapping import Reader
from anyserve.objects.segments import new_prefix
from anyserve.worker.session import Session

app = App()
given = 0
"""Responses that `count` has given."""


@app.capability("count")
async def count(request: Request, context: Context) -> AsyncIterator[Response]:
    global given
    while True:
        yield Response(outputs={"n": given})
        given += 1


@app.capability("big")
async def big(request: Request, context: Context) -> Response:
    return Response(outputs={"x": np.full(frames.LEASE_THRESHOLD, 7, np.uint8)})


@app.capability("asks")
async def asks(request: Request, context: Context) -> AsyncIterator[Response]:
    large = np.full(frames.LEASE_THRESHOLD, 3, np.uint8)
    async with aclosing(context.stream("other", {"x": large, "y": [1]})) as answers:
        async for answer in answers:
            yield Response(outputs={"sum": int(answer["x"].sum())})


@app.capability("words")
async def words(request: Request, context: Context) -> AsyncIterator[Response]:
    for tokens in (1, 5, 0):
        prompt_tokens = 0 if tokens else 9
        yield Response(outputs={"n": tokens}, tokens=tokens, prompt_tokens=prompt_tokens)


@app.capability("forever")
async def forever(request: Request, context: Context) -> Response:
    await trio.sleep_forever()
    return Response()


@app.capability("undecodable")
async def undecodable(request: Request, context: Context) -> Response:
    raise ValueError("no file \udc80")  # as `os.fsdecode` makes of bytes that are no text


@app.capability("refuses")
async def refuses(request: Request, context: Context) -> Response:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_refuse)
    raise FailedPrecondition("not now")


@app.capability("refuses_at_once")
async def refuses_at_once(request: Request, context: Context) -> Response:
    raise FailedPrecondition("not now")


async def _refuse() -> None:
    raise FailedPrecondition("not in a nursery either")


@attrs.define
class Replica:
    """The other end."""

    channel: FrameChannel
    arena: Arena
    """The worker's."""
    _seen: list[Frame] = attrs.field(factory=list)

    async def start(self, call: int, capability: str) -> None:
        head = scan_request(encode_request(capability, {}, {}))
        offer = [handler.offer.name for handler in app.handlers].index(capability)
        body = RequestBody(math.inf, offer, f"r{call}", {}, [head.head, *head.raw])
        await self.send(frames.encode_request(call, body))

    async def send(self, pieces: Any) -> None:
        self.channel.send(pieces)
        await self.channel.flush()

    async def next(self) -> Frame:
        if not self._seen:
            self._seen = await self.channel.receive()
        return self._seen.pop(0)

    async def answered(self) -> list[Frame]:
        """What comes before the answer to a heartbeat that is sent now."""
        await self.send(frames.encode(Kind.PING))
        found = []
        while (frame := await self.next()).kind != Kind.PONG:
            found.append(frame)
        return found


@asynccontextmanager
async def served(limit: int = 1 << 20) -> AsyncIterator[Replica]:
    """A session that serves; limit: bytes of its arena."""
    theirs, ours = map(FrameChannel, socket.socketpair())
    with trio.fail_after(10), Arena(new_prefix(), limit, segment_size=1 << 20) as arena:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Session("worker", theirs, app.handlers, arena).run)
            yield Replica(ours, arena)
            await ours.aclose()  # the session ends with its link, and the nursery with it
        await theirs.aclose()


async def test_a_handler_gives_no_more_responses_than_it_has_credit_for() -> None:
    global given
    given = 0
    async with served() as replica:
        await replica.start(1, "count")
        for number in range(frames.INITIAL_CREDIT):
            assert (await replica.next()).kind == Kind.RESPONSE, number
        assert await replica.answered() == []
        assert given == frames.INITIAL_CREDIT  # the next one is made, and waits
        await replica.send(frames.encode_credit(1, 3))
        assert [(await replica.next()).kind for _ in range(3)] == [Kind.RESPONSE] * 3
        assert await replica.answered() == []
        await replica.send(frames.encode(Kind.CANCEL, 1))
        frame = await replica.next()
        assert (frame.kind, frame.call) == (Kind.ERROR, 1)
        assert frames.decode_error(frame).status is Status.CANCELLED


async def test_what_a_response_has_more_or_less_than_one_token_is_said_behind_it() -> None:
    async with served() as replica:
        await replica.start(1, "words")
        kinds = [(frame := await replica.next()).kind, (await replica.next()).kind]
        assert kinds == [Kind.RESPONSE, Kind.RESPONSE]
        assert frames.decode_tokens(await replica.next()) == (4, 0)
        assert (await replica.next()).kind == Kind.RESPONSE
        assert frames.decode_tokens(frame := await replica.next()) == (-1, 9)
        assert frame.call == 1
        assert (await replica.next()).kind == Kind.END


def answer(arena: Arena, value: int) -> list[Any]:
    """A response to a call, with a large tensor in another worker's arena."""
    output = OutputHead("x", "UINT8", [frames.LEASE_THRESHOLD], {})
    head = encode_response_head("other", "1", "", {}, [output])
    tensor = bytes([value]) * frames.LEASE_THRESHOLD
    *small, large = response_pieces(head, [tensor])
    return [*small, arena.put([large]).block]


async def test_what_a_handler_asks_and_is_answered_goes_by_shared_memory_where_it_is_large() -> (
    None
):
    async with served() as replica:
        await replica.start(1, "asks")
        number, once, (_, block, _) = frames.decode_call(await replica.next())
        assert (number, once) == (1, False)
        assert isinstance(block, Block)
        with Reader() as reader:
            assert bytes(reader.view(block)) == b"\3" * frames.LEASE_THRESHOLD
        assert replica.arena.statistics().leases == 1
        await replica.send(frames.encode_release(block))
        with Arena(new_prefix(), 1 << 20) as others:
            for value in (1, 2):
                parts = answer(others, value)
                await replica.send(frames.encode_called_parts(1, number, parts))
                found = [await replica.next(), await replica.next()]
                assert [frame.kind for frame in found] == [Kind.CALL_TAKEN, Kind.RESPONSE]
        assert replica.arena.statistics().leases == 0
        await replica.send(frames.encode_called(Kind.CALL_END, 1, number))
        while (await replica.next()).kind != Kind.END:
            pass


async def test_an_answer_that_comes_after_its_call_was_given_up_is_taken_all_the_same() -> None:
    async with served() as replica:
        await replica.start(1, "asks")
        number, _, _ = frames.decode_call(await replica.next())
        await replica.send(frames.encode_called_parts(1, number + 1, [b"head"]))
        assert (await replica.next()).kind == Kind.CALL_TAKEN


async def test_an_answer_in_memory_that_is_gone_ends_the_call() -> None:
    async with served() as replica:
        await replica.start(1, "asks")
        number, _, _ = frames.decode_call(await replica.next())
        gone = Block(f"{new_prefix()}-0", 0, frames.LEASE_THRESHOLD)
        await replica.send(frames.encode_called_parts(1, number, [b"head", gone]))
        found = [await replica.next() for _ in range(3)]
        assert [frame.kind for frame in found] == [Kind.CALL_CANCEL, Kind.CALL_TAKEN, Kind.ERROR]
        assert frames.decode_error(found[2]).status is Status.UNAVAILABLE


async def test_a_large_reply_is_lent_until_the_replica_gives_it_back() -> None:
    async with served() as replica:
        await replica.start(1, "big")
        response = await replica.next()
        *_, block = frames.decode_parts(response)
        assert isinstance(block, Block)
        with Reader() as reader:
            assert bytes(reader.view(block)) == b"\7" * frames.LEASE_THRESHOLD
        assert (await replica.next()).kind == Kind.END
        assert replica.arena.statistics().leases == 1
        await replica.send(frames.encode_release(block))
        assert await replica.answered() == []
        assert replica.arena.statistics().leases == 0


async def test_a_large_reply_goes_inline_where_shared_memory_is_full(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(limit=0) as replica:
        await replica.start(1, "big")
        *_, part = frames.decode_parts(await replica.next())
        assert not isinstance(part, Block)
        assert bytes(part) == b"\7" * frames.LEASE_THRESHOLD
        assert (await replica.next()).kind == Kind.END
    assert caplog.messages == ["shared memory is full: a tensor of 65536 bytes goes inline"]


async def test_an_error_that_is_no_text_reaches_the_replica_and_hurts_nobody_else() -> None:
    async with served() as replica:
        await replica.start(1, "undecodable")
        error = frames.decode_error(await replica.next())
        assert (error.status, error.message) == (Status.INTERNAL, "ValueError: no file ?")
        assert await replica.answered() == []


async def test_the_end_of_the_link_cancels_what_runs() -> None:
    async with served() as replica:
        await replica.start(1, "forever")
        assert await replica.answered() == []


@pytest.mark.parametrize(
    "capability", ["undecodable", "refuses", "refuses_at_once", "forever", "count", "big"]
)
async def test_a_request_that_has_ended_leaves_nothing_to_the_garbage_collector(
    capability: str,
) -> None:
    """However it ends: what its exception refers to may be large."""
    async with served() as replica:

        async def call(number: int) -> None:
            await replica.start(number, capability)
            if capability in ("forever", "count"):
                await replica.answered()
                await replica.send(frames.encode(Kind.CANCEL, number))
            while (frame := await replica.next()).kind not in (Kind.END, Kind.ERROR):
                pass
            assert frame.call == number

        await call(1)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for number in range(2, 5):
                await call(number)
            await replica.answered()
            gc.collect()
            found = {
                kind.__name__ for kind in map(type, gc.garbage) if "anyserve" in kind.__module__
            }
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert found == set()
