"""What a replica reports, against what the scheduler then knows: deltas add up to the truth."""

from __future__ import annotations

import math
from typing import Any, cast

import attrs
import pytest
from anyserve_protos.anyserve import v1 as pb
from anyserve_scheduler.messages import offer_of, registration_of, report_of
from anyserve_scheduler.registration import Heard
from anyserve_scheduler.registry import MemoryRegistry
from hypothesis import given
from hypothesis import strategies as st

from anyserve.app import Condition
from anyserve.capability import Capability
from anyserve.errors import InvalidArgument
from anyserve.load import Load
from anyserve.offers import Offer
from anyserve.replica.exchange import Executor
from anyserve.replica.pool import Pool, State
from anyserve.replica.reports import OnDemand, Standing, all_offers, report, standing

loads = st.builds(
    Load,
    running=st.integers(0, 100),
    queued=st.integers(0, 100),
    slots=st.integers(0, 100),
    expected_wait=st.floats(0, 60),
    tokens_per_second=st.floats(0, 1000),
)
names = st.sampled_from(["decode", "decode.heavy", "embedding", "rank"])
attributes = st.dictionaries(
    st.sampled_from(["model", "max_context", "fast"]), st.integers(1, 3), max_size=2
)
offers = st.builds(
    lambda name, attributes, queue, decoupled, resumable: Offer(
        Capability(name, attributes), queue=queue, decoupled=decoupled, resumable=resumable
    ),
    names,
    attributes,
    st.integers(0, 5),
    st.booleans(),
    st.booleans(),
)

demands = st.builds(
    OnDemand,
    loaded=st.booleans(),
    loading=st.booleans(),
    failures=st.integers(0, 3),
    failure=st.sampled_from(["", "no memory"]),
)


@st.composite
def standings(draw: Any) -> Standing:
    chosen = {offer.name: offer for offer in draw(st.lists(offers, max_size=4))}
    on_demand = {name: draw(demands) for name in chosen if draw(st.booleans())}
    loaded = [name for name in chosen if name not in on_demand or on_demand[name].loaded]
    return Standing(chosen, {name: draw(loads) for name in loaded}, draw(st.booleans()), on_demand)


def register(now: Standing) -> pb.Register:
    return pb.Register(
        replica_id="a",
        instance=b"i",
        address="host:8001",
        draining=now.draining,
        offers=all_offers(now),
    )


def known(registry: MemoryRegistry) -> Any:
    view = registry.fleet().replicas["a"]
    return {
        name: (
            *(offer.capability, offer.queue_limit, offer.decoupled, offer.resumable),
            offer.load,
            *(offer.on_demand, offer.loadable, offer.loading, offer.failures, offer.failure),
        )
        for name, offer in view.offers.items()
    }, view.state == "draining"


def truth(now: Standing) -> Any:
    return {
        name: (
            *(offer.capability, offer.queue, offer.decoupled, offer.resumable),
            now.loads.get(name, Load(0, 0, 0, 0.0)),
            *(
                (True, not each.loaded, each.loading, each.failures, each.failure)
                if (each := now.on_demand.get(name)) is not None
                else (False, False, False, 0, "")
            ),
        )
        for name, offer in now.offers.items()
    }, now.draining


@given(standings(), st.lists(st.tuples(standings(), st.booleans()), max_size=6))
def test_after_each_report_the_registry_knows_the_replica_as_it_is(
    first: Standing, later: list[tuple[Standing, bool]]
) -> None:
    registry = MemoryRegistry()
    epoch = registry.register(registration_of(pb.Register.parse(bytes(register(first)))), 0.0).epoch
    assert known(registry) == truth(first)
    told = first
    for sequence, (now, full) in enumerate(later, 1):
        message = pb.Report.parse(bytes(report(sequence, None if full else told, now)))
        assert registry.report("a", epoch, report_of(message), 0.1) is Heard.APPLIED
        assert known(registry) == truth(now)
        told = now


@given(standings(), standings())
def test_what_is_not_new_is_not_told(old: Standing, new: Standing) -> None:
    message = report(1, old, new)
    changed = {
        name
        for name in new.offers
        if old.offers.get(name) != new.offers[name]
        or old.on_demand.get(name) != new.on_demand.get(name)
    }
    assert {offer.name for offer in message.offers} == changed
    assert set(message.removed) == old.offers.keys() - new.offers.keys()
    assert all(old.loads.get(named.name) != new.loads[named.name] for named in message.loads)
    assert old.differs(new) == bool(changed or message.removed or old.draining != new.draining)


def pool(concurrency: int = 2) -> Pool:
    made = Pool(Offer(Capability("decode"), concurrency=concurrency))
    made.add(cast(Executor, object()), made.offer)
    made.set_state(State.READY, "")
    return made


class Waiting:
    def on_granted(self, seat: Any) -> None: ...

    def on_refused(self, error: Any) -> None: ...


def test_a_pool_with_a_free_slot_has_no_wait() -> None:
    busy = pool()
    busy.service_time.observe(3.0)
    busy.acquire(Waiting(), math.inf)
    assert standing([busy], False, 0.0).loads == {"decode": Load(1, 0, 2, 0.0)}


