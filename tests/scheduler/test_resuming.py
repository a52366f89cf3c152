"""Streams that survive their replica, step by step; replicas do what the test says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any, cast

import attrs
import hypothesis.strategies as st
import numpy as np
import pytest
import trio
import trio.testing
from anyserve_protos import codec
from anyserve_protos import inference as pb
from anyserve_protos.anyserve import v1 as wire
from anyserve_protos.infer_wire import response_pieces, stream_response
from anyserve_protos.response_head import OutputHead, encode_response_head
from anyserve_scheduler.delegation import Handback, Permit
from anyserve_scheduler.fleet import OfferView
from anyserve_scheduler.gateway import resuming
from anyserve_scheduler.gateway.forwarding import Forwarding
from anyserve_scheduler.gateway.incoming import incoming
from anyserve_scheduler.gateway.ways import Reach, Ways
from anyserve_scheduler.links import Links
from anyserve_scheduler.registration import Registration
from anyserve_scheduler.registry import MemoryRegistry
from anyserve_scheduler.routing import LEAST_WAIT, Router
from anyserve_scheduler.watched import WatchedRegistry
from hypothesis import given
from multidict import MultiDict

from anyserve.capability import Capability
from anyserve.client import encode_request
from anyserve.errors import AnyServeError, Internal, InvalidArgument, ResourceExhausted, Unavailable
from anyserve.load import Load
from anyserve.needs import from_bytes
from anyserve.parameters import decode_all
from anyserve.replica.handback import MODEL_INFER, MODEL_STREAM_INFER
from anyserve.replica.inference import scan
from anyserve.replica.stream_infer import IS_FINAL, IS_NOT_FINAL
from anyserve.stream_errors import stream_error, unwrapped
from anyserve.transport.outgoing import Answers
from anyserve.transport.wire import NotTaken

LOST = Unavailable("the connection is lost")
NOT_TAKEN = NotTaken("the peer did not take the call")
WORKER_LOST = stream_error(Unavailable("worker text-0 is gone"), "mine")


def piece(*ids: int, reason: str = "", **more: bytes) -> bytes:
    """A response of a stream, as replicas write it."""
    outputs = {
        "text_output": text(" ".join(map(str, ids))),
        "finish_reason": text(reason),
        "token_ids": np.array(ids, "<i4").tobytes(),
        **more,
    }
    return message(outputs, len(ids))


def message(outputs: dict[str, bytes], ids: int = 0) -> bytes:
    shapes = {"token_ids": ("INT32", (ids,)), "index": ("INT32", (1,))}
    heads = [OutputHead(name, *shapes.get(name, ("BYTES", (1,)))) for name in outputs]
    head = encode_response_head("decode", "1", "mine", {}, heads)
    pieces = response_pieces(head, list(outputs.values()))
    return b"".join(stream_response(*pieces, IS_NOT_FINAL))


def text(value: str) -> bytes:
    return len(value.encode()).to_bytes(4, "little") + value.encode()


def ids_of(message: bytes) -> list[int]:
    response = unwrapped(message)
    if isinstance(response, AnyServeError):
        return []
    decoded = codec.decode(pb.ModelInferResponse, bytes(response))
    names = [output.name for output in decoded.outputs]
    content = decoded.raw_output_contents[names.index("token_ids")]
    return [int(value) for value in np.frombuffer(content, "<i4")]


@attrs.define(eq=False)
class FakeCall:
    """A call to a replica, which the test answers."""

    replica: str
    body: bytes
    metadata: dict[str, str | bytes]
    answers: Answers
    over: bool = False
    held: bool = False

    def cancel(self) -> None:
        self.over = True

    def hold(self) -> None:
        self.held = True

    def resume(self) -> None:
        self.held = False

    def answer(self, *messages: bytes) -> None:
        self.answers.on_messages(messages)

    def end(self, error: AnyServeError | None = None, **metadata: bytes) -> None:
        self.over = True
        trailers = MultiDict({name.replace("_", "-"): word for name, word in metadata.items()})
        self.answers.on_end(error, trailers)

    def hand_back(self) -> None:
        word = bytes(wire.Handback(reason=f"{self.replica} has no room"))
        self.end(ResourceExhausted("full"), anyserve_handback_bin=word)

    @property
    def request(self) -> pb.ModelInferRequest:
        return codec.decode(pb.ModelInferRequest, self.body)

    @property
    def parameters(self) -> dict[str, Any]:
        return decode_all(self.request.parameters)

    @property
    def resumes(self) -> list[int] | None:
        """The ids that it is told to go on after."""
        ids = self.parameters.get("resume_token_ids")
        return None if ids is None else cast(list[int], json.loads(ids))


@attrs.define(eq=False)
class Desk:
    """A front door before replicas, each busier than the one before; its own client."""

    ways: Ways
    calls: list[FakeCall] = attrs.field(factory=list)
    connected: bool = True
    opening: trio.Event = attrs.field(factory=trio.Event)
    permit: Permit = attrs.field(factory=Permit)
    messages: list[bytes] = attrs.field(factory=list)
    ends: list[AnyServeError | None] = attrs.field(factory=list)
    left: bool = False
    forwarding: Forwarding = attrs.field(init=False)

    # The ways to replicas.

    def get(self, view: Any) -> Any:
        return FakeChannel(self, view.id) if self.connected else None

    async def open(self, view: Any) -> Any:
        await self.opening.wait()
        return FakeChannel(self, view.id)

    # The client.

    def on_messages(self, messages: Sequence[bytes]) -> None:
        assert messages
        assert not self.ends
        assert not self.left
        self.messages += messages

    def on_end(self, error: AnyServeError | None) -> None:
        assert not self.ends
        assert not self.left
        self.ends.append(error)

    @property
    def error(self) -> AnyServeError | None:
        (error,) = self.ends
        return error

    @property
    def ids(self) -> list[int]:
        """All that it was given."""
        return [each for message in self.messages for each in ids_of(message)]

    def start(
        self, body: bytes | None = None, path: str = MODEL_STREAM_INFER, **parameters: Any
    ) -> None:
        if body is None:
            body = encode_request("decode", {"text_input": "hello"}, parameters, "mine")
        request = incoming(path, body, scan(body), (), math.inf, self.ways.links)
        request.permit = self.permit
        self.forwarding = Forwarding(self.ways, request, self)
        self.forwarding.start()

    @property
    def call(self) -> FakeCall:
        (call,) = [call for call in self.calls if not call.over]
        return call

    @property
    def asked(self) -> str:
        return "".join(call.replica for call in self.calls)

    def assert_nothing_is_left(self) -> None:
        assert all(call.over for call in self.calls)
        assert self.ways.in_flight == 0
        assert self.ways.room == resuming.Room()


@attrs.frozen
class FakeChannel:
    desk: Desk
    replica: str

    def call(self, path: str, message: Any, answers: Answers, *, metadata: Any, **_: Any) -> Any:
        call = FakeCall(self.replica, b"".join(message), dict(metadata), answers)
        self.desk.calls.append(call)
        return call


@contextmanager
def front_desk(
    nursery: trio.Nursery, models: dict[str, str], not_resumable: str = ""
) -> Iterator[Desk]:
    """models: what the replicas offer, by their ids. not_resumable: the ids of those."""
    registry = WatchedRegistry(MemoryRegistry())
    links, router = Links(registry), Router(LEAST_WAIT, Random(1))
    registry.follow(router.follow)
    ways = Ways(registry, links, cast(Reach, None), router)
    desk = Desk(ways)
    ways.channels, ways.nursery = desk, nursery
    with ExitStack() as stack:
        for number, (id, model) in enumerate(models.items()):
            capability = Capability("decode", {"model": model, "max_context": 1000}, "1")
            load = Load(number, 0, 20, 0.0)
            offer = OfferView(capability, load, 8, True, resumable=id not in not_resumable)
            registration = Registration(id, b"instance", f"127.0.0.1:{number + 1}", [offer])
            epoch = registry.register(registration, trio.current_time()).epoch
            stack.enter_context(links.attached(id, epoch, id.encode() * 16))
        yield desk


@pytest.fixture
async def desk() -> Any:
    async with trio.open_nursery() as nursery:
        with front_desk(nursery, dict.fromkeys("abc", "m")) as desk:
            yield desk
            await trio.testing.wait_all_tasks_blocked()
            desk.assert_nothing_is_left()
        nursery.cancel_scope.cancel()


# It goes on.


async def test_a_lost_stream_goes_on_after_the_tokens_that_its_client_has(desk: Desk) -> None:
    desk.start(max_tokens=9)
    assert desk.call.parameters == {"max_tokens": 9, "return_token_ids": True}
    desk.call.answer(piece(7), piece(8, 9))
    desk.call.answer(piece())  # text that is held back brings no ids
    desk.call.answer(piece(-1))
    desk.call.end(LOST)
    assert desk.asked == "ab"
    assert desk.call.resumes == [7, 8, 9, -1]
    assert desk.call.parameters["max_tokens"] == 9
    assert desk.call.metadata["anyserve-delegations"] == "1"
    desk.call.answer(piece(10), piece(reason="length"))
    desk.call.end()
    assert desk.ids == [7, 8, 9, -1, 10]
    assert desk.ends == [None]
    assert desk.ways.resumed == 1


async def test_only_the_model_that_began_a_text_goes_on_with_it() -> None:
    async with trio.open_nursery() as nursery:
        with front_desk(nursery, {"a": "m", "b": "other", "c": "m"}) as desk:
            desk.start()
            desk.call.answer(piece(1))
            desk.call.end(LOST)
            assert desk.asked == "ac"
            need = desk.call.metadata["anyserve-need-bin"]
            assert isinstance(need, bytes)
            assert from_bytes(need) == Capability("decode", {"model": "m"}, "1")
            desk.call.end()
            desk.assert_nothing_is_left()


async def test_only_who_takes_token_ids_goes_on() -> None:
    async with trio.open_nursery() as nursery:
        with front_desk(nursery, dict.fromkeys("abc", "m"), "b") as desk:
            desk.start()
            desk.call.answer(piece(1))
            desk.call.end(LOST)
            assert desk.asked == "ac"
            desk.call.end()
            desk.assert_nothing_is_left()


async def test_what_said_nothing_yet_begins_anew_and_with_any_model() -> None:
    async with trio.open_nursery() as nursery:
        with front_desk(nursery, {"a": "m", "b": "other"}) as desk:
            desk.start()
            desk.call.end(LOST)
            assert desk.asked == "ab"
            assert desk.call.resumes is None
            desk.call.answer(piece(1))
            desk.call.end()
            assert desk.ends == [None]
            desk.assert_nothing_is_left()


async def test_a_request_with_one_answer_begins_anew_until_it_has_that(desk: Desk) -> None:
    desk.start(path=MODEL_INFER)
    assert desk.call.parameters == {}
    desk.call.end(LOST)
    assert desk.asked == "ab"
    desk.call.answer(b"answer")
    desk.call.end(LOST)
    assert isinstance(desk.error, Unavailable)
    assert desk.asked == "ab"


async def test_a_replica_that_can_not_go_on_is_left_and_its_error_untold(desk: Desk) -> None:
    desk.start()
    desk.call.answer(piece(1), WORKER_LOST)
    desk.call.end()
    assert desk.asked == "ab"
    assert desk.call.resumes == [1]
    desk.call.answer(piece(2))
    desk.call.end()
    assert desk.ids == [1, 2]
    assert desk.ends == [None]


async def test_the_only_replica_is_asked_again_where_it_is_still_there() -> None:
    async with trio.open_nursery() as nursery:
        with front_desk(nursery, {"a": "m"}) as desk:
            desk.start()
            desk.call.answer(piece(1))
            desk.call.answer(WORKER_LOST)
            desk.call.end()
            assert desk.asked == "aa"
            desk.call.answer(piece(2))
            desk.call.end()
            assert desk.ids == [1, 2]
            desk.assert_nothing_is_left()


async def test_who_does_not_take_a_resumed_stream_is_passed_over(desk: Desk) -> None:
    desk.start()
    desk.call.answer(piece(1))
    desk.call.end(LOST)
    desk.call.end(NOT_TAKEN)
    assert desk.asked == "abc"
    assert desk.call.resumes == [1]
    desk.call.end()


async def test_a_text_that_its_client_resumes_goes_on_after_all_of_its_tokens(desk: Desk) -> None:
    desk.start(resume_token_ids="[1, 2]")
    desk.call.answer(piece(3))
    desk.call.end(LOST)
    assert desk.call.resumes == [1, 2, 3]
    desk.call.end()


@pytest.mark.parametrize("outputs", [[], ["text_output"], ["token_ids", "text_output"]])
async def test_token_ids_are_asked_for_beside_the_outputs_that_are(
    desk: Desk, outputs: list[str]
) -> None:
    wanted = [pb.ModelInferRequestInferRequestedOutputTensor(name=name) for name in outputs]
    desk.start(bytes(pb.ModelInferRequest(model_name="decode", id="mine", outputs=wanted)))
    names = [output.name for output in desk.call.request.outputs]
    assert sorted(names) == sorted({*outputs, "token_ids"} if outputs else [])
    desk.call.end()


# All of it was there.


@pytest.mark.parametrize("last", [piece(2, reason="stop"), b"\x12\x00" + IS_FINAL], ids=len)
async def test_what_had_come_to_its_end_ends_well(desk: Desk, last: bytes) -> None:
    desk.start()
    desk.call.answer(piece(1), last)
    desk.call.end(LOST)
    assert desk.ends == [None]
    assert desk.asked == "a"


# It can't go on.


async def test_a_second_loss_ends_it_with_both_reasons(desk: Desk) -> None:
    desk.start()
    desk.call.answer(piece(1))
    desk.call.end(LOST)
    desk.call.answer(piece(2))
    desk.call.end(Unavailable("gone too"))
    assert isinstance(desk.error, Unavailable)
    assert desk.error.message == "a: the connection is lost; then b: gone too"
    assert desk.asked == "ab"


@pytest.mark.parametrize("answered", [False, True])
async def test_what_was_delegated_is_not_resumed(desk: Desk, answered: bool) -> None:
    desk.permit = Permit(Handback("c", Capability("decode"), "c drains"))
    desk.start()
    if answered:
        desk.call.answer(piece(1))
    desk.call.end(LOST)
    assert isinstance(desk.error, Unavailable)
    assert desk.error.message == "c: c drains; then a: the connection is lost"
    assert desk.asked == "a"


async def test_what_was_resumed_is_not_handed_back(desk: Desk) -> None:
    desk.start()
    desk.call.answer(piece(1))
    desk.call.end(LOST)
    desk.call.hand_back()
    assert isinstance(desk.error, Unavailable)
    assert desk.error.message == "a: the connection is lost; then b: b has no room"


async def test_an_engine_that_refuses_the_token_ids_is_not_the_clients_fault(desk: Desk) -> None:
    desk.start()
    desk.call.answer(piece(1))
    desk.call.end(LOST)
    desk.call.answer(stream_error(InvalidArgument("not together with regex"), "mine"))
    desk.call.end()
    assert isinstance(desk.error, Unavailable)
    assert desk.error.message.endswith("then b: not together with regex")


@pytest.mark.parametrize("error", [Internal("a bug"), InvalidArgument("max_tokens")], ids=str)
async def test_what_a_handler_fails_with_is_its_clients_to_know(
    desk: Desk, error: AnyServeError
) -> None:
    desk.start()
    desk.call.answer(piece(1))
    desk.call.answer(stream_error(error, "mine"))
    desk.call.end()
    assert type(desk.error) is type(error)
    assert desk.error.message == error.message
    assert desk.asked == "a"


@pytest.mark.parametrize(
    ("parameters", "answer"),
    [
        ({"resume": False}, piece(1)),
        ({"sequence_id": 3}, piece(1)),
        ({}, message({"text_output": text("a")})),
        ({"return_token_ids": False}, message({"text_output": text("a")})),
        ({}, piece(1, index=b"\0\0\0\0", reason="stop")),
        ({}, piece(text_output=text("a"))),
        ({}, b"\x12\x05never"),
        ({}, message({"token_ids": b"\1\0"})),
        ({"resume_token_ids": "never"}, piece(1)),
        ({"resume_token_ids": 3}, piece(1)),
        ({}, b"\n\0"),
    ],
    ids=[
        "opted out",
        "sequence",
        "no ids",
        "no ids by will",
        "several",
        "unknown ids",
        "garbage",
        "cut short",
        "no ids before",
        "a number before",
        "an empty error",
    ],
)
async def test_some_streams_are_never_resumed(
    desk: Desk, parameters: dict[str, Any], answer: bytes
) -> None:
    desk.start(**parameters)
    asks = not {"resume", "sequence_id", "return_token_ids"} & {*parameters}
    assert desk.call.parameters == parameters | ({"return_token_ids": True} if asks else {})
    desk.call.answer(answer)
    desk.call.end(LOST)
    assert isinstance(desk.error, Unavailable)
    assert desk.error.message.startswith(LOST.message)
    assert desk.messages == [answer]
    assert desk.asked == "a"


async def test_token_ids_that_come_as_an_input_are_not_gone_on_after(desk: Desk) -> None:
    inputs = {"text_input": "hello", "resume_token_ids": np.array([1], np.int32)}
    desk.start(encode_request("decode", inputs, {}, "mine"))
    desk.call.answer(piece(2))
    desk.call.end(LOST)
    assert desk.error is LOST


async def test_a_stream_that_is_too_long_to_be_kept_ends(desk: Desk) -> None:
    desk.start()
    long = piece(1, logprobs=text("x" * (1 << 20)))
    for _ in range(5):
        desk.call.answer(long)
    assert desk.ways.room == resuming.Room()
    desk.call.answer(piece(2))
    desk.call.end(LOST)
    assert isinstance(desk.error, Unavailable)
    assert "more than 4 MiB" in desk.error.message
    assert len(desk.messages) == 6


LARGE = encode_request("decode", {"text_input": "x" * resuming.KEPT_LIMIT}, {}, "mine")
"""A request with more bytes than are kept."""


async def test_a_request_that_is_not_kept_stays_whole_until_it_is_answered(desk: Desk) -> None:
    for free in (resuming.ROOM, len(LARGE) - 1):
        request = incoming(MODEL_STREAM_INFER, LARGE, scan(LARGE), (), math.inf, desk.ways.links)
        room = resuming.Room(free)
        kept = resuming.Kept(request, b"", room)
        assert room.free == free
        assert request.body == LARGE
        assert kept.take([piece(1)]) == [piece(1)]
        assert request.body == b""
        with pytest.raises(Unavailable, match=r"go on elsewhere: .* more than"):
            kept.go_on(request.need, OfferView(request.need, Load(0, 0, 1, 0.0), 8, True))
        kept.drop()
        assert room.free == free


async def test_what_is_too_large_to_be_kept_is_sent_whole_wherever_it_goes(desk: Desk) -> None:
    desk.start(LARGE)
    desk.call.end(NOT_TAKEN)
    desk.call.hand_back()
    assert desk.asked == "abc"
    assert all(call.body.startswith(LARGE) for call in desk.calls)
    assert desk.ways.room == resuming.Room()
    desk.call.answer(piece(1))
    desk.call.end()
    assert (desk.ids, desk.ends) == ([1], [None])


@pytest.mark.parametrize("answered", [False, True])
async def test_what_is_too_large_to_be_kept_ends_with_its_replica(
    desk: Desk, answered: bool
) -> None:
    desk.start(LARGE)
    if answered:
        desk.call.answer(piece(1))
    desk.call.end(LOST)
    assert isinstance(desk.error, Unavailable)
    assert desk.error.message == f"{LOST.message}; it can't go on elsewhere: it is more than 4 MiB"
    assert desk.asked == "a"


async def test_all_streams_have_so_much_room_and_no_more(desk: Desk) -> None:
    desk.ways.room.free = 1000
    desk.start()
    desk.call.answer(piece(1, logprobs=text("x" * 1000)))
    desk.call.end(LOST)
    assert isinstance(desk.error, Unavailable)
    assert "all streams together" in desk.error.message
    assert desk.ways.room.free == 1000
    desk.ways.room = resuming.Room()


async def test_where_there_is_no_other_replica_it_is_unavailable_with_the_reason() -> None:
    async with trio.open_nursery() as nursery:
        with front_desk(nursery, {"a": "m", "b": "other"}) as desk:
            desk.start()
            desk.call.answer(piece(1))
            desk.call.end(LOST)
            assert isinstance(desk.error, Unavailable)
            assert "a: the connection is lost" in desk.error.message
            assert desk.asked == "a"
            desk.assert_nothing_is_left()


# In the gap.


async def test_cancelled_in_the_gap_it_goes_nowhere(desk: Desk) -> None:
    desk.start()
    desk.call.answer(piece(1))
    desk.connected = False
    desk.call.end(LOST)
    desk.left = True
    desk.forwarding.cancel()
    desk.opening.set()
    await trio.testing.wait_all_tasks_blocked()
    assert desk.asked == "a"


async def test_a_client_that_waits_has_the_next_replica_wait(desk: Desk) -> None:
    desk.start()
    desk.call.answer(piece(1))
    desk.forwarding.hold()
    desk.call.end(LOST)
    assert desk.call.held
    desk.forwarding.resume()
    assert not desk.call.held
    desk.call.end()


# Any of it, in any order.

EVENTS: dict[str, Callable[[Desk], None]] = {
    "answered": lambda desk: desk.call.answer(piece(_next(desk))),
    "twice": lambda desk: desk.call.answer(piece(_next(desk)), piece(_next(desk, 1))),
    "ended": lambda desk: desk.call.end(),
    "failed": lambda desk: desk.call.end(Internal("a bug")),
    "lost": lambda desk: desk.call.end(LOST),
    "worker lost": lambda desk: (desk.call.answer(WORKER_LOST), desk.call.end())[0],
    "not taken": lambda desk: desk.call.end(NOT_TAKEN),
    "handed back": lambda desk: desk.call.hand_back(),
    "cancelled": lambda desk: desk.forwarding.cancel(),
}


def _next(desk: Desk, further: int = 0) -> int:
    """The token that a right replica says next: it counts those that the text has."""
    call = desk.call
    return len(call.resumes or []) + SAID.setdefault(call, 0) + further


SAID: dict[FakeCall, int] = {}


@given(events=st.lists(st.sampled_from(sorted(EVENTS)), max_size=15), count=st.integers(1, 4))
def test_whatever_happens_each_token_comes_once_and_in_order(events: list[str], count: int) -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            with front_desk(nursery, dict.fromkeys("abcd"[:count], "m")) as desk:
                desk.start()
                follow(desk)

    def follow(desk: Desk) -> None:
        SAID.clear()
        for event in (*events, "ended"):
            if not desk.ways.in_flight:
                break
            desk.left = event == "cancelled"
            call = desk.call
            EVENTS[event](desk)
            SAID[call] = SAID.get(call, 0) + {"answered": 1, "twice": 2}.get(event, 0)
        assert desk.ids == list(range(len(desk.ids)))
        assert len(desk.ends) == (not desk.left)
        assert desk.permit.delegations <= 1
        desk.assert_nothing_is_left()

    trio.run(run)
