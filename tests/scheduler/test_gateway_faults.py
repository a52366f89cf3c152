"""The front door when replicas refuse, vanish or lie: what is sent again, and what never is."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from anyserve_protos import inference as pb
from anyserve_protos.anyserve import v1 as wire
from anyserve_scheduler.fleet import OfferView
from anyserve_scheduler.registration import LeaseTerms, Registration, Report
from anyserve_scheduler.scheduler import Scheduler, SchedulerConfig
from grpclib.const import Cardinality, Handler

from anyserve.capability import Capability
from anyserve.client import encode_request
from anyserve.errors import (
    AnyServeError,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Status,
    Unavailable,
    Unimplemented,
)
from anyserve.intake import Intake
from anyserve.load import Load
from anyserve.needs import to_bytes
from anyserve.transport import trio_server
from anyserve.transport.address import TcpAddress
from anyserve.transport.rpc import ServerStream
from anyserve.transport.server import Server
from anyserve.transport.trio_client import Channel, open_channel

SERVICE = "/inference.GRPCInferenceService/"
BODY = encode_request("decode", {"x": "1"}, {}, "mine")


class Fake:
    """A replica of which the test says what it does with a request."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.token = id.encode() * 32
        self.seen: list[dict[str, Any]] = []
        self.act: Callable[[ServerStream], Any] = self.answer
        self.expects: bytes | None = BODY
        self.ids: dict[ServerStream, str] = {}
        self.ended = 0
        self.server: Server

    def __mapping__(self) -> dict[str, Handler]:
        def method(kind: Cardinality) -> Handler:
            return Handler(self.serve, kind, bytes, bytes)

        return {
            f"{SERVICE}ModelInfer": method(Cardinality.UNARY_UNARY),
            f"{SERVICE}ModelStreamInfer": method(Cardinality.STREAM_STREAM),
        }

    async def serve(self, stream: ServerStream) -> None:
        self.seen.append(dict(stream.metadata))
        body = await stream.recv_message()
        assert self.expects in (body, None)
        self.ids[stream] = pb.ModelInferRequest.parse(body).id
        try:
            await self.act(stream)
        finally:
            self.ended += 1

    async def answer(self, stream: ServerStream) -> None:
        response = pb.ModelInferResponse(model_name=self.id, id=self.ids[stream])
        if stream.cardinality is Cardinality.STREAM_STREAM:
            await stream.send_message(bytes(pb.ModelStreamInferResponse(infer_response=response)))
        else:
            await stream.send_message(bytes(response))

    async def hand_back(self, stream: ServerStream, need: bytes = b"") -> None:
        handback = bytes(wire.Handback(need=need, reason=f"{self.id} has no room"))
        await stream.send_trailing_metadata(
            status=Status.RESOURCE_EXHAUSTED,
            status_message="full",
            metadata={"anyserve-handback-bin": handback},
        )

    async def hang(self, stream: ServerStream) -> None:
        await trio.sleep_forever()


