"""Requests for what is on demand and not loaded: they wait for it, within bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, cast

import attrs
import pytest
import trio
import trio.testing
from anyserve_scheduler.channels import Channels
from anyserve_scheduler.delegation import Handback, Permit
from anyserve_scheduler.fleet import Load, OfferView, ReplicaView
from anyserve_scheduler.gateway import unserved
from anyserve_scheduler.gateway.forwarding import Forwarding
from anyserve_scheduler.gateway.incoming import Incoming
from anyserve_scheduler.gateway.ways import Ways
from anyserve_scheduler.links import Link, Links
from anyserve_scheduler.registration import Registration, Report
from anyserve_scheduler.registry import MemoryRegistry
from anyserve_scheduler.routing import LEAST_WAIT, Router
from anyserve_scheduler.watched import WatchedRegistry
from hypothesis import given
from hypothesis import strategies as st
from multidict import MultiDict

from anyserve.capability import Capability
from anyserve.errors import (
    AnyServeError,
    DeadlineExceeded,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from anyserve.transport.outgoing import Answers

NEED = Capability("decode")
WAIT = 30.0


@attrs.define(eq=False)
class Call:
    """A call to a replica."""

    replica: str
    answers: Answers
    cancelled: bool = False
    ended: bool = False

    def cancel(self) -> None:
        self.cancelled = True

    def end(self) -> None:
        self.ended = True
        self.answers.on_end(None, MultiDict())


@attrs.frozen
class Connected:
    """Channels to everybody."""

    calls: list[Call]

    def get(self, view: ReplicaView) -> Channel:
        return Channel(self.calls, view.id)


@attrs.frozen
class Channel:
    calls: list[Call]
    replica: str

    def call(self, path: str, message: Any, answers: Answers, **_: Any) -> Call:
        self.calls.append(Call(self.replica, answers))
        return self.calls[-1]


@attrs.define(eq=False)
class Client:
    ends: list[AnyServeError | None] = attrs.field(factory=list)
    forwarding: Forwarding = attrs.field(init=False)

    def on_messages(self, messages: Sequence[bytes]) -> None: ...

    def on_end(self, error: AnyServeError | None) -> None:
        self.ends.append(error)
        assert len(self.ends) == 1


class Desk:
    """A front door, and replicas of which the test says what they have loaded."""

    def __init__(self, load_wait: float = WAIT) -> None:
        self.registry = WatchedRegistry(MemoryRegistry())
        self.links = Links(self.registry)
        router = Router(LEAST_WAIT, Random(1))
        self.registry.follow(router.follow)
        self.calls: list[Call] = []
        channels = cast(Channels, Connected(self.calls))
        self.ways = Ways(self.registry, self.links, channels, router, load_wait)
        self.epochs: dict[str, int] = {}
        self.sequences: dict[str, int] = {}

    def join(self, id: str, **said: Any) -> None:
        """A replica joins with `decode` on demand."""
        registration = Registration(id, b"instance", f"{id}:1", [offer(**said)])
        epoch = self.registry.register(registration, trio.current_time()).epoch
        self.links._links[id] = Link(id, epoch, b"t" * 32)
        self.epochs[id], self.sequences[id] = epoch, 0

    def say(self, id: str, **said: Any) -> None:
        """It reports how far that is."""
        self.sequences[id] += 1
        report = Report(self.sequences[id], offers=[offer(**said)])
        self.registry.report(id, self.epochs[id], report, trio.current_time())

    def leave(self, id: str) -> None:
        self.registry.release(id, self.epochs.pop(id))

    def ask(
        self, deadline: float = math.inf, need: Capability = NEED, permit: Permit | None = None
    ) -> Client:
        client = Client()
        request = Incoming("/ModelInfer", b"body", need, (), deadline, None, (), permit or Permit())
        client.forwarding = Forwarding(self.ways, request, client)
        client.forwarding.start()
        return client

    @property
    def sent(self) -> list[str]:
        return [call.replica for call in self.calls]

    def wanted(self) -> list[str]:
        """What is wanted, and from now on."""
        found = [capability.name for capability in self.ways.unserved.wanted()]
        self.ways.unserved.forget()
        return found

    def assert_nothing_is_left(self) -> None:
        left = (self.ways.in_flight, len(self.ways.deadlines), len(self.ways.unserved))
        assert left == (0, 0, 0)


def offer(
    *, loaded: bool = False, loading: bool = False, failures: int = 0, decoupled: bool = False
) -> OfferView:
    load = Load(0, 0, 4, 0.0) if loaded else Load(0, 0, 0, 0.0)
    return OfferView(
        *(NEED, load, 8, decoupled),
        loadable=not loaded,
        on_demand=True,
        loading=loading,
        failures=failures,
        failure="no memory" if failures else "",
    )


@pytest.fixture
async def desk() -> Any:
    """It runs; tests in which time passes take a clock that jumps."""
    desk = Desk()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.ways.deadlines.run)
        nursery.start_soon(desk.ways.unserved.run)
        yield desk
        for call in desk.calls:
            if not (call.ended or call.cancelled):
                call.end()
        desk.assert_nothing_is_left()
        nursery.cancel_scope.cancel()


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_a_request_waits_until_a_replica_has_loaded_what_it_needs(
    desk: Desk, autojump_clock: Any
) -> None:
    desk.join("a")
    client = desk.ask()
    desk.say("a", loading=True)
    await trio.sleep(20)
    assert (desk.sent, client.ends, len(desk.ways.unserved)) == ([], [], 1)
    desk.say("a", loaded=True)
    await settled()
    assert (desk.sent, len(desk.ways.unserved)) == (["a"], 0)
    await trio.sleep(WAIT)
    assert client.ends == []


async def test_what_requests_wait_for_is_wanted_all_the_time(desk: Desk) -> None:
    desk.join("a")
    assert desk.wanted() == []
    client = desk.ask()
    assert set(desk.wanted()) == {"decode"}
    assert desk.wanted() == ["decode"]
    client.forwarding.cancel()
    assert desk.wanted() == []


async def test_the_first_word_of_what_is_wanted_is_news_and_the_next_is_not(desk: Desk) -> None:
    desk.join("a")
    first, second = desk.ask(), desk.ask()
    assert desk.ways.unserved.take_news()
    second.forwarding.cancel()
    second = desk.ask()
    assert not desk.ways.unserved.take_news()
    desk.ways.unserved.forget()
    third = desk.ask()
    assert desk.ways.unserved.take_news()
    for client in (first, second, third):
        client.forwarding.cancel()


async def test_cancelled_it_waits_no_longer(desk: Desk) -> None:
    desk.join("a")
    client = desk.ask()
    client.forwarding.cancel()
    desk.assert_nothing_is_left()
    desk.say("a", loaded=True)
    await settled()
    assert (desk.sent, client.ends) == ([], [])


async def test_its_deadline_bounds_the_wait_and_nothing_else_does(
    desk: Desk, autojump_clock: Any
) -> None:
    desk.join("a")
    client = desk.ask(deadline=trio.current_time() + 10 * WAIT)
    await trio.sleep(10 * WAIT - 1)
    assert client.ends == []
    await trio.sleep(2)
    (error,) = client.ends
    assert isinstance(error, DeadlineExceeded)
    assert error.message == "the deadline passed before decode was loaded"


async def test_without_a_deadline_the_wait_has_a_bound(desk: Desk, autojump_clock: Any) -> None:
    desk.join("a")
    client = desk.ask()
    await trio.sleep(WAIT - 1)
    assert client.ends == []
    await trio.sleep(2)
    (error,) = client.ends
    assert isinstance(error, Unavailable)
    assert error.message == "decode was not loaded on any replica within 30 s"


async def test_nobody_waits_for_what_can_t_be_loaded(desk: Desk) -> None:
    desk.join("a")
    desk.join("b")
    client = desk.ask()
    desk.say("a", failures=1)
    await settled()
    assert client.ends == [], "the other one may load it"
    desk.say("b", failures=1)
    await settled()
    (error,) = client.ends
    assert isinstance(error, Unavailable)
    assert error.message == "decode could not be loaded: a: no memory"
    desk.ways.unserved.forget()
    with pytest.raises(Unavailable, match="a: no memory"):
        desk.ask()
    assert desk.wanted() == ["decode"], "it may be tried again"
    desk.say("b", failures=1, loading=True)
    desk.ask()
    desk.say("b", loaded=True)
    await settled()
    assert desk.sent == ["b"]


async def test_when_the_last_replica_is_gone_that_could_load_it_the_wait_is_over(
    desk: Desk,
) -> None:
    desk.join("a")
    client = desk.ask()
    desk.leave("a")
    await settled()
    (error,) = client.ends
    assert isinstance(error, NotFound)


async def test_a_replica_that_joins_with_it_ends_the_wait(desk: Desk) -> None:
    desk.join("a")
    desk.ask()
    desk.join("b", loaded=True)
    await settled()
    assert desk.sent == ["b"]


async def test_requests_with_needs_of_all_kinds_are_sent_in_the_order_they_came(
    desk: Desk,
) -> None:
    desk.join("a")
    clients = [desk.ask() for _ in range(5)]
    other = Capability("decode", {"model": "mine"})
    with pytest.raises(NotFound):
        desk.ask(need=other)
    desk.say("a", loaded=True)
    await settled()
    assert [call.answers for call in desk.calls] == [client.forwarding for client in clients]


async def test_while_the_first_of_a_need_waits_on_the_others_are_not_even_tried(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.join("a")
    clients = [desk.ask() for _ in range(50)]
    tried = []
    choose = desk.ways.router.choose
    monkeypatch.setattr(
        desk.ways.router, "choose", lambda *values: tried.append(1) or choose(*values)
    )
    desk.say("a", loading=True)
    await settled()
    assert len(tried) == 1
    for client in clients:
        client.forwarding.cancel()


async def test_only_so_many_wait(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unserved, "MOST_WAITING", 3)
    desk.join("a")
    clients = [desk.ask() for _ in range(3)]
    with pytest.raises(ResourceExhausted, match="no more requests may wait"):
        desk.ask()
    clients[0].forwarding.cancel()
    desk.ask()
    desk.say("a", loaded=True)
    await settled()
    assert len(desk.sent) == 3


async def test_where_nobody_is_to_wait_nobody_does(autojump_clock: Any) -> None:
    desk = Desk(load_wait=0.0)
    desk.join("a")
    with pytest.raises(Unavailable, match="decode is not loaded on any replica"):
        desk.ask(deadline=trio.current_time() + 10)
    assert desk.wanted() == ["decode"]
    desk.assert_nothing_is_left()


async def test_the_replica_that_handed_it_over_may_serve_it_once_it_has_loaded(
    desk: Desk,
) -> None:
    desk.join("a")
    desk.ask(permit=Permit(Handback("a", NEED, "decode is on demand, and not loaded")))
    desk.say("a", loaded=True)
    await settled()
    assert desk.sent == ["a"]


@pytest.mark.parametrize("decoupled", [False, True])
async def test_how_it_is_answered_is_known_while_it_waits(desk: Desk, decoupled: bool) -> None:
    desk.join("a", decoupled=decoupled)
    client = desk.ask()
    assert client.forwarding.decoupled is decoupled
    client.forwarding.cancel()


EVENTS: dict[str, Callable[[Desk, str], None]] = {
    "loads": lambda desk, id: desk.say(id, loading=True),
    "has loaded": lambda desk, id: desk.say(id, loaded=True),
    "lets go": lambda desk, id: desk.say(id),
    "fails": lambda desk, id: desk.say(id, failures=1),
    "leaves": lambda desk, id: desk.leave(id),
}


@given(st.lists(st.tuples(st.sampled_from([*EVENTS, "ask", "cancel", "time"]), st.booleans())))
def test_whatever_happens_each_request_ends_once_and_nothing_is_left(
    events: list[tuple[str, bool]],
) -> None:
    async def main() -> None:
        desk = Desk()
        clients: list[Client] = []
        cancelled: set[Client] = set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.ways.deadlines.run)
            nursery.start_soon(desk.ways.unserved.run)
            for event, second in events:
                id = "b" if second else "a"
                if event == "ask":
                    clients += asked(desk, math.inf if second else trio.current_time() + 12)
                elif event == "cancel" and clients:
                    cancelled.add(clients[-1])
                    clients[-1].forwarding.cancel()
                elif event == "time":
                    await trio.sleep(7)
                elif event in EVENTS and id in desk.epochs:
                    EVENTS[event](desk, id)
                elif event == "loads":
                    desk.join(id)
                if second:
                    await settled()
            await trio.sleep(WAIT + 1)
            for call in desk.calls:
                if not call.cancelled and not call.ended:
                    call.end()
            desk.assert_nothing_is_left()
            assert all(client.ends or client in cancelled for client in clients)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def asked(desk: Desk, deadline: float) -> Iterator[Client]:
    try:
        yield desk.ask(deadline)
    except AnyServeError:
        return
