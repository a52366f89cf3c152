"""One request through the front door, step by step; replicas do what the test says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any, cast

import attrs
import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from anyserve_protos.anyserve import v1 as pb
from anyserve_scheduler.channels import Channels
from anyserve_scheduler.delegation import Handback, Permit
from anyserve_scheduler.fleet import Load, OfferView, ReplicaView
from anyserve_scheduler.gateway.forwarding import MOST_ATTEMPTS, Forwarding
from anyserve_scheduler.gateway.incoming import Incoming
from anyserve_scheduler.gateway.ways import Ways
from anyserve_scheduler.links import Links
from anyserve_scheduler.registration import Registration
from anyserve_scheduler.registry import MemoryRegistry
from anyserve_scheduler.routing import LEAST_WAIT, Decision, Hints, Router, Sent
from anyserve_scheduler.watched import WatchedRegistry
from hypothesis import given
from multidict import MultiDict

from anyserve.capability import Capability
from anyserve.errors import (
    AnyServeError,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from anyserve.needs import to_bytes
from anyserve.transport.outgoing import Answers
from anyserve.transport.wire import NotTaken

NEED = Capability("decode")
LOST = Unavailable("the connection is lost")
NOT_TAKEN = NotTaken("the peer did not take the call")


@attrs.define(eq=False)
class FakeCall:
    """A call to a replica, which the test answers."""

    replica: str
    body: bytes
    metadata: dict[str, str | bytes]
    deadline: float
    answers: Answers
    cancelled: bool = False
    held: bool = False
    ended: bool = False

    def cancel(self) -> None:
        self.cancelled = True

    def hold(self) -> None:
        self.held = True

    def resume(self) -> None:
        self.held = False

    @property
    def live(self) -> bool:
        return not (self.cancelled or self.ended)

    def answer(self, *messages: bytes) -> None:
        self.answers.on_messages(messages)

    def end(self, error: AnyServeError | None = None, **metadata: bytes) -> None:
        self.ended = True
        trailers = MultiDict({name.replace("_", "-"): word for name, word in metadata.items()})
        self.answers.on_end(error, trailers)

    def hand_back(self, need: bytes = b"") -> None:
        word = bytes(pb.Handback(need=need, reason=f"{self.replica} has no room"))
        self.end(Unavailable("full"), anyserve_handback_bin=word)


class FakeChannels:
    """Channels whose calls are only noted."""

    def __init__(self) -> None:
        self.calls: list[FakeCall] = []
        self.connected = True
        """Whether there is a channel at once."""
        self.opening = trio.Event()
        """Set when those that are not there are decided."""
        self.gone: set[str] = set()
        """Replicas whose lease has ended when that is."""

    def get(self, view: ReplicaView) -> Any:
        return FakeChannel(self, view.id) if self.connected else None

    async def open(self, view: ReplicaView) -> Any:
        await self.opening.wait()
        if view.id in self.gone:
            raise Unavailable(f"replica {view.id} is gone")
        return FakeChannel(self, view.id)


@attrs.frozen
class FakeChannel:
    channels: FakeChannels
    replica: str

    def call(
        self,
        path: str,
        message: Sequence[bytes],
        answers: Answers,
        *,
        deadline: float,
        metadata: tuple[tuple[str, str | bytes], ...],
    ) -> FakeCall:
        call = FakeCall(self.replica, b"".join(message), dict(metadata), deadline, answers)
        self.channels.calls.append(call)
        return call


class BookedRouter(Router):
    """A router that counts what was sent and has not ended."""

    open = 0
    served = 0

    def sent(self, need: Capability, hints: Hints, decision: Decision, now: float) -> Sent:
        self.open += 1
        return super().sent(need, hints, decision, now)

    def ended(self, sent: Sent, now: float, *, served: bool) -> None:
        self.open -= not sent.ended
        self.served += served
        super().ended(sent, now, served=served)


@attrs.define(eq=False)
class FakeClient:
    """Whoever wants the answers."""

    messages: list[bytes] = attrs.field(factory=list)
    ends: list[AnyServeError | None] = attrs.field(factory=list)
    left: bool = False

    def on_messages(self, messages: Sequence[bytes]) -> None:
        self._assert_it_listens()
        self.messages += messages

    def on_end(self, error: AnyServeError | None) -> None:
        self._assert_it_listens()
        self.ends.append(error)

    def _assert_it_listens(self) -> None:
        assert not self.ends
        assert not self.left

    @property
    def error(self) -> AnyServeError | None:
        (error,) = self.ends
        return error


@attrs.define(eq=False)
class Desk:
    """A front door before replicas "a", "b" and so on, each busier than the one before."""

    ways: Ways
    channels: FakeChannels
    router: BookedRouter
    client: FakeClient = attrs.field(factory=FakeClient)
    permit: Permit = attrs.field(factory=Permit)
    forwarding: Forwarding = attrs.field(init=False)

    def start(self, deadline: float = math.inf, need: Capability = NEED) -> None:
        request = Incoming(
            "/ModelInfer", b"body", need, (("x-own", "1"),), deadline, None, (), self.permit
        )
        self.forwarding = Forwarding(self.ways, request, self.client)
        self.forwarding.start()

    @property
    def call(self) -> FakeCall:
        """The one that is live."""
        (call,) = [call for call in self.channels.calls if call.live]
        return call

    @property
    def asked(self) -> list[str]:
        return [call.replica for call in self.channels.calls]

    def assert_nothing_is_left(self) -> None:
        assert not [call for call in self.channels.calls if call.live]
        assert (self.ways.in_flight, len(self.ways.deadlines), self.router.open) == (0, 0, 0)


@contextmanager
def front_desk(replicas: str, nursery: trio.Nursery) -> Iterator[Desk]:
    registry = WatchedRegistry(MemoryRegistry())
    links, router, channels = Links(registry), BookedRouter(LEAST_WAIT, Random(1)), FakeChannels()
    registry.follow(router.follow)
    ways = Ways(registry, links, cast(Channels, channels), router)
    ways.nursery = nursery
    with ExitStack() as stack:
        for number, id in enumerate(replicas):
            offer = OfferView(NEED, Load(number, 0, 20, 0.0), 8, True)
            registration = Registration(id, b"instance", f"127.0.0.1:{number + 1}", [offer])
            epoch = registry.register(registration, trio.current_time()).epoch
            stack.enter_context(links.attached(id, epoch, id.encode() * 16))
        yield Desk(ways, channels, router)


@pytest.fixture
async def desk() -> Any:
    async with trio.open_nursery() as nursery:
        with front_desk("abcdef", nursery) as desk:
            nursery.start_soon(desk.ways.deadlines.run)
            yield desk
            await trio.testing.wait_all_tasks_blocked()
            desk.assert_nothing_is_left()
        nursery.cancel_scope.cancel()


# The states that a request can be in.


def waiting(desk: Desk) -> None:
    """There is no channel to its replica yet."""
    desk.channels.connected = False


def sent(desk: Desk) -> None:
    """A replica has it, and has said nothing."""


def answered(desk: Desk) -> None:
    """A replica has begun to answer."""
    desk.call.answer(b"1")


def elsewhere(desk: Desk) -> None:
    """It is at a second replica, since the first has not taken it."""
    desk.call.end(NOT_TAKEN)


def delegated(desk: Desk) -> None:
    """It is at a second replica, since the first has handed it back."""
    desk.call.hand_back()


State = Callable[[Desk], None]
STATES = [waiting, sent, answered, elsewhere, delegated]
AT_A_REPLICA = [sent, answered, elsewhere, delegated]


def reach(desk: Desk, state: State, deadline: float = math.inf) -> None:
    if state is waiting:
        waiting(desk)
    desk.start(deadline)
    if state is not waiting:
        state(desk)


def by_name(value: Any) -> str | None:
    return getattr(value, "__name__", None)


# What ends it.


async def test_where_nobody_has_it_more_may_come_back_for_a_while(
    desk: Desk, autojump_clock: Any
) -> None:
    desk.ways.complete_at = trio.current_time() + 5
    need = Capability("other")
    with pytest.raises(Unavailable, match=r"no capability 'other'.* just started.* 5.0 s left"):
        desk.start(need=need)
    await trio.sleep(5)
    with pytest.raises(NotFound, match="no capability 'other'"):
        desk.start(need=need)


@pytest.mark.parametrize("state", STATES, ids=by_name)
async def test_cancelled_it_ends_at_its_replica_and_says_nothing(
    desk: Desk, state: State, autojump_clock: Any
) -> None:
    reach(desk, state, deadline=trio.current_time() + 5)
    calls = [call for call in desk.channels.calls if call.live]
    desk.client.left = True
    desk.forwarding.cancel()
    desk.forwarding.cancel()
    assert all(call.cancelled for call in calls)
    asked = desk.asked
    desk.channels.opening.set()
    await trio.sleep(10)
    assert desk.asked == asked


@pytest.mark.parametrize("state", STATES, ids=by_name)
async def test_its_deadline_ends_it_at_its_replica(
    desk: Desk, state: State, autojump_clock: Any
) -> None:
    deadline = trio.current_time() + 5
    reach(desk, state, deadline)
    assert {call.deadline for call in desk.channels.calls} <= {deadline}
    await trio.sleep(4.9)
    assert not desk.client.ends
    await trio.sleep(0.2)
    assert isinstance(desk.client.error, DeadlineExceeded)
    assert not [call for call in desk.channels.calls if call.live]
    desk.channels.opening.set()
    await trio.sleep(1)
    desk.forwarding.cancel()
    assert desk.router.served == 0


@pytest.mark.parametrize("state", AT_A_REPLICA, ids=by_name)
async def test_a_replica_that_is_lost_with_it_ends_it(desk: Desk, state: State) -> None:
    reach(desk, state)
    replica, asked = desk.call.replica, desk.asked
    desk.call.end(LOST)
    assert desk.client.error is LOST
    assert desk.asked == asked
    link = desk.ways.links.get(replica)
    assert link is not None
    assert link.last_error == LOST.message
    assert desk.router.served == 0


@pytest.mark.parametrize("state", AT_A_REPLICA, ids=by_name)
@pytest.mark.parametrize("error", [None, NotFound("no"), Internal("a bug")], ids=str)
async def test_what_its_replica_ends_it_with_is_its_end(
    desk: Desk, state: State, error: AnyServeError | None
) -> None:
    reach(desk, state)
    if error is None:
        desk.call.answer(b"last")
    desk.call.end(error)
    assert desk.client.error is error
    assert desk.router.served == (error is None)


async def test_a_request_that_comes_too_late_goes_nowhere(desk: Desk) -> None:
    with pytest.raises(DeadlineExceeded, match="before the request was sent"):
        desk.start(trio.current_time())
    assert desk.asked == []


# Sent again, where nothing was begun.


@pytest.mark.parametrize("state", [sent, elsewhere, delegated], ids=by_name)
async def test_what_was_not_taken_goes_to_the_next_replica(desk: Desk, state: State) -> None:
    reach(desk, state)
    before = len(desk.asked)
    desk.call.end(NOT_TAKEN)
    assert desk.asked == list("abc"[: before + 1])
    assert [call.body for call in desk.channels.calls] == [b"body"] * (before + 1)
    assert desk.call.metadata["anyserve-delegations"] == str(int(state is delegated))
    assert desk.call.metadata["anyserve-link-token-bin"] == desk.call.replica.encode() * 16
    assert desk.call.metadata["x-own"] == "1"
    desk.call.end()


async def test_what_was_answered_is_not_sent_again(desk: Desk) -> None:
    reach(desk, answered)
    desk.call.end(NOT_TAKEN)
    assert desk.client.error is NOT_TAKEN
    assert desk.client.messages == [b"1"]
    assert desk.asked == ["a"]


async def test_a_replica_that_is_out_before_there_is_a_channel_is_passed_over(desk: Desk) -> None:
    reach(desk, waiting)
    desk.channels.gone.add("a")
    desk.channels.opening.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (desk.asked, desk.ways.retried) == (["b"], 1)
    desk.call.end()
    assert desk.client.ends == [None]


async def test_it_is_tried_so_often_and_no_more(desk: Desk) -> None:
    desk.start()
    for _ in range(MOST_ATTEMPTS):
        desk.call.end(NOT_TAKEN)
    assert desk.asked == list("abcd")
    assert isinstance(desk.client.error, Unavailable)
    assert f"{MOST_ATTEMPTS} replicas did not take it" in desk.client.error.message


async def test_a_replica_whose_link_is_another_is_passed_over(desk: Desk) -> None:
    link = desk.ways.links.get("a")
    assert link is not None
    link.epoch += 1
    desk.start()
    assert desk.asked == ["b"]
    desk.call.end()
    link.epoch -= 1


# Handed back, once.


async def test_a_hand_back_takes_it_to_another_replica_with_its_need(desk: Desk) -> None:
    desk.start()
    assert "anyserve-need-bin" not in desk.call.metadata
    desk.call.hand_back()
    assert desk.asked == ["a", "b"]
    assert desk.call.metadata["anyserve-delegations"] == "1"
    assert desk.call.metadata["anyserve-need-bin"] == to_bytes(NEED)
    assert desk.ways.delegated == 1
    desk.call.end()
    assert desk.client.ends == [None]


@pytest.mark.parametrize("between", [False, True])
async def test_a_second_hand_back_ends_it_with_both_reasons(desk: Desk, between: bool) -> None:
    reach(desk, delegated)
    if between:
        desk.call.end(NOT_TAKEN)
    second = desk.call.replica
    desk.call.hand_back()
    error = desk.client.error
    assert isinstance(error, FailedPrecondition)
    assert error.message.endswith(f"a: a has no room; then {second}: {second} has no room")
    assert desk.asked == list("abc"[: 2 + between])
    assert desk.ways.delegated == 1


async def test_what_a_replica_has_handed_over_is_handed_back_by_none_and_not_to_it(
    desk: Desk,
) -> None:
    desk.permit = Permit(Handback("a", NEED, "a drains"))
    desk.start()
    assert desk.asked == ["b"]
    assert desk.call.metadata["anyserve-delegations"] == "1"
    desk.call.hand_back()
    assert isinstance(desk.client.error, FailedPrecondition)
    assert "a: a drains; then b: b has no room" in desk.client.error.message


async def test_after_an_answer_nothing_is_handed_back(desk: Desk) -> None:
    reach(desk, answered)
    desk.call.hand_back()
    assert isinstance(desk.client.error, Unavailable)
    assert desk.asked == ["a"]
    assert desk.permit.delegations == 0


async def test_a_hand_back_that_can_not_be_read_ends_it(desk: Desk) -> None:
    desk.start()
    desk.call.end(Unavailable("full"), anyserve_handback_bin=b"\xff\xff")
    assert isinstance(desk.client.error, InvalidArgument)
    assert desk.permit.delegations == 0


async def test_where_nobody_else_serves_it_the_reason_of_the_hand_back_is_told() -> None:
    async with trio.open_nursery() as nursery:
        with front_desk("a", nursery) as desk:
            desk.start()
            desk.call.hand_back()
            assert isinstance(desk.client.error, AnyServeError)
            assert "a has no room" in desk.client.error.message
            desk.assert_nothing_is_left()


# Held.


@pytest.mark.parametrize("state", STATES, ids=by_name)
async def test_a_client_that_waits_has_each_replica_wait(desk: Desk, state: State) -> None:
    reach(desk, state)
    desk.forwarding.hold()
    desk.channels.opening.set()
    await trio.testing.wait_all_tasks_blocked()
    assert desk.call.held
    if state is not answered:
        desk.channels.connected = True
        desk.call.end(NOT_TAKEN)
        assert desk.call.held
    desk.forwarding.resume()
    assert not desk.call.held
    desk.call.end()


# Any of it, in any order.

EVENTS: dict[str, Callable[[Desk], None]] = {
    "answered": lambda desk: desk.call.answer(b"m"),
    "ended": lambda desk: desk.call.end(),
    "failed": lambda desk: desk.call.end(Internal("a bug")),
    "lost": lambda desk: desk.call.end(LOST),
    "not taken": lambda desk: desk.call.end(NOT_TAKEN),
    "handed back": lambda desk: desk.call.hand_back(),
    "cancelled": lambda desk: desk.forwarding.cancel(),
    "late": lambda desk: desk.ways.deadlines.expire(trio.current_time() + 11) and None,
    "held": lambda desk: desk.forwarding.hold(),
    "resumed": lambda desk: desk.forwarding.resume(),
}


@given(
    events=st.lists(st.sampled_from(sorted(EVENTS)), max_size=12),
    replicas=st.integers(1, 6),
    handed_over=st.booleans(),
)
def test_whatever_happens_it_ends_once_and_is_delegated_once(
    events: list[str], replicas: int, handed_over: bool
) -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            with front_desk("abcdef"[:replicas], nursery) as desk:
                if handed_over:
                    desk.permit = Permit(Handback("z", NEED, "z drains"))
                desk.start(trio.current_time() + 10)
                follow(desk)

    def follow(desk: Desk) -> None:
        for event in (*events, "late"):
            if not desk.ways.in_flight:
                break
            desk.client.left = event == "cancelled"
            EVENTS[event](desk)
        assert len(desk.client.ends) == (not desk.client.left)
        desk.assert_nothing_is_left()
        calls = desk.channels.calls
        counts = [int(call.metadata["anyserve-delegations"]) for call in calls]
        assert counts == sorted(counts)
        assert desk.permit.delegations <= 1
        assert len(calls) == len({call.replica for call in calls}) <= MOST_ATTEMPTS
        assert all(call.body == b"body" for call in calls)
        tries = [each for each in events if each in ("not taken", "handed back")]
        assert len(calls) <= 1 + len(tries)

    trio.run(run)