@attrs.define(eq=False)
class Fleet:
    """A scheduler and fake replicas, all here."""

    scheduler: Scheduler
    channel: Channel
    nursery: trio.Nursery
    fakes: dict[str, Fake] = attrs.field(factory=dict)

    async def join(
        self,
        id: str,
        name: str = "decode",
        *,
        port: int = 0,
        decoupled: bool = False,
        load: int = 0,
    ) -> Fake:
        """Let a fake replica join, that listens at `port` if that is given."""
        fake = self.fakes[id] = Fake(id)
        if not port:
            address = TcpAddress("127.0.0.1", 0)
            fake.server = await self.nursery.start(self._serve, fake, address)
            assert isinstance(fake.server.address, TcpAddress)
            port = fake.server.address.port
        offer = OfferView(Capability(name, {}, "1"), Load(load, 0, 8, 0.0), 8, decoupled)
        registration = Registration(id, id.encode(), f"127.0.0.1:{port}", [offer])
        grant = self.scheduler.registry.register(registration, trio.current_time())
        self.nursery.start_soon(self._attach, id, grant.epoch, fake.token)
        await trio.testing.wait_all_tasks_blocked()
        return fake

    async def _serve(self, fake: Fake, address: TcpAddress, task_status: Any) -> None:
        await trio_server.serve([fake], address, task_status=task_status)

    async def _attach(self, id: str, epoch: int, token: bytes) -> None:
        with suppress(Unavailable), self.scheduler.links.attached(id, epoch, token):
            await trio.sleep_forever()  # or until its lease is over

    async def infer(self, body: bytes = BODY, metadata: Any = ()) -> str:
        reply = await self.channel.unary(SERVICE + "ModelInfer", body, bytes, metadata=metadata)
        return pb.ModelInferResponse.parse(reply).model_name

    async def stream(self, count: int = 1) -> list[str]:
        """What so many requests are answered with: the replica's id, or the error."""
        said = []
        async with self.channel.stream(SERVICE + "ModelStreamInfer", bytes, bytes) as call:
            for number in range(count):
                await call.send(BODY, end=number == count - 1)
            async for message in call:
                reply = pb.ModelStreamInferResponse.parse(message)
                assert reply.infer_response is not None
                said.append(reply.error_message or reply.infer_response.model_name)
        return said


@asynccontextmanager
async def running_fleet() -> AsyncIterator[Fleet]:
    config = SchedulerConfig(port=0, terms=LeaseTerms(lease=100, interval=50))
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(config)
        async with scheduler.running(), open_channel(scheduler.address) as channel:
            scheduler.ways.complete_at = -math.inf  # there is no replica that may come back
            yield Fleet(scheduler, channel, nursery)
            nursery.cancel_scope.cancel()


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    with trio.fail_after(30):
        async with running_fleet() as fleet:
            yield fleet
            assert fleet.scheduler.ways.in_flight == 0


async def free_port() -> int:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port: int = listener.socket.getsockname()[1]
        return port


async def test_a_refused_connection_is_tried_at_another_replica(fleet: Fleet) -> None:
    await fleet.join("a", port=await free_port())
    await fleet.join("b", load=7)
    assert await fleet.infer() == "b"
    assert await fleet.stream() == ["b"]
    assert fleet.scheduler.ways.retried >= 1


async def test_a_call_that_was_refused_unbegun_is_tried_at_another_replica(fleet: Fleet) -> None:
    a = await fleet.join("a")
    assert await fleet.infer() == "a"
    await fleet.join("b", load=7)
    a.server.draining = True
    assert await fleet.infer() == "b"
    assert await fleet.stream() == ["b"]
    assert len(a.seen) == 1


async def test_a_replica_that_says_goaway_gets_nothing_more(
    fleet: Fleet, eventually_here: Any
) -> None:
    a = await fleet.join("a")
    await fleet.infer()
    await fleet.join("b", load=7)
    a.act = a.hang
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ignoring, fleet.infer)
        await eventually_here(lambda: len(a.seen) == 2)
        nursery.start_soon(a.server.drain)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await fleet.infer() == "b"
        nursery.cancel_scope.cancel()


async def ignoring(call: Callable[[], Any]) -> None:
    with suppress(AnyServeError):
        await call()


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_request_that_was_taken_is_never_sent_again(fleet: Fleet, streamed: bool) -> None:
    a = await fleet.join("a")
    b = await fleet.join("b", load=7)
    lost = trio.Event()

    async def lose(stream: ServerStream) -> None:
        lost.set()
        await trio.sleep_forever()

    a.act = lose
    error = ""

    async def call() -> None:
        nonlocal error
        if streamed:
            (error,) = await fleet.stream()
            return
        with pytest.raises(Unavailable) as caught:
            await fleet.infer()
        error = caught.value.message

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await lost.wait()
        for connection in tuple(a.server.connections):
            connection.end("the test says so")  # type: ignore[attr-defined]
    assert "lost" in error
    assert b.seen == []
    link = fleet.scheduler.links.get("a")
    assert link is not None
    assert link.last_error == error


