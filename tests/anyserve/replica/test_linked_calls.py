"""What handlers in workers call, with both workers' ends of their links in the test's hands."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import attrs
import trio

from anyserve.capability import Capability
from anyserve.client import encode_request
from anyserve.errors import AnyServeError, Cancelled, Status
from anyserve.infer_messages import request_parts
from anyserve.link import frames
from anyserve.link.channel import FrameChannel
from anyserve.link.frames import Frame, FrameDecoder, Kind
from anyserve.objects.arena import Arena
from anyserve.objects.leases import Block
from anyserve.objects.segments import new_prefix
from anyserve.offers import Offer
from anyserve.replica.calls import HandlerRequests
from anyserve.replica.connection import Connection
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Call, Reply
from anyserve.replica.execution import Execution
from anyserve.replica.inference import scan
from anyserve.replica.pool import State

LARGE = b"\7" * frames.LEASE_THRESHOLD


@attrs.define(eq=False)
class Worker:
    """A worker of one capability: what it does is up to the test."""

    connection: Connection
    arena: Arena
    """Its own."""
    _near: FrameChannel
    _far: FrameChannel
    _seen: list[Frame] = attrs.field(factory=list)

    def says(self, *pieces: Any) -> None:
        """A frame of the worker arrives."""
        for frame in FrameDecoder().feed(b"".join(pieces)):
            self.connection.on_frame(frame)

    def calls(self, number: int, *raw: bytes | Block, once: bool = True, call: int = 1) -> None:
        """The handler of its first call calls `callee`."""
        head, _ = request_parts("callee", {}, {})
        self.says(*frames.encode_call(call, number, once, [head, *raw]))

    def lend(self, data: bytes = LARGE) -> Block:
        """Something in its arena."""
        return self.arena.put([data]).block

    async def told(self) -> list[Frame]:
        """What the replica has said since the last time."""
        self._near.send(frames.encode(Kind.PING))
        await self._near.flush()
        found: list[Frame] = []
        while not found or found[-1].kind != Kind.PING:
            found += await self._far.receive()
        return found[:-1]

    async def released(self) -> list[Block]:
        """What the replica has let go of, and nothing else that it said."""
        told = await self.told()
        assert {frame.kind for frame in told} <= {Kind.RELEASE}
        return [frames.decode_release(frame) for frame in told]


@attrs.define(eq=False)
class Bench:
    """A caller, a callee, and a second one that is there in time."""

    dispatcher: Dispatcher
    arena: Arena
    """The replica's."""
    caller: Worker
    callee: Worker
    request: Execution
    """Of the caller."""
    stack: ExitStack

    def worker(self, offer: Offer) -> Worker:
        near, far = map(FrameChannel, socket.socketpair())
        self.stack.callback(near._sock.close)
        self.stack.callback(far._sock.close)
        connection = Connection(offer.name, near, [offer], self.arena, self.dispatcher)
        self.dispatcher.worker_up(connection, [offer])
        self.dispatcher.set_state(offer.name, State.READY)
        arena = self.stack.enter_context(Arena(new_prefix(), 1 << 24, segment_size=1 << 20))
        self.stack.callback(connection.lost, "the test is over")
        return Worker(connection, arena, near, far)


class Consumer:
    """Whoever has asked the caller."""

    def on_reply(self, reply: Reply) -> None:
        reply.release()

    def on_end(self, error: AnyServeError | None) -> None: ...


CALLEE = Offer(Capability("callee"), concurrency=1, idempotent=True, decoupled=True)


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    """The caller's handler runs, and has called nothing yet."""
    with (
        trio.fail_after(10),
        ExitStack() as stack,
        Arena(new_prefix(), 1 << 24, segment_size=1 << 20) as arena,
    ):
        dispatcher = Dispatcher()
        dispatcher.calls = HandlerRequests(dispatcher)
        made = Bench(dispatcher, arena, None, None, None, stack)  # type: ignore[arg-type]
        made.caller = made.worker(Offer(Capability("caller")))
        made.callee = made.worker(CALLEE)
        head = scan(encode_request("caller", {}, {}))
        call = Call(Capability("caller"), head.head, head.raw)
        made.request = Execution(dispatcher, call, Consumer())
        made.request.start()
        assert [frame.kind for frame in await made.caller.told()] == [Kind.REQUEST]
        yield made


