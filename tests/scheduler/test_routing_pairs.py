"""Pairs as routing sees them: two halves of one model, by load, prefix and session, or none."""

from __future__ import annotations

import math
from random import Random

from anyserve_scheduler.fleet import Change, ChangeKind, Fleet, OfferView, ReplicaState, ReplicaView
from anyserve_scheduler.routing import POLICIES, PREFIX, Decision, Hints, NoRoute, Policy, Router
from anyserve_scheduler.routing.pairing import prefill_need
from hypothesis import given
from hypothesis import strategies as st

from anyserve.capability import Capability
from anyserve.errors import Status
from anyserve.load import Load

DECODE = Capability("decode")
IDLE = Load(0, 0, 4, 0.0)
BUSY = Load(4, 0, 4, 1.0)
FULL = Load(4, 8, 4, 1.0)
BLOCKS = (b"1", b"2", b"3", b"4")


def prefill(model: str = "m") -> Capability:
    where = {"bootstrap_host": "h", "bootstrap_port": 1}
    return Capability("prefill", {"disaggregation": "prefill", "model": model, **where})


def half(model: str = "m") -> Capability:
    return Capability("decode", {"disaggregation": "decode", "model": model})


def plain(model: str = "m") -> Capability:
    return Capability("decode", {"model": model})


def replica(
    id: str,
    *offered: Capability,
    load: Load = IDLE,
    state: ReplicaState = ReplicaState.LIVE,
) -> ReplicaView:
    offers = {each.name: OfferView(each, load, 8, True) for each in offered}
    return ReplicaView(id, 1, f"{id}:1", state, offers, 0.0)


def router(*replicas: ReplicaView, policy: Policy = PREFIX) -> Router:
    made = Router(policy, Random(0))
    made.follow(Fleet.of(replicas))
    return made


def names(found: Decision | NoRoute) -> tuple[str, str]:
    """The decode half and the prefill half; the second is empty where there is none."""
    assert isinstance(found, Decision), found
    return found.replica, found.prefill.replica if found.prefill is not None else ""


def test_a_pair_is_preferred_while_it_is_free() -> None:
    fleet = router(replica("d", half()), replica("p", prefill()), replica("x", plain()))
    assert names(fleet.choose(DECODE, Hints(), 0.0)) == ("d", "p")


def test_a_plain_replica_that_begins_sooner_is_taken_instead() -> None:
    parts = replica("d", half()), replica("x", plain())
    fleet = router(*parts, replica("p", prefill(), load=BUSY))
    assert names(fleet.choose(DECODE, Hints(), 0.0)) == ("x", "")
    alone = router(replica("d", half()), replica("p", prefill(), load=BUSY))
    found = alone.choose(DECODE, Hints(), 0.0)
    assert names(found) == ("d", "p")
    assert isinstance(found, Decision)
    assert found.expected_wait > 0


def test_a_half_without_its_other_is_no_route_and_says_so() -> None:
    for parts in ((half(),), (half("other"), prefill()), (prefill(),)):
        fleet = router(*(replica(str(n), each) for n, each in enumerate(parts)))
        found = fleet.choose(DECODE, Hints(), 0.0)
        assert isinstance(found, NoRoute)
        if half() in parts or half("other") in parts:
            assert found.status is Status.UNAVAILABLE
            assert "served by pairs, and none can take it" in found.message


def test_nobody_gets_a_half_by_asking_for_it() -> None:
    fleet = router(replica("d", half()), replica("p", prefill()))
    found = fleet.choose(Capability("prefill"), Hints(), 0.0)
    assert isinstance(found, NoRoute)
    assert "pairs" in found.message


def test_the_halves_are_of_the_model_that_is_asked_for() -> None:
    fleet = router(
        replica("da", half("a")),
        replica("db", half("b")),
        replica("pa", prefill("a")),
        replica("pb", prefill("b")),
    )
    for model in ("a", "b"):
        found = fleet.choose(plain(model), Hints(), 0.0)
        assert names(found) == (f"d{model}", f"p{model}")
    assert isinstance(fleet.choose(plain("c"), Hints(), 0.0), NoRoute)


def test_the_prefill_half_is_where_the_prompt_is_cached() -> None:
    fleet = router(
        *(replica(f"d{n}", half()) for n in range(3)),
        *(replica(f"p{n}", prefill()) for n in range(8)),
    )
    first = fleet.choose(DECODE, Hints(blocks=BLOCKS), 0.0)
    assert isinstance(first, Decision)
    fleet.ended(fleet.sent(DECODE, Hints(blocks=BLOCKS), first, 0.0), 0.0, served=True)
    for _ in range(8):
        again = fleet.choose(DECODE, Hints(blocks=BLOCKS), 0.0)
        assert names(again)[1] == names(first)[1]


def test_both_halves_count_what_they_were_sent_until_it_ends() -> None:
    fleet = router(
        *(replica(f"d{n}", half()) for n in range(2)),
        *(replica(f"p{n}", prefill()) for n in range(2)),
    )
    first = fleet.choose(DECODE, Hints(), 0.0)
    assert isinstance(first, Decision)
    sent = fleet.sent(DECODE, Hints(), first, 0.0)
    second = fleet.choose(DECODE, Hints(), 0.0)
    assert {*names(first), *names(second)} == {"d0", "d1", "p0", "p1"}
    assert sent.prefill is not None
    assert isinstance(second, Decision)
    fleet.sent(DECODE, Hints(), second, 0.0)
    fleet.ended(sent, 1.0, served=True)
    assert sent.prefill.ended
    assert names(fleet.choose(DECODE, Hints(), 0.0)) == names(first)