# A replica that says goodbye while a request is on its way to it.


@pytest.fixture
def leave_behind(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the lease of a replica end when the next request is on its way to it."""

    def leave(fleet: Fleet, id: str, *, silently: bool = False) -> None:
        """silently: by its silence, rather than a goodbye."""
        registry = fleet.scheduler.registry
        begin = Intake.begin

        def end() -> None:
            views = registry.fleet().replicas
            if not silently:
                registry.release(id, views[id].epoch)
                return
            start = trio.current_time()
            for step in range(1, 500):  # no later than a scheduler that hears of everybody
                for other in [view for view in views.values() if view.id != id]:
                    registry.report(other.id, other.epoch, Report(step), start + step / 4)
                registry.expire(start + step / 4)

        def begin_and_end(intake: Any, forwarding: Any) -> None:
            monkeypatch.setattr(Intake, "begin", begin)
            begin(intake, forwarding)
            assert forwarding.replica == id
            end()
            assert id not in registry.fleet().replicas

        monkeypatch.setattr(Intake, "begin", begin_and_end)

    return leave


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_a_replica_took_before_its_goodbye_is_answered(
    fleet: Fleet, streamed: bool, leave_behind: Any
) -> None:
    a = await fleet.join("a")
    await fleet.infer()
    b = await fleet.join("b", load=7)
    leave_behind(fleet, "a")
    assert (await fleet.stream() if streamed else [await fleet.infer()]) == ["a"]
    assert (len(a.seen), len(b.seen)) == (2, 0)
    assert await fleet.infer() == "b"


@pytest.mark.parametrize("way", ["refuses", "hands back"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_what_a_replica_does_not_take_that_says_goodbye_goes_elsewhere(
    fleet: Fleet, way: str, streamed: bool, leave_behind: Any
) -> None:
    a = await fleet.join("a")
    await fleet.infer()
    b = await fleet.join("b", load=7)
    a.server.draining = way == "refuses"
    a.act = a.hand_back
    leave_behind(fleet, "a")
    assert (await fleet.stream() if streamed else [await fleet.infer()]) == ["b"]
    assert len(b.seen) == 1
    ways = fleet.scheduler.ways
    assert (ways.retried, ways.delegated) == ((1, 0) if way == "refuses" else (0, 1))


@asynccontextmanager
async def unreachable(mute: bool) -> AsyncIterator[int]:
    """A port that takes connections and says nothing (`mute`), or does not even take them."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as stack:
        port: int = server.getsockname()[1]
        with trio.move_on_after(0.3):
            while not mute:  # until as many as may wait for being taken do
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                stack.callback(stream.socket.close)
        yield port


@pytest.mark.parametrize("silently", [False, True], ids=["goodbye", "silence"])
@pytest.mark.parametrize("mute", [False, True])
async def test_what_waits_for_a_connection_when_the_lease_ends_goes_elsewhere(
    fleet: Fleet, mute: bool, silently: bool, leave_behind: Any
) -> None:
    async with unreachable(mute) as port:
        await fleet.join("a", port=port)
        view = fleet.scheduler.registry.fleet().replicas["a"]
        await fleet.scheduler.ways.channels.open(view)
        leave_behind(fleet, "a", silently=silently)
        await fleet.join("b", load=7)
        assert await fleet.infer() == "b"
    assert fleet.scheduler.ways.retried == 1


async def test_what_a_silent_replica_has_taken_is_lost_with_its_lease(
    fleet: Fleet, leave_behind: Any
) -> None:
    a = await fleet.join("a")
    await fleet.infer()
    b = await fleet.join("b", load=7)
    a.act = a.hang
    leave_behind(fleet, "a", silently=True)
    with pytest.raises(Unavailable):
        await fleet.infer()
    assert b.seen == []


@pytest.mark.parametrize("error", [NotFound("no"), Unavailable("busy"), Internal("a bug")])
async def test_what_a_replica_answers_is_the_answer(fleet: Fleet, error: AnyServeError) -> None:
    a = await fleet.join("a")
    b = await fleet.join("b", load=7)

    async def fail(stream: ServerStream) -> None:
        raise error

    a.act = fail
    with pytest.raises(type(error), match=error.message):
        await fleet.infer()
    assert await fleet.stream() == [error.message]
    assert b.seen == []


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_hand_back_is_followed_once(fleet: Fleet, streamed: bool) -> None:
    a = await fleet.join("a")
    b = await fleet.join("b", load=6)
    c = await fleet.join("c", load=7)
    a.act = a.hand_back
    assert (await fleet.stream() if streamed else [await fleet.infer()]) == ["b"]
    assert b.seen[0]["anyserve-delegations"] == "1"
    assert b.seen[0]["anyserve-need-bin"] == to_bytes(Capability("decode"))
    assert b.seen[0]["anyserve-link-token-bin"] == b.token
    b.act = b.hand_back
    if streamed:
        (message,) = await fleet.stream()
    else:
        with pytest.raises(FailedPrecondition) as caught:
            await fleet.infer()
        message = caught.value.message
    assert message.endswith("a: a has no room; then b: b has no room")
    assert c.seen == []
    assert fleet.scheduler.links.get("b").delegations == 1  # type: ignore[union-attr]


async def test_a_stronger_need_is_followed_and_a_weaker_one_is_not(fleet: Fleet) -> None:
    a = await fleet.join("a")
    weak = await fleet.join("b", load=6)
    strong = await fleet.join("c", "decode.heavy", load=7)

    async def upgrade(stream: ServerStream) -> None:
        await a.hand_back(stream, to_bytes(Capability("decode.heavy")))

    async def stray(stream: ServerStream) -> None:
        await a.hand_back(stream, to_bytes(Capability("embedding")))

    a.act = upgrade
    assert await fleet.infer() == "c"
    assert strong.seen[0]["anyserve-need-bin"] == to_bytes(Capability("decode.heavy"))
    a.act = stray
    assert await fleet.infer() == "b"
    assert len(weak.seen) == 1


async def test_after_an_answer_there_is_no_hand_back(fleet: Fleet) -> None:
    a = await fleet.join("a", decoupled=True)
    b = await fleet.join("b", decoupled=True, load=7)

    async def answer_and_hand_back(stream: ServerStream) -> None:
        await a.answer(stream)
        await a.hand_back(stream)

    a.act = answer_and_hand_back
    assert await fleet.stream() == ["a", "full"]
    assert b.seen == []


async def test_a_hand_back_to_what_answers_more_often_loses_no_answer(fleet: Fleet) -> None:
    a = await fleet.join("a")
    b = await fleet.join("b", decoupled=True, load=7)
    a.act = a.hand_back

    async def answer_often(stream: ServerStream) -> None:
        for _ in range(3):
            await b.answer(stream)

    b.act = answer_often
    assert await fleet.stream(2) == ["b"] * 6


async def test_a_request_with_one_answer_that_fails_after_it_has_failed(fleet: Fleet) -> None:
    a = await fleet.join("a")

    async def answer_and_fail(stream: ServerStream) -> None:
        await a.answer(stream)
        raise Internal("a bug")

    a.act = answer_and_fail
    assert await fleet.stream(2) == ["a bug"] * 2


async def test_garbage_for_a_hand_back_ends_the_request(fleet: Fleet) -> None:
    a = await fleet.join("a")
    b = await fleet.join("b", load=7)

    async def lie(stream: ServerStream) -> None:
        await stream.send_trailing_metadata(
            status=Status.UNAVAILABLE, metadata={"anyserve-handback-bin": b"\xff\xff"}
        )

    a.act = lie
    with pytest.raises(InvalidArgument):
        await fleet.infer()
    assert b.seen == []


async def test_a_cancelled_request_and_a_late_one_end_at_the_replica(
    fleet: Fleet, eventually_here: Any
) -> None:
    a = await fleet.join("a")
    a.act = a.hang
    with trio.move_on_after(0.2) as scope:
        await fleet.infer()
    assert scope.cancelled_caught
    await eventually_here(lambda: a.ended == 1)
    a.expects = encode_request("decode", {"x": "1"}, {"timeout": 200_000})
    with pytest.raises(DeadlineExceeded):
        await fleet.infer(a.expects)
    await eventually_here(lambda: a.ended == 2)


async def test_where_nobody_takes_it_the_reasons_are_told(fleet: Fleet) -> None:
    for id in "abcdef":
        await fleet.join(id, port=await free_port())
    with pytest.raises(Unavailable, match="4 replicas did not take it"):
        await fleet.infer()


async def test_an_empty_fleet_and_an_unknown_name_are_told_apart(fleet: Fleet) -> None:
    with pytest.raises(NotFound):
        await fleet.infer()
    await fleet.join("a", "embedding.small")
    with pytest.raises(NotFound, match=r"embedding\.small"):
        await fleet.infer()


async def test_answers_to_one_answer_requests_come_in_the_order_of_the_requests(
    fleet: Fleet,
) -> None:
    a = await fleet.join("a")
    b = await fleet.join("b")
    last = trio.Event()

    async def answer_backwards(fake: Fake, stream: ServerStream) -> None:
        if fake.ids[stream] == "3":
            last.set()
        await last.wait()
        await fake.answer(stream)

    for fake in (a, b):
        fake.expects, fake.act = None, partial(answer_backwards, fake)
    async with fleet.channel.stream(SERVICE + "ModelStreamInfer", bytes, bytes) as call:
        for number in range(4):
            await call.send(encode_request("decode", {}, {}, str(number)), end=number == 3)
        replies = [pb.ModelStreamInferResponse.parse(message) async for message in call]
    responses = [reply.infer_response or pb.ModelInferResponse() for reply in replies]
    assert [response.id for response in responses] == ["0", "1", "2", "3"]
    assert {response.model_name for response in responses} == {"a", "b"}


async def test_a_client_that_does_not_read_makes_the_replica_wait(fleet: Fleet) -> None:
    a = await fleet.join("a", decoupled=True)
    produced = 0
    message = bytes(
        pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse(id="x" * 100_000))
    )

    async def flood(stream: ServerStream) -> None:
        nonlocal produced
        for _ in range(400):
            await stream.send_message(message)
            produced += 1

    a.act = flood
    async with fleet.channel.stream(SERVICE + "ModelStreamInfer", bytes, bytes) as call:
        await call.send(BODY, end=True)
        before = -1
        while produced != before:
            before = produced
            await trio.sleep(0.1)
        assert 0 < produced < 200
        received = 0
        async for got in call:
            assert got == message
            received += 1
    assert received == 400


async def test_shared_memory_is_refused_in_words(fleet: Fleet) -> None:
    await fleet.join("a")
    for kind in ("System", "Cuda"):
        request_type = getattr(pb, f"{kind}SharedMemoryRegisterRequest")
        reply_type = getattr(pb, f"{kind}SharedMemoryRegisterResponse")
        with pytest.raises(Unimplemented, match="shared memory is of one machine"):
            await fleet.channel.unary(
                f"{SERVICE}{kind}SharedMemoryRegister", request_type(name="r"), reply_type
            )


async def test_bad_requests_are_refused_before_any_replica_sees_them(fleet: Fleet) -> None:
    a = await fleet.join("a")
    impossible = encode_request("decode", {}, {"timeout": -1})
    for body in (b"\xff", b"", encode_request("no/name", {}, {}), impossible):
        with pytest.raises(InvalidArgument):
            await fleet.infer(body)
    with pytest.raises((InvalidArgument, ResourceExhausted)):
        await fleet.infer(encode_request("decode", {}, {"session": "s" * 1000}))
    assert a.seen == []