async def test_a_large_tensor_stays_where_the_caller_wrote_it_until_the_callee_has_ended() -> None:
    async with bench() as at:
        block = at.caller.lend()
        at.caller.calls(1, block, b"small")
        (request,) = await at.callee.told()
        _, first, second = frames.decode_request(request).parts
        assert (first, bytes(second)) == (block, b"small")  # type: ignore[arg-type]
        assert at.arena.statistics().leases == 0
        at.callee.says(frames.encode_response(1, [b"answer"]))
        (called,) = await at.caller.told()
        assert frames.decode_called(called) == (1, b"answer")
        at.callee.says(frames.encode_end(1, 1))
        told = await at.caller.told()
        assert sorted(frame.kind for frame in told) == [Kind.RELEASE, Kind.CALL_END]
        assert [frames.decode_release(f) for f in told if f.kind == Kind.RELEASE] == [block]


async def test_a_large_answer_stays_where_the_callee_wrote_it_until_the_caller_has_it() -> None:
    async with bench() as at:
        at.caller.calls(1, once=False)
        await at.callee.told()
        blocks = [at.callee.lend(), at.callee.lend()]
        for block in blocks:
            at.callee.says(*frames.encode_parts(1, [b"head", block]))
        told = [frames.decode_called_parts(frame) for frame in await at.caller.told()]
        assert [(number, parts[1]) for number, parts in told] == [(1, block) for block in blocks]
        assert await at.callee.released() == []
        at.caller.says(frames.encode(Kind.CALL_TAKEN, 1))
        assert await at.callee.released() == blocks[:1]
        at.caller.says(frames.encode(Kind.CALL_TAKEN, 1))
        assert await at.callee.released() == blocks[1:]


async def test_a_callee_that_is_cancelled_and_goes_on_may_read_its_request_until_it_ends() -> None:
    async with bench() as at:
        block = at.caller.lend()
        at.caller.calls(1, block)
        await at.callee.told()
        at.caller.says(frames.encode_called(Kind.CALL_CANCEL, 1, 1))
        assert [frame.kind for frame in await at.callee.told()] == [Kind.CANCEL]
        assert await at.caller.released() == []
        at.callee.says(frames.encode_error(1, Cancelled("as asked")))
        assert await at.caller.released() == [block]


async def test_what_the_caller_has_not_taken_is_released_when_its_handler_has_ended() -> None:
    async with bench() as at:
        at.caller.calls(1, once=False)
        await at.callee.told()
        block = at.callee.lend()
        at.callee.says(*frames.encode_parts(1, [b"head", block]))
        at.request.cancel()
        assert [frame.kind for frame in await at.callee.told()] == [Kind.CANCEL]
        at.caller.says(frames.encode_error(1, Cancelled("as asked")))
        assert await at.callee.released() == [block]


async def test_a_call_that_comes_after_its_caller_was_cancelled_is_not_begun() -> None:
    async with bench() as at:
        at.request.cancel()
        await at.caller.told()
        block = at.caller.lend()
        at.caller.calls(1, block)
        assert await at.caller.released() == [block]
        assert await at.callee.told() == []


async def test_a_request_that_waits_for_a_slot_lets_go_when_it_is_cancelled() -> None:
    async with bench() as at:
        at.caller.calls(1, at.caller.lend())
        at.caller.calls(2, waiting := at.caller.lend())
        assert len(await at.callee.told()) == 1
        at.caller.says(frames.encode_called(Kind.CALL_CANCEL, 1, 2))
        assert await at.caller.released() == [waiting]


async def test_a_request_that_runs_again_elsewhere_is_still_where_it_was() -> None:
    async with bench() as at:
        block = at.caller.lend()
        at.caller.calls(1, block)
        await at.callee.told()
        other = at.worker(CALLEE)
        at.dispatcher.worker_retiring(at.callee.connection, "it died")
        at.callee.connection.lost("it died")
        (request,) = await other.told()
        assert frames.decode_request(request).parts[1] == block
        assert await at.caller.released() == []


async def test_what_can_not_be_read_is_the_error_of_the_call_alone() -> None:
    async with bench() as at:
        gone = Block(f"{new_prefix()}-0", 0, frames.LEASE_THRESHOLD)
        at.caller.calls(1, gone)
        told = await at.caller.told()
        assert [frame.kind for frame in told] == [Kind.RELEASE, Kind.CALL_ERROR]
        _, body = frames.decode_called(told[1])
        assert frames.error_of(body).status is Status.UNAVAILABLE
        at.caller.calls(2)
        assert [frame.kind for frame in await at.callee.told()] == [Kind.REQUEST]
