"""ModelStreamInfer over a real server and client, with the worker's side in the test's hands.

The second half has a real worker at the end of a real link, in this process.
"""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import attrs
import numpy as np
import pytest
import trio
import trio.testing
from anyserve_protos import inference as pb

from anyserve import App, Context, Request, Response
from anyserve.burst import burst
from anyserve.capability import Capability
from anyserve.client import encode_request
from anyserve.errors import Cancelled
from anyserve.link.channel import FrameChannel, LinkClosed
from anyserve.objects.arena import Arena
from anyserve.objects.regions import Regions
from anyserve.objects.segments import new_prefix
from anyserve.offers import Offer
from anyserve.replica.connection import Connection
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Call, Exchange, Listener, Reply
from anyserve.replica.inference import Inference
from anyserve.replica.pool import State
from anyserve.replica.service import InferenceService
from anyserve.replica.stream_infer import IN_FLIGHT_LIMIT
from anyserve.transport import trio_client, trio_server
from anyserve.transport.address import TcpAddress
from anyserve.worker.session import Session

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"


def request(model: str, identity: str, **inputs: Any) -> bytes:
    return encode_request(model, inputs, {}, identity)


def response(identity: str, padding: int = 0) -> bytes:
    raw = [bytes(padding)] if padding else []
    return bytes(pb.ModelInferResponse(id=identity, raw_output_contents=raw))


def answer(data: bytes | None) -> pb.ModelStreamInferResponse:
    assert data is not None
    return pb.ModelStreamInferResponse.parse(data)


def identity(data: bytes | None) -> str:
    inner = answer(data).infer_response
    assert inner is not None
    return inner.id


class ManualExchange(Exchange):
    """A call that the test replies to and ends."""

    def __init__(self, listener: Listener, call: Call) -> None:
        super().__init__(listener)
        self.identity = call.request_id.split("#")[0]
        self.cancelled = False
        self.credit = 0

    def on_cancelled(self) -> None:
        self.cancelled = True

    def consumed(self) -> None:
        self.credit += 1


@attrs.define(eq=False)
class Manual:
    """An executor that takes calls and leaves them to the test, and counts what it has lent."""

    name: str = "manual"
    exchanges: list[ManualExchange] = attrs.field(factory=list)
    on_call: Callable[[ManualExchange], None] = lambda exchange: None
    lent: int = 0
    """Replies that nobody has released."""
    replies: int = 0

    def submit(self, call: Call, offer: Offer, listener: Listener) -> Exchange:
        exchange = ManualExchange(listener, call)
        self.exchanges.append(exchange)
        self.on_call(exchange)
        return exchange

    def lost(self, reason: str) -> None:
        raise NotImplementedError

    def reply(self, exchange: ManualExchange, padding: int = 0) -> None:
        released = False

        def release() -> None:
            nonlocal released
            assert not released
            released = True
            self.lent -= 1

        self.lent += 1
        self.replies += 1
        exchange.deliver(Reply((response(exchange.identity, padding),), release))

    def answer(self, exchange: ManualExchange, padding: int = 0) -> None:
        self.reply(exchange, padding)
        exchange.end()


@asynccontextmanager
async def served(dispatcher: Dispatcher) -> AsyncIterator[Any]:
    """The service on a server of its own, and a channel to it."""
    nobody: Any = None
    service = InferenceService(
        server_name="test",
        dispatcher=dispatcher,
        inference=Inference(dispatcher, Regions(), 1 << 20),
        regions=Regions(),
        client_shared_memory=False,
        repository=nobody,
        is_ready=lambda: True,
    )
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trio_server.serve, [service], TcpAddress("127.0.0.1", 0))
        with trio.fail_after(20):
            async with trio_client.open_channel(str(server.address)) as channel:
                yield channel
        nursery.cancel_scope.cancel()


@attrs.define
class Hall:
    """A stream, and what stands behind it."""

    worker: Manual
    dispatcher: Dispatcher
    stream: Any
    give_up: Callable[[], Any]
    """Resets the stream."""

    @property
    def running(self) -> int:
        return sum(pool.running for pool in self.dispatcher.pools)


