"""The scheduler's orders to replicas, over links in memory: given, lost, failed, given anew."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from anyserve_protos.anyserve import v1 as pb

from anyserve.capability import Capability
from anyserve.replica.orders import Order
from anyserve.replica.reports import OnDemand

INTERVAL = 2.0
Join = Callable[..., Any]
X = Capability("x")
NOT_LOADED = OnDemand(loaded=False)
LOADING = OnDemand(loaded=False, loading=True)
LOADED = OnDemand(loaded=True)


async def joined(join: Join, *ids: str) -> list[Any]:
    """Replicas with `x` on demand."""
    fakes = [join(id) for id in ids]
    for fake in fakes:
        fake.say("x", NOT_LOADED)
    await trio.sleep(0.1)
    return fakes


def orders(fake: Any) -> list[tuple[str, bool]]:
    return [(order.name, order.load) for _, order in fake.orders]


async def test_what_is_wanted_is_ordered_at_once_and_not_again_while_it_loads(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    (a,) = await joined(join, "a")
    now = trio.current_time()
    desk.unserved.note(X)
    await trio.sleep(0.01)
    reason = "it is wanted, and nobody serves it"
    assert a.orders == [(pytest.approx(now, abs=0.01), Order("x", True, reason))]
    a.say("x", LOADING)
    for _ in range(60):
        desk.unserved.note(X)
        await trio.sleep(1)
    assert len(a.orders) == 1
    a.say("x", LOADED)
    await trio.sleep(0.01)
    (offer,) = desk.registry.fleet().replicas["a"].offers.values()
    assert (offer.on_demand, offer.loadable, offer.load.slots) == (True, False, 4)


async def test_when_the_replica_that_loads_dies_another_one_is_asked(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    a, b = await joined(join, "a", "b")
    desk.unserved.note(X)
    await trio.sleep(0.01)
    a.say("x", LOADING)
    assert (orders(a), orders(b)) == ([("x", True)], [])
    desk.calls[0].scope.cancel()
    a.scope.cancel()
    desk.unserved.note(X)
    await trio.sleep(INTERVAL)
    assert orders(b) == [("x", True)]


async def test_a_load_that_fails_is_ordered_elsewhere_and_then_less_and_less_often(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    a, b = await joined(join, "a", "b")
    fakes = [a, b]
    for _ in range(2000):
        desk.unserved.note(X)
        await trio.sleep(0.5)
        for fake in fakes:
            failures = len(fake.orders)
            if failures != fake.standing.on_demand["x"].failures:
                fake.say("x", OnDemand(False, False, failures, "no memory"))
    first = [fake.orders[0][0] for fake in fakes]
    assert abs(first[0] - first[1]) < 2 * INTERVAL
    for fake in fakes:
        pauses = [b - a for (a, _), (b, _) in pairwise(fake.orders)]
        assert 6 <= len(pauses) <= 8
        assert all(later > 1.5 * earlier for earlier, later in pairwise(pauses))
    view = desk.registry.fleet().replicas["a"].offers["x"]
    assert (view.failures, view.failure) == (len(a.orders), "no memory")


async def test_a_scheduler_that_starts_anew_knows_what_is_being_loaded(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    a, b = await joined(join, "a", "b")
    desk.unserved.note(X)
    await trio.sleep(0.01)
    a.say("x", LOADING)
    await trio.sleep(0.01)
    desk.kill()
    await trio.sleep(1)
    desk.start()
    await trio.sleep(10)
    for _ in range(30):
        desk.unserved.note(X)
        await trio.sleep(1)
    assert (len(a.orders), len(b.orders)) == (1, 0)
    a.say("x", LOADED)
    await trio.sleep(0.1)
    assert not desk.registry.fleet().replicas["a"].offers["x"].loadable


async def test_an_order_lost_on_its_way_is_given_again(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    (a,) = await joined(join, "a")
    desk.loses = lambda message: isinstance(message, pb.ToReplica) and message.want is not None
    desk.unserved.note(X)
    await trio.sleep(1)
    desk.loses = lambda message: False
    for _ in range(40):
        desk.unserved.note(X)
        await trio.sleep(1)
    assert orders(a) == [("x", True)]


async def test_what_nobody_has_on_demand_is_ordered_nowhere(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    (a,) = await joined(join, "a")
    for number in range(10_000):
        desk.unserved.note(Capability(f"y{number}"))
    await trio.sleep(INTERVAL)
    assert a.orders == []
    assert list(desk.unserved.wanted()) == []


async def test_ten_thousand_orders_hold_nobody_up(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    (a,) = await joined(join, "a")
    link = desk.links.get("a")
    order = pb.ToReplica(want=pb.Order(name="x"))
    given = sum(link.tell(order) for _ in range(10_000))
    assert 0 < given < 100
    await trio.sleep(0.1)
    assert len(a.orders) == given
    assert link.tell(order)
    await trio.sleep(10)
    assert desk.links.get("a") is link, "it is heard of all the while"


async def test_a_replica_without_a_link_can_t_be_told(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    (a,) = await joined(join, "a")
    link = desk.links.get("a")
    a.scope.cancel()
    await a.ended.wait()
    assert not link.tell(pb.ToReplica(want=pb.Order(name="x")))
