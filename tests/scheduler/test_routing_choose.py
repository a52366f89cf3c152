from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from random import Random

import pytest
from anyserve_scheduler.fleet import (
    Change,
    ChangeKind,
    Fleet,
    OfferView,
    ReplicaState,
    ReplicaView,
)
from anyserve_scheduler.routing import (
    LEAST_WAIT,
    POLICIES,
    POWER_OF_TWO,
    Decision,
    Hints,
    NoRoute,
    Policy,
    Router,
    Why,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from anyserve.capability import Capability, tier
from anyserve.errors import InvalidArgument, NotFound, Status
from anyserve.load import Load

DECODE = Capability("decode")
LONG = Capability("decode", {"max_context": 32_000})
HEAVY = Capability("decode.heavy", {"max_context": 32_000})
IDLE = Load(0, 0, 4, 0.0)
FULL = Load(4, 0, 4, 1.0)
"""All slots taken; the next request starts in a second."""


def offer(
    capability: Capability, load: Load, *, queue: int = 8, loadable: bool = False
) -> OfferView:
    return OfferView(capability, load, queue, False, loadable)


def replica(
    id: str,
    *offers: OfferView,
    state: ReplicaState = ReplicaState.LIVE,
    epoch: int = 1,
    reported: float = 0.0,
) -> ReplicaView:
    named = {each.capability.name: each for each in offers}
    return ReplicaView(id, epoch, f"{id}:1", state, named, reported)


def router(*replicas: ReplicaView, policy: Policy = LEAST_WAIT, seed: int = 0) -> Router:
    made = Router(policy, Random(seed))
    made.follow(Fleet.of(replicas))
    return made


def chosen(router: Router, need: Capability, hints: Hints | None = None, now: float = 0.0) -> str:
    decision = router.choose(need, hints or Hints(), now)
    assert isinstance(decision, Decision), decision
    return decision.replica


def decision(router: Router, hints: Hints | None = None, now: float = 0.0) -> Decision:
    found = router.choose(DECODE, hints or Hints(), now)
    assert isinstance(found, Decision), found
    return found


def chosen_after_send(router: Router) -> str:
    found = decision(router)
    router.sent(DECODE, Hints(), found, 0.0)
    return found.replica


def refused(router: Router, need: Capability, hints: Hints | None = None) -> NoRoute:
    decision = router.choose(need, hints or Hints(), 0.0)
    assert isinstance(decision, NoRoute), decision
    return decision


def test_the_least_wait_is_taken() -> None:
    fleet = router(
        replica("a", offer(DECODE, FULL)),
        replica("b", offer(DECODE, Load(3, 0, 4, 0.0))),
        replica("c", offer(DECODE, Load(1, 0, 4, 0.0))),
    )
    decision = fleet.choose(DECODE, Hints(), 0.0)
    assert decision == Decision("c", 1, "c:1", DECODE, 0.0, (Why.LEAST_WAIT,))


def test_of_two_that_satisfy_the_less_powerful_is_taken_even_with_a_longer_wait() -> None:
    fleet = router(replica("strong", offer(HEAVY, IDLE)), replica("weak", offer(DECODE, FULL)))
    assert chosen(fleet, DECODE) == "weak"
    assert chosen(fleet, DECODE, Hints(budget=1.0)) == "weak"
    assert chosen(fleet, Capability("decode.heavy")) == "strong"
    assert chosen(fleet, Capability("decode", {"max_context": 8_000})) == "strong"


def test_it_spills_to_a_stronger_capability_only_when_the_deadline_cannot_be_met() -> None:
    fleet = router(replica("strong", offer(HEAVY, IDLE)), replica("weak", offer(DECODE, FULL)))
    decision = fleet.choose(DECODE, Hints(budget=0.9), 0.0)
    assert isinstance(decision, Decision)
    assert (decision.replica, decision.capability) == ("strong", HEAVY)
    assert decision.reasons == (Why.LEAST_WAIT, Why.SPILLED)


def test_a_version_that_is_needed_is_found_wherever_it_is() -> None:
    one, two = Capability("decode", {}, "1"), Capability("decode", {}, "2")
    heavy = Capability("decode.heavy", {}, "2")
    fleet = router(
        replica("a", offer(one, IDLE), offer(heavy, IDLE)), replica("b", offer(two, FULL))
    )
    assert chosen(fleet, one) == "a"
    assert chosen(fleet, two) == "b"
    assert chosen(fleet, two, Hints(excluded={"b": "full"})) == "a"
    none = refused(fleet, Capability("decode", {}, "3"))
    assert none.status is Status.NOT_FOUND
    assert "version=1, not 3" in none.message
    assert "version=2, not 3" in none.message
    changed = replica("b", offer(one, IDLE), epoch=2)
    fleet.follow([Change(fleet.version + 1, ChangeKind.JOINED, "b", changed)])
    assert chosen(fleet, two) == "a"


def test_load_is_spread_over_capabilities_that_are_equally_powerful() -> None:
    fleet = router(
        replica("a", offer(Capability("decode", {"model": "a"}), IDLE)),
        replica("b", offer(Capability("decode", {"model": "b"}), IDLE)),
    )
    assert Counter(chosen_after_send(fleet) for _ in range(6)) == {"a": 3, "b": 3}
    assert chosen(fleet, Capability("decode", {"model": "b"})) == "b"


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_no_equal_replica_starves(policy: Policy) -> None:
    fleet = router(
        *(replica(f"r{index}", offer(DECODE, IDLE)) for index in range(8)), policy=policy
    )
    taken: Counter[str] = Counter()
    for number in range(800):
        now = number / 100
        found = decision(fleet, now=now)
        taken[found.replica] += 1
        fleet.ended(fleet.sent(DECODE, Hints(), found, now), now, served=True)
    assert len(taken) == 8
    assert min(taken.values()) >= 60


def test_the_least_wait_takes_equals_in_turn() -> None:
    fleet = router(*(replica(f"r{index}", offer(DECODE, IDLE)) for index in range(4)))
    taken = [chosen_after_send(fleet) for _ in range(16)]
    assert Counter(taken) == {f"r{index}": 4 for index in range(4)}


def test_old_loads_are_compared_by_two_draws() -> None:
    busy = (replica(f"r{index}", offer(DECODE, Load(2, 0, 4, 0.0))) for index in range(20))
    fleet = router(replica("idle", offer(DECODE, IDLE)), *busy, policy=Policy(fresh=1.0))
    fresh = {chosen(fleet, DECODE, now=1.0) for _ in range(50)}
    old = [decision(fleet, now=1.1) for _ in range(50)]
    assert fresh == {"idle"}
    assert len({each.replica for each in old}) > 10
    assert {each.reasons for each in old} == {(Why.TWO_CHOICES,)}


def test_two_draws_never_take_the_worst_of_three() -> None:
    fleet = router(
        replica("a", offer(DECODE, Load(3, 0, 4, 0.0))),
        replica("b", offer(DECODE, Load(1, 0, 4, 0.0))),
        replica("c", offer(DECODE, Load(2, 0, 4, 0.0))),
        policy=POWER_OF_TWO,
    )
    taken = Counter(chosen(fleet, DECODE) for _ in range(300))
    assert taken["a"] == 0
    assert taken["b"] > taken["c"] > 50


def test_the_one_replica_that_can_meet_the_deadline_is_found_among_many() -> None:
    late = (replica(f"r{index}", offer(DECODE, FULL)) for index in range(200))
    fleet = router(*late, replica("soon", offer(DECODE, IDLE)), policy=POWER_OF_TWO)
    found = [decision(fleet, Hints(budget=0.5)) for _ in range(20)]
    assert {each.replica for each in found} == {"soon"}
    assert (Why.DRAWN_IN_VAIN,) in {each.reasons for each in found}


def test_a_suspect_replica_is_for_what_no_live_one_can_take() -> None:
    fleet = router(
        replica("silent", offer(DECODE, IDLE), state=ReplicaState.SUSPECT),
        replica("live", offer(HEAVY, FULL)),
    )
    assert chosen(fleet, DECODE) == "live"
    found = decision(fleet, Hints(budget=0.5))
    assert (found.replica, found.reasons) == ("silent", (Why.LEAST_WAIT, Why.SUSPECT))


def test_what_this_scheduler_has_sent_counts_until_the_replica_reports_it() -> None:
    fleet = router(
        replica("a", offer(DECODE, IDLE)), replica("b", offer(DECODE, Load(3, 0, 8, 0.0)))
    )
    assert [chosen_after_send(fleet) for _ in range(2)] == ["a", "b"]
    assert chosen_after_send(fleet) == "a"
    fleet.follow(
        Fleet.of(
            [
                replica("a", offer(DECODE, Load(2, 0, 4, 0.0)), reported=2.0),
                replica("b", offer(DECODE, Load(7, 0, 8, 0.0)), reported=2.0),
            ]
        )
    )
    assert decision(fleet, now=2.0).expected_wait == 0.0
    assert chosen(fleet, DECODE, now=2.0) == "a"


def test_a_replica_that_reports_less_than_was_sent_to_it_is_not_believed() -> None:
    fleet = router(replica("liar", offer(DECODE, IDLE)), replica("b", offer(DECODE, IDLE)))
    for _ in range(4):
        fleet.sent(DECODE, Hints(), Decision("liar", 1, "", DECODE, 0.0, ()), 0.0)
    fleet.follow(
        Fleet.of(
            [
                replica("liar", offer(DECODE, IDLE), reported=2.0),
                replica("b", offer(DECODE, Load(2, 0, 4, 0.0)), reported=2.0),
            ]
        )
    )
    assert chosen(fleet, DECODE, now=2.0) == "b"


def test_waits_are_known_from_the_times_that_requests_took() -> None:
    fleet = router(replica("a", offer(DECODE, Load(0, 0, 1, 0.0))))
    sent = fleet.sent(DECODE, Hints(), decision(fleet), 0.0)
    fleet.ended(sent, 3.0, served=True)
    fleet.ended(sent, 9.0, served=True)
    cancelled = fleet.sent(DECODE, Hints(), decision(fleet), 3.0)
    fleet.ended(cancelled, 3.1, served=False)
    fleet.sent(DECODE, Hints(), decision(fleet), 4.0)
    assert decision(fleet).expected_wait == 3.0
    assert refused(fleet, DECODE, Hints(budget=2.0)).status is Status.RESOURCE_EXHAUSTED


def test_a_request_that_ends_after_its_replica_came_back_is_counted_once() -> None:
    fleet = router(replica("a", offer(DECODE, Load(0, 0, 2, 0.0), queue=0)))
    old = [fleet.sent(DECODE, Hints(), decision(fleet), 0.0) for _ in range(2)]
    fleet.follow(Fleet.of([]))
    assert refused(fleet, DECODE).status is Status.NOT_FOUND
    fleet.follow(Fleet.of([replica("a", offer(DECODE, Load(0, 0, 2, 0.0), queue=0), epoch=2)]))
    assert refused(fleet, DECODE).status is Status.RESOURCE_EXHAUSTED
    for each in old:
        fleet.ended(each, 1.0, served=False)
    assert decision(fleet).epoch == 2


def test_an_unknown_need_is_told_the_nearest_offers_and_why_each_fails() -> None:
    fleet = router(replica("a", offer(LONG, IDLE)), replica("b", offer(Capability("rank"), IDLE)))
    missing = refused(fleet, Capability("decode", {"max_context": 64_000, "model": "x"}))
    assert missing.status is Status.NOT_FOUND
    assert "max_context=32000, not 64000 or more" in missing.message
    assert "no model" in missing.message
    assert "decode, rank" in refused(fleet, Capability("decoder")).message
    assert isinstance(missing.error(), NotFound)
    assert "there is: nothing" in refused(router(), DECODE).message


@pytest.mark.parametrize(
    "replicas, hints, status, words",
    [
        (
            [replica("a", offer(DECODE, IDLE))],
            Hints(excluded={"a": "it drains"}),
            14,
            "a: it drains",
        ),
        (
            [replica("a", offer(DECODE, IDLE), state=ReplicaState.DRAINING)],
            Hints(),
            14,
            "all replicas that offer decode are draining",
        ),
        ([replica("a", offer(DECODE, Load(0, 0, 0, 9.0)))], Hints(), 14, "has a worker ready"),
        ([replica("a", offer(DECODE, Load(4, 8, 4, 2.0)))], Hints(), 8, "queues of all"),
        (
            [replica("a", offer(DECODE, FULL)), replica("b", offer(HEAVY, Load(4, 0, 4, 0.7)))],
            Hints(budget=0.5),
            8,
            "500 ms remain until the deadline, and the least expected wait for decode is 700 ms",
        ),
        ([replica("a", offer(DECODE, IDLE))], Hints(budget=-0.1), 8, "-100 ms remain"),
    ],
)
def test_a_refusal_says_what_is_in_the_way(
    replicas: list[ReplicaView], hints: Hints, status: int, words: str
) -> None:
    no_route = refused(router(*replicas), DECODE, hints)
    assert no_route.status == status
    assert words in no_route.message


def test_what_could_be_loaded_is_named() -> None:
    fleet = router(replica("a", offer(HEAVY, IDLE, loadable=True)))
    no_route = refused(fleet, DECODE, Hints(delegations=1))
    assert (no_route.status, no_route.loadable) == (Status.UNAVAILABLE, HEAVY)
    assert "is not loaded on any replica; it was delegated once already" in no_route.message


def test_a_message_names_few_of_many_excluded_replicas() -> None:
    fleet = router(*(replica(f"r{index}", offer(DECODE, IDLE)) for index in range(500)))
    excluded = {f"r{index}": "no" for index in range(500)}
    message = refused(fleet, DECODE, Hints(excluded=excluded)).message
    assert "and 496 more" in message
    assert len(message) < 200


def test_names_and_attributes_that_are_asked_for_leave_nothing_behind() -> None:
    fleet = router(*(replica(f"r{index}", offer(LONG, IDLE)) for index in range(4)))

    def ask(numbers: range) -> None:
        for number in numbers:
            assert chosen(fleet, Capability("decode", {"max_context": number})) == "r0"
            assert isinstance(fleet.choose(Capability(f"name-{number}"), Hints(), 0.0), NoRoute)

    tracemalloc.start()
    ask(range(1_500))
    before, _ = tracemalloc.get_traced_memory()
    ask(range(1_500, 4_000))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 50_000


def test_needs_that_make_many_pools_find_their_candidates_still() -> None:
    kinds = [Capability("decode", {"max_context": size}) for size in range(1, 400)]
    fleet = router(*(replica(f"r{kind}", offer(kind, IDLE)) for kind in kinds))
    for size in (*range(1, 400, 7), *range(1, 400, 7)):
        need = Capability("decode", {"max_context": size})
        found = fleet.choose(need, Hints(), 0.0)
        assert isinstance(found, Decision)
        assert found.capability == kinds[size - 1]


def test_a_session_key_has_a_bound() -> None:
    with pytest.raises(InvalidArgument, match="session key is 257 characters long"):
        Hints(session="x" * 257)


CAPABILITIES = (
    DECODE,
    LONG,
    Capability("decode", {"model": "a"}),
    HEAVY,
    Capability("decode.light", {"model": "a"}),
    Capability("rank"),
)
NEEDS = (
    DECODE,
    Capability("decode", {"max_context": 16_000}),
    Capability("decode", {"model": "a"}),
    Capability("decode.heavy"),
    Capability("rank"),
    Capability("gone"),
)
loads = st.builds(
    Load,
    running=st.integers(0, 4),
    queued=st.integers(0, 3),
    slots=st.integers(0, 4),
    expected_wait=st.sampled_from([0.0, 0.2, 1.0, 5.0]),
)
offers = st.builds(
    OfferView,
    capability=st.sampled_from(CAPABILITIES),
    load=loads,
    queue_limit=st.integers(0, 3),
    decoupled=st.booleans(),
    loadable=st.sampled_from([False, False, False, True]),
)
fleets = st.lists(
    st.tuples(
        st.lists(offers, max_size=3),
        st.sampled_from([*ReplicaState, ReplicaState.LIVE]),
        st.floats(0, 4),
    ),
    max_size=7,
).map(
    lambda each: [
        replica(f"r{index}", *offered, state=state, epoch=index + 1, reported=reported)
        for index, (offered, state, reported) in enumerate(each)
    ]
)
BLOCKS = tuple(bytes([number]) * 8 for number in range(8))
hints = st.builds(
    Hints,
    budget=st.sampled_from([math.inf, 3.0, 0.5, 0.0]),
    session=st.sampled_from([None, "s"]),
    blocks=st.integers(0, 8).map(lambda count: BLOCKS[:count]),
    excluded=st.sets(st.sampled_from([f"r{index}" for index in range(7)]), max_size=3).map(
        lambda ids: dict.fromkeys(sorted(ids), "no")
    ),
)
policies = st.sampled_from([*POLICIES.values(), Policy(fresh=2.0)])
requests = st.lists(st.tuples(st.sampled_from(NEEDS), hints), max_size=12)


def able(
    fleet: list[ReplicaView], need: Capability, hints: Hints, state: ReplicaState
) -> Mapping[str, OfferView]:
    """The replicas in `state` that satisfy and are not excluded, whatever their load."""
    return {
        view.id: offer
        for view in fleet
        for offer in view.offers.values()
        if view.state is state
        and view.id not in hints.excluded
        and not offer.loadable
        and offer.capability.satisfies(need)
    }


@settings(deadline=None)
@given(fleets, requests, policies, st.integers(0, 9))
def test_a_decision_keeps_the_rules_whatever_was_sent_before(
    fleet: list[ReplicaView],
    requests: list[tuple[Capability, Hints]],
    policy: Policy,
    seed: int,
) -> None:
    made = router(*fleet, policy=policy, seed=seed)
    views = {view.id: view for view in fleet}
    for need, asked in requests:
        found = made.choose(need, asked, 4.0)
        live = able(fleet, need, asked, ReplicaState.LIVE)
        suspect = able(fleet, need, asked, ReplicaState.SUSPECT)
        if isinstance(found, NoRoute):
            continue
        view = views[found.replica]
        assert (found.epoch, found.address) == (view.epoch, view.address)
        assert view.state is not ReplicaState.DRAINING
        assert found.replica in (live if view.state is ReplicaState.LIVE else suspect)
        assert found.capability.satisfies(need)
        assert not view.offers[found.capability.name].loadable
        assert found.expected_wait <= asked.budget
        assert found.expected_wait < math.inf
        made.sent(need, asked, found, 4.0)


@settings(deadline=None)
@given(fleets, st.sampled_from(NEEDS), hints, policies, st.integers(0, 9))
def test_whoever_can_meet_the_deadline_is_found_the_least_powerful_first(
    fleet: list[ReplicaView], need: Capability, asked: Hints, policy: Policy, seed: int
) -> None:
    found = router(*fleet, policy=policy, seed=seed).choose(need, asked, 4.0)

    def in_time(state: ReplicaState) -> list[Capability]:
        return [
            offer.capability
            for view in fleet
            for offer in view.offers.values()
            if view.state is state
            and view.id not in asked.excluded
            and not offer.loadable
            and offer.capability.satisfies(need)
            and offer.load.slots
            and offer.load.running + offer.load.queued < offer.load.slots + offer.queue_limit
            and offer.load.expected_wait <= asked.budget
        ]

    best = in_time(ReplicaState.LIVE) or in_time(ReplicaState.SUSPECT)
    if isinstance(found, NoRoute):
        assert best == []
    else:
        assert tier(found.capability) == min(map(tier, best))


@settings(deadline=None)
@given(fleets, requests, policies, st.integers(0, 9))
def test_decisions_are_the_same_for_the_same_seed(
    fleet: list[ReplicaView],
    requests: list[tuple[Capability, Hints]],
    policy: Policy,
    seed: int,
) -> None:
    one, other = (router(*fleet, policy=policy, seed=seed) for _ in range(2))
    for need, asked in requests:
        found = one.choose(need, asked, 4.0)
        assert other.choose(need, asked, 4.0) == found
        if isinstance(found, Decision):
            one.sent(need, asked, found, 4.0)
            other.sent(need, asked, found, 4.0)