@asynccontextmanager
async def run_hall(**offer: Any) -> AsyncIterator[Hall]:
    """The capabilities `one`, whose requests have one answer, and `many`."""
    worker, dispatcher = Manual(), Dispatcher()
    fields = {"concurrency": 5_000, **offer}
    offers = [
        Offer(Capability("one"), **fields),
        Offer(Capability("many"), decoupled=True, **fields),
    ]
    dispatcher.worker_up(worker, offers)
    for each in offers:
        dispatcher.set_state(each.name, State.READY)
    async with served(dispatcher) as channel, AsyncExitStack() as stack:
        stream = await stack.enter_async_context(channel.stream(METHOD, bytes, bytes))
        yield Hall(worker, dispatcher, stream, stack.aclose)


@pytest.fixture
async def hall() -> AsyncIterator[Hall]:
    async with run_hall() as hall:
        yield hall


@pytest.mark.parametrize("seed", range(5))
async def test_answers_come_in_the_order_of_their_requests_whatever_order_they_are_made_in(
    hall: Hall, seed: int
):
    chance = random.Random(seed)
    count = 40
    for number in range(count):
        # Those that are wrong have their place in the order too.
        model = "nothing" if chance.random() < 0.2 else "one"
        await hall.stream.send(request(model, str(number)))
    await hall.stream.end()
    await trio.testing.wait_all_tasks_blocked(0.01)
    chance.shuffle(hall.worker.exchanges)
    for exchange in hall.worker.exchanges:
        hall.worker.answer(exchange)
        if chance.random() < 0.3:
            await trio.lowlevel.checkpoint()
    assert [identity(each) async for each in hall.stream] == list(map(str, range(count)))
    assert hall.worker.lent == hall.dispatcher.in_flight == 0


async def test_responses_of_decoupled_handlers_go_out_as_they_come(hall: Hall):
    for name in "ab":
        await hall.stream.send(request("many", name))
    await hall.stream.send(request("one", "c"))
    await trio.testing.wait_all_tasks_blocked(0.01)
    a, b, c = hall.worker.exchanges
    for exchange in (b, a, b):
        hall.worker.reply(exchange)
        assert identity(await hall.stream.recv()) == exchange.identity
    hall.worker.answer(c)
    assert identity(await hall.stream.recv()) == "c"
    a.end()
    b.end()
    await hall.stream.end()
    assert await hall.stream.recv() is None
    assert (a.credit, b.credit, hall.worker.lent) == (1, 2, 0)


async def test_what_is_due_at_once_arrives_whole_and_in_order(hall: Hall):
    """Many in one burst, small ones in one piece, and large ones that have to wait."""
    await hall.stream.send(request("many", "x"))
    await trio.testing.wait_all_tasks_blocked(0.01)
    (exchange,) = hall.worker.exchanges
    chance = random.Random(7)
    sizes = [chance.choice([0, 1, 100, 5_000, 63_000, 70_000, 200_000]) for _ in range(120)]
    with burst:
        for size in sizes:
            hall.worker.reply(exchange, size)
    got = [answer(await hall.stream.recv()).infer_response for _ in sizes]
    assert [sum(map(len, each.raw_output_contents)) for each in got if each] == sizes
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert (exchange.credit, hall.worker.lent) == (len(sizes), 0)
    exchange.end()


async def test_no_more_requests_are_in_flight_than_the_limit(hall: Hall):
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for number in range(IN_FLIGHT_LIMIT + 3):
                await hall.stream.send(request("one", str(number)))

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(hall.worker.exchanges) == hall.dispatcher.in_flight == IN_FLIGHT_LIMIT
        hall.worker.answer(hall.worker.exchanges[1])  # whose turn it is not, so that it counts
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(hall.worker.exchanges) == IN_FLIGHT_LIMIT
        hall.worker.answer(hall.worker.exchanges[0])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(hall.worker.exchanges) == IN_FLIGHT_LIMIT + 2