def test_a_prefill_half_that_has_ended_may_take_the_next_prompt() -> None:
    fleet = router(replica("d", half()), *(replica(f"p{n}", prefill()) for n in range(2)))
    first = fleet.choose(DECODE, Hints(), 0.0)
    assert isinstance(first, Decision)
    sent = fleet.sent(DECODE, Hints(), first, 0.0)
    assert sent.prefill is not None
    busy = [fleet.choose(DECODE, Hints(), 0.0)]
    fleet.ended(sent.prefill, 0.1, served=True)
    fleet.ended(sent.prefill, 0.1, served=True)
    assert isinstance(busy[0], Decision)
    fleet.sent(DECODE, Hints(), busy[0], 0.1)
    assert names(fleet.choose(DECODE, Hints(), 0.1))[1] == names(first)[1]


def test_an_offer_that_becomes_a_half_is_one_from_then_on() -> None:
    fleet = router(replica("d", plain()), replica("p", prefill()))
    assert names(fleet.choose(DECODE, Hints(), 0.0)) == ("d", "")
    fleet.follow([Change(fleet.version + 1, ChangeKind.CHANGED, "d", replica("d", half()))])
    assert names(fleet.choose(DECODE, Hints(), 0.0)) == ("d", "p")
    fleet.follow([Change(fleet.version + 1, ChangeKind.LEFT, "p", None)])
    assert isinstance(fleet.choose(DECODE, Hints(), 0.0), NoRoute)


def test_the_reasons_are_told_in_words() -> None:
    fleet = router(replica("d", half()), replica("p", prefill()), replica("x", plain()))
    told = fleet.explain(DECODE, Hints(), 0.0)
    assert "its prompt goes to p" in told.words()
    assert told.to_json()["outcome"]["prefill"] == "p"
    assert {each.replica: each.verdict for each in told.considered} == {
        "d": "taken",
        "x": "a pair takes it at once, or sooner",
    }
    without = router(replica("d", half()), replica("x", plain())).explain(DECODE, Hints(), 0.0)
    assert any("half of a pair" in each.verdict for each in without.considered)


OFFERS = st.sampled_from([plain("a"), half("a"), half("b"), prefill("a"), prefill("b")])
REPLICAS = st.lists(
    st.tuples(
        st.lists(OFFERS, min_size=1, max_size=2),
        st.sampled_from([IDLE, BUSY, FULL]),
        st.sampled_from([ReplicaState.LIVE, ReplicaState.SUSPECT, ReplicaState.DRAINING]),
    ),
    max_size=8,
)


@given(
    REPLICAS,
    st.sampled_from([DECODE, plain("a"), plain("b"), half("a"), prefill("a"), Capability("other")]),
    st.sampled_from([0.1, math.inf]),
    st.sets(st.integers(0, 7).map(str)),
    st.sampled_from(sorted(POLICIES)),
)
def test_whatever_the_fleet_a_request_goes_to_two_halves_or_to_a_whole(
    drawn: list[tuple[list[Capability], Load, ReplicaState]],
    need: Capability,
    budget: float,
    excluded: set[str],
    policy: str,
) -> None:
    views = {
        str(n): replica(str(n), *offered, load=load, state=state)
        for n, (offered, load, state) in enumerate(drawn)
    }
    fleet = router(*views.values(), policy=POLICIES[policy])
    hints = Hints(budget, "s", BLOCKS, dict.fromkeys(excluded, "the test says so"))
    fleet.explain(need, hints, 0.0).words()
    found = fleet.choose(need, hints, 0.0)
    halves = [found] if isinstance(found, Decision) else []
    if isinstance(found, Decision) and found.prefill is not None:
        halves.append(found.prefill)
        assert found.prefill.capability.satisfies(
            prefill_need(str(found.capability.attributes["model"]))
        )
        assert found.capability.attributes["disaggregation"] == "decode"
        assert found.prefill.expected_wait <= found.expected_wait
    elif isinstance(found, Decision):
        assert "disaggregation" not in found.capability.attributes
    for each in halves:
        view = views[each.replica]
        assert each.replica not in excluded
        assert view.state is not ReplicaState.DRAINING
        assert view.offers[each.capability.name].capability == each.capability
        assert each.expected_wait <= budget
    if isinstance(found, Decision):
        assert found.capability.satisfies(need)
        sent = fleet.sent(need, hints, found, 0.0)
        fleet.ended(sent, 1.0, served=True)
        assert sent.prefill is None or sent.prefill.ended
        return
    able = [
        each.capability
        for view in views.values()
        for each in view.offers.values()
        if view.id not in excluded and view.state is not ReplicaState.DRAINING and each.load == IDLE
    ]
    for each in able:
        if "disaggregation" not in each.attributes:
            assert not each.satisfies(need)
        elif each.satisfies(need) and each.name == "decode":
            model = each.attributes["model"]
            assert not any(other == prefill(str(model)) for other in able)