async def test_a_full_pools_wait_is_that_of_one_more_request() -> None:
    full = pool()
    full.service_time.observe(3.0)
    for _ in range(5):
        full.acquire(Waiting(), math.inf)
    assert standing([full], False, 0.0).loads == {"decode": Load(2, 3, 2, (3 + 1) * 3.0 / 2)}


def told_of_others(*others: int, concurrency: int = 2, served: int = 0) -> Load:
    """The load of a pool whose seats' servers have so many requests of others."""
    busy = Pool(Offer(Capability("decode"), concurrency=concurrency))
    busy.service_time.observe(3.0)
    for count in others:
        executor = cast(Executor, object())
        busy.add(executor, busy.offer)
        busy.set_condition(executor, Condition(others=count))
    busy.set_state(State.READY, "")
    for _ in range(served):
        busy.acquire(Waiting(), math.inf)
    return standing([busy], False, 0.0).loads["decode"]


async def test_what_others_have_a_server_do_takes_slots_and_else_waits() -> None:
    assert told_of_others(1) == Load(1, 0, 2, 0.0)
    assert told_of_others(2) == Load(2, 0, 2, (0 + 1) * 3.0 / 2)
    assert told_of_others(5) == Load(2, 3, 2, (3 + 1) * 3.0 / 2)
    assert told_of_others(5, served=1) == Load(2, 4, 2, (4 + 1) * 3.0 / 2)
    assert told_of_others(1, served=4) == Load(2, 3, 2, (3 + 1) * 3.0 / 2)


async def test_each_seat_has_its_own_others_and_the_freer_one_is_taken() -> None:
    assert told_of_others(9, 0) == Load(2, 7, 4, 0.0)
    assert told_of_others(9, 0, served=2) == Load(4, 7, 4, (7 + 1) * 3.0 / 4)
    assert told_of_others(9, 0, served=4) == Load(4, 9, 4, (9 + 1) * 3.0 / 4)


async def test_what_others_do_at_a_server_that_is_down_counts_for_nothing() -> None:
    half = Pool(Offer(Capability("decode"), concurrency=2))
    for condition in (Condition("it is down", others=2), Condition()):
        executor = cast(Executor, object())
        half.add(executor, half.offer)
        half.set_condition(executor, condition)
    half.set_state(State.READY, "")
    assert standing([half], False, 0.0).loads == {"decode": Load(0, 0, 2, 0.0)}


def test_the_tokens_per_second_of_a_decoupled_offer_are_told_and_of_no_other() -> None:
    streams = pool()
    streams.offer = attrs.evolve(streams.offer, decoupled=True)
    whole = pool()
    for busy in (streams, whole):
        standing([busy], False, 0.0)
        busy.given = 90
    assert standing([streams], False, 2.0).loads["decode"].tokens_per_second == 45.0
    assert standing([whole], False, 2.0).loads["decode"].tokens_per_second == 0.0


def test_what_has_no_worker_is_not_offered() -> None:
    lost = pool()
    executor = lost.seats[0].executor
    assert standing([lost], False, 0.0).offers.keys() == {"decode"}
    lost.remove(executor, "it died")
    assert standing([lost], False, 0.0) == Standing({}, {}, False)


def test_what_is_on_demand_is_offered_whether_it_is_loaded_or_not() -> None:
    kept = pool()
    kept.on_demand = True
    idle = Load(0, 0, 2, 0.0)

    def told() -> Standing:
        now = standing([kept], False, 0.0)
        assert now.offers == {"decode": kept.offer}
        return now

    assert (told().loads, told().on_demand) == ({"decode": idle}, {"decode": OnDemand(True)})
    for state in (State.UNLOADING, State.UNAVAILABLE):
        kept.set_state(state, "")
        assert (told().loads, told().on_demand) == ({}, {"decode": OnDemand(False)})
    kept.set_state(State.LOADING, "")
    assert told().on_demand == {"decode": OnDemand(False, loading=True)}
    kept.set_state(State.UNAVAILABLE, "")
    kept.failures, kept.failure = 2, "no memory"
    assert told().on_demand == {"decode": OnDemand(False, False, 2, "no memory")}
    kept.set_state(State.READY, "")
    kept.remove(kept.seats[0].executor, "it died")
    assert standing([kept], False, 0.0) == Standing({}, {}, False), "it is being restarted"


@pytest.mark.parametrize("value", [True, False, 7, -1, 2**63, 0.5, "smollm2"])
def test_an_attribute_keeps_its_value_and_kind_where_it_has_one(value: Any) -> None:
    offer = Offer(Capability("decode", {"x": value}))
    now = Standing({"decode": offer}, {"decode": Load(0, 0, 1, 0.0)}, False)
    (message,) = (pb.Offer.parse(bytes(one)) for one in all_offers(now))
    found = offer_of(message).capability.attributes["x"]
    assert found == value
    assert type(found) is (float if value == 2**63 else type(value))


def test_an_attribute_without_a_value_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="attribute 'x' has no value"):
        offer_of(pb.Offer(name="decode", attributes={"x": pb.Attribute()}))