@pytest.mark.parametrize("model", ["one", "many", "nothing"])
async def test_a_client_that_reads_no_answers_is_read_no_further(hall: Hall, model: str):
    """Its answers would gather, and there may be a million of them; errors are answers too."""
    sent = 0

    async def send() -> None:
        nonlocal sent
        while sent < 10_000:
            await hall.stream.send(request(model, "i" * 2_000))
            sent += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        done = 0
        while sent < 10_000:
            await trio.testing.wait_all_tasks_blocked(0.01)
            new = hall.worker.exchanges[done:]
            if not new:
                break
            done += len(new)
            for exchange in new:
                hall.worker.answer(exchange, 20_000)
        assert sent < 10_000
        assert hall.worker.lent <= IN_FLIGHT_LIMIT + 1  # one is on its way
        before = sent + len(hall.worker.exchanges)
        for _ in range(1_200):
            await hall.stream.recv()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert sent + len(hall.worker.exchanges) > before
        nursery.cancel_scope.cancel()


async def test_a_stream_that_is_given_up_cancels_its_requests_and_gives_all_back(hall: Hall):
    for number in range(3):
        await hall.stream.send(request("one", f"one{number}"))
        await hall.stream.send(request("many", f"many{number}"))
    await trio.testing.wait_all_tasks_blocked(0.01)
    ones = hall.worker.exchanges[::2]
    many = hall.worker.exchanges[1::2]
    hall.worker.answer(ones[1])  # waits for its turn
    hall.worker.reply(ones[2])  # has its answer, and its handler goes on
    for _ in range(100):
        hall.worker.reply(many[0], 100_000)  # more than the client has room for
    many[1].end()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert hall.worker.lent > 20
    await hall.give_up()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert (hall.worker.lent, hall.dispatcher.in_flight) == (0, 0)
    left = [ones[0], ones[2], many[0], many[2]]
    assert [each.identity for each in hall.worker.exchanges if each.cancelled] == [
        "one0",
        "many0",
        "one2",
        "many2",
    ]
    # What they still say is given back, and their slots are theirs until they have ended.
    assert hall.running == len(left)
    for exchange in left:
        hall.worker.reply(exchange)
        assert hall.worker.lent == 0
        exchange.end(error=Cancelled("cancelled"))
    assert hall.running == 0


@pytest.mark.parametrize("model", ["one", "many"])
async def test_a_sequence_of_a_stream_that_is_given_up_ends_to_its_last_request(
    model: str, caplog: pytest.LogCaptureFixture
):
    """To cancel one gives the next its turn, and that may fail at once."""
    async with run_hall(sequence=True, concurrency=1, queue=0) as hall:
        for number in range(20):
            message = pb.ModelInferRequest.parse(request(model, str(number)))
            message.parameters["sequence_id"] = pb.InferParameter(int64_param=1)
            message.parameters["sequence_start"] = pb.InferParameter(bool_param=not number)
            await hall.stream.send(bytes(message))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert hall.dispatcher.in_flight == 20
        await hall.give_up()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert hall.dispatcher.in_flight == 0
        (exchange,) = hall.worker.exchanges
        assert exchange.cancelled
        exchange.end(error=Cancelled("cancelled"))
        assert hall.running == 0
    assert caplog.records == []


# A real worker.

app = App()
given = 0
"""Responses that `flood` has given."""


@app.capability("flood")
async def flood(request: Request, context: Context) -> AsyncIterator[Response]:
    global given
    size = int(request["size"][0])
    while True:
        yield Response(outputs={"x": np.full(size, given % 251, np.uint8)})
        given += 1


@app.capability("sizes")
async def sizes(request: Request, context: Context) -> AsyncIterator[Response]:
    for index, size in enumerate(request["sizes"]):
        yield Response(outputs={"x": np.full(size, index % 251, np.uint8)})


@app.capability("echo")
async def echo(request: Request, context: Context) -> Response:
    await trio.lowlevel.checkpoint()
    return Response(outputs={"x": request["x"]})


@attrs.define
class Workshop:
    """A worker's session at the end of a link, the dispatcher before it, and a channel."""

    dispatcher: Dispatcher
    channel: Any
    requests: Arena
    replies: Arena

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing is lent, in either direction."""
        leases = self.requests.statistics().leases + self.replies.statistics().leases
        running = sum(pool.running for pool in self.dispatcher.pools)
        return leases == running == self.dispatcher.in_flight == 0

    async def until_idle(self) -> None:
        """The worker hears of what was given up; five seconds at most."""
        with trio.fail_after(5):
            while not self.idle:
                await trio.lowlevel.checkpoint()


async def _write(channel: FrameChannel) -> None:
    with suppress(LinkClosed):
        await channel.run_writer()


async def _read(channel: FrameChannel, connection: Connection) -> None:
    while batch := await channel.receive():
        with burst:
            for frame in batch:
                connection.on_frame(frame)


@pytest.fixture
async def workshop() -> AsyncIterator[Workshop]:
    ours, theirs = map(FrameChannel, socket.socketpair())
    dispatcher = Dispatcher()
    limit = 64 << 20
    with Arena(new_prefix(), limit) as requests, Arena(new_prefix(), limit) as replies:
        connection = Connection("worker", ours, app.offers, requests, dispatcher)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Session("worker", theirs, app.handlers, replies).run)
            nursery.start_soon(_write, ours)
            nursery.start_soon(_read, ours, connection)
            dispatcher.worker_up(connection, app.offers)
            for offer in app.offers:
                dispatcher.set_state(offer.name, State.READY)
            async with served(dispatcher) as channel:
                yield Workshop(dispatcher, channel, requests, replies)
            dispatcher.worker_down(connection, "the test is over")
            connection.lost("the test is over")
            nursery.cancel_scope.cancel()
        await ours.aclose()
        await theirs.aclose()


async def test_responses_of_all_sizes_arrive_whole_and_in_order(workshop: Workshop):
    chance = random.Random(11)
    wanted = [chance.choice([1, 9, 700, 20_000, 65_535, 65_536, 200_000]) for _ in range(150)]
    async with workshop.channel.stream(METHOD, bytes, bytes) as stream:
        await stream.send(request("sizes", "s", sizes=np.array(wanted)), end=True)
        got = [answer(each).infer_response async for each in stream]
    contents = [b"".join(each.raw_output_contents) for each in got if each]
    assert contents == [bytes([index % 251]) * size for index, size in enumerate(wanted)]
    await workshop.until_idle()


async def test_many_requests_of_all_sizes_share_a_stream(workshop: Workshop):
    chance = random.Random(13)
    bodies = [chance.randbytes(chance.choice([1, 300, 65_536, 200_000])) for _ in range(200)]
    async with workshop.channel.stream(METHOD, bytes, bytes) as stream:

        async def send() -> None:
            for number, body in enumerate(bodies):
                tensor = np.frombuffer(body, np.uint8)
                await stream.send(request("echo", str(number), x=tensor))
            await stream.end()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            got = [answer(each).infer_response async for each in stream]
    assert [each.id for each in got if each] == list(map(str, range(len(bodies))))
    assert [b"".join(each.raw_output_contents) for each in got if each] == bodies
    await workshop.until_idle()


@pytest.mark.parametrize("size", [3_000, 30_000, 200_000])
async def test_a_client_that_does_not_read_holds_the_handler(workshop: Workshop, size: int):
    global given
    given = 0
    room = 6 << 20
    """Bytes on the way: the client's window, and what gathers before it and in sockets."""
    async with workshop.channel.stream(METHOD, bytes, bytes) as stream:
        await stream.send(request("flood", "f", size=np.array([size])))
        await trio.testing.wait_all_tasks_blocked(0.01)
        held = given
        assert held <= room // size + 64 + 64
        for number in range(held):  # as many as were made: so there is room for more
            inner = answer(await stream.recv()).infer_response
            assert inner is not None
            assert inner.raw_output_contents == [bytes([number % 251]) * size]
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert held < given <= held + room // size + 64 + 64
    await workshop.until_idle()


async def test_a_stream_that_is_given_up_gives_back_all_that_is_lent(workshop: Workshop):
    async with workshop.channel.stream(METHOD, bytes, bytes) as stream:
        for number in range(5):
            large = np.zeros(100_000, np.uint8)
            size = np.array([200_000])
            await stream.send(request("flood", str(number), size=size, padding=large))
        await stream.recv()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert workshop.requests.statistics().leases == 5
        assert workshop.replies.statistics().leases > 50
    await workshop.until_idle()
