from __future__ import annotations

import math
from collections import Counter

import attrs
from anyserve_scheduler.fleet import (
    Change,
    ChangeKind,
    Fleet,
    Load,
    OfferView,
    ReplicaState,
    ReplicaView,
)
from anyserve_scheduler.routing.candidates import Candidates
from anyserve_scheduler.routing.inflight import InFlight, Key, estimate
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from anyserve.capability import Capability, tier

OFFERS = (
    Capability("decode"),
    Capability("decode", {"model": "a"}),
    Capability("decode", {"model": "b"}),
    Capability("decode", {"max_context": 8192}),
    Capability("decode.heavy", {"model": "a"}),
    Capability("decode.light"),
    Capability("rank"),
)
NEEDS = (
    Capability("decode"),
    Capability("decode", {"model": "a"}),
    Capability("decode", {"max_context": 4096}),
    Capability("decode.heavy"),
    Capability("rank"),
)
ALL = ("r1", "r2", "r3")
IDS = st.sampled_from(ALL)

loads = st.builds(
    Load,
    running=st.integers(0, 4),
    queued=st.integers(0, 4),
    slots=st.integers(0, 4),
    expected_wait=st.sampled_from([0.0, 0.5, 2.0]),
)
offers = st.lists(
    st.builds(
        OfferView,
        capability=st.sampled_from(OFFERS),
        load=loads,
        queue_limit=st.integers(0, 4),
        decoupled=st.booleans(),
        loadable=st.integers(0, 4).map(lambda each: each == 0),
    ),
    min_size=1,
    max_size=3,
).map(lambda views: {view.capability.name: view for view in views})


class FollowsTheFleet(RuleBasedStateMachine):
    """Candidates against a fleet that is looked through whole each time."""

    def __init__(self) -> None:
        super().__init__()
        self.candidates = Candidates()
        self.fleet = Fleet()
        self.late = False
        """Whether changes were missed, so that the fleet has to be taken whole."""
        self.now = 0.0
        self.epoch = 0
        self.open: Counter[Key] = Counter()
        self.since: Counter[Key] = Counter()

    def happen(self, kind: ChangeKind, id: str, view: ReplicaView | None) -> None:
        change = Change(self.fleet.version + 1, kind, id, view)
        self.fleet = self.fleet.after(change)
        if not self.late:
            self.candidates.apply(change)

    def reported(self, id: str) -> None:
        for key in [key for key in self.since if key[0] == id]:
            del self.since[key]

    @initialize(each=st.lists(offers, min_size=len(ALL), max_size=len(ALL)))
    def begin(self, each: list[dict[str, OfferView]]) -> None:
        for id, offers in zip(ALL, each, strict=True):
            self.join(id, offers, ReplicaState.LIVE)

    @rule(id=IDS, offers=offers, state=st.sampled_from(ReplicaState))
    def join(self, id: str, offers: dict[str, OfferView], state: ReplicaState) -> None:
        self.epoch += 1
        self.now += 1
        self.reported(id)
        view = ReplicaView(id, self.epoch, "host:1", state, offers, self.now)
        self.happen(ChangeKind.JOINED, id, view)

    @rule(id=IDS, offers=offers, state=st.sampled_from(ReplicaState), heard=st.booleans())
    def change(
        self, id: str, offers: dict[str, OfferView], state: ReplicaState, heard: bool
    ) -> None:
        view = self.fleet.replicas.get(id)
        if view is None:
            return
        if heard:
            self.now += 1
            self.reported(id)
            new = attrs.evolve(view, offers=offers, state=state, reported=self.now)
        else:
            new = attrs.evolve(view, state=state)
        self.happen(ChangeKind.CHANGED, id, new)

    @rule(id=IDS, load=loads)
    def report(self, id: str, load: Load) -> None:
        view = self.fleet.replicas.get(id)
        if view is None:
            return
        self.now += 1
        self.reported(id)
        offers = {name: attrs.evolve(offer, load=load) for name, offer in view.offers.items()}
        self.happen(ChangeKind.REPORTED, id, attrs.evolve(view, offers=offers, reported=self.now))

    @rule(id=IDS)
    def leave(self, id: str) -> None:
        if id in self.fleet.replicas:
            self.reported(id)
            self.happen(ChangeKind.LEFT, id, None)

    @rule(data=st.data(), count=st.integers(1, 4))
    def send(self, data: st.DataObject, count: int) -> None:
        offered = [(view.id, name) for view in self.fleet.replicas.values() for name in view.offers]
        key = data.draw(st.sampled_from([*offered, ("r1", "decode")]))
        for _ in range(count):
            self.candidates.sent(key)
        self.open[key] += count
        self.since[key] += count

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        busy = sorted(key for key, count in self.open.items() if count)
        if busy:
            key = data.draw(st.sampled_from(busy))
            self.candidates.ended(key, None)
            self.open[key] -= 1
            self.since[key] -= 1

    def expected(self, key: Key, offer: OfferView) -> tuple[float, float]:
        sent = InFlight(self.open[key], self.since[key])
        found = estimate(offer.load, offer.queue_limit, sent)
        return found.wait, found.pressure

    @invariant()
    def pools_hold_what_satisfies_by_power(self) -> None:
        if self.late:
            return
        for need in NEEDS:
            tiers: dict[tuple[object, ...], set[Key]] = {}
            for view in self.fleet.replicas.values():
                for name, offer in view.offers.items():
                    live = view.state is ReplicaState.LIVE and not offer.loadable
                    if live and offer.capability.satisfies(need):
                        tiers.setdefault(tier(offer.capability), set()).add((view.id, name))
            pools = self.candidates.live.matched(need)
            found = [{each.key for each in pool.members} for pool in pools]
            assert found == [tiers[power] for power in sorted(tiers)]

    @invariant()
    def every_candidate_is_in_the_index_for_its_state(self) -> None:
        if self.late:
            return
        counts = Counter[str]()
        for view in self.fleet.replicas.values():
            for offer in view.offers.values():
                state = "loadable" if offer.loadable else view.state.value
                counts[view.state.value if view.state is ReplicaState.DRAINING else state] += 1
        for name in ("live", "suspect", "draining", "loadable"):
            index = getattr(self.candidates, name)
            members = {
                member.key
                for root in ("decode", "rank")
                for pool in index.matched(Capability(root))
                for member in pool.members
            }
            assert len(members) == counts[name]


class FallsBehind(FollowsTheFleet):
    """Changes may be missed, and the fleet taken whole later."""

    @rule()
    def fall_behind(self) -> None:
        self.late = True

    @rule()
    def catch_up(self) -> None:
        self.candidates.replace(self.fleet)
        self.late = False


class KnowsTheLoad(FollowsTheFleet):
    """No change is missed, so that it is known what was sent after each report."""

    @invariant()
    def the_least_is_the_least_of_all(self) -> None:
        for need in NEEDS:
            for pool in self.candidates.live.matched(need):
                ranks = {
                    member.key: self.expected(
                        member.key, self.fleet.replicas[member.key[0]].offers[member.key[1]]
                    )
                    for member in pool.members
                }
                for excluded in ((), ("r1",), ALL):
                    allowed = {key: rank for key, rank in ranks.items() if key[0] not in excluded}
                    least = pool.least(excluded)
                    if least is None:
                        assert not allowed
                    else:
                        assert allowed[least.key] == min(allowed.values())
                assert [(each.wait, each.pressure) for each in pool] == sorted(ranks.values())

    @invariant()
    def the_mean_is_of_all_members(self) -> None:
        for need in NEEDS:
            for pool in self.candidates.live.matched(need):
                requests = sum(member.requests for member in pool.members)
                slots = sum(member.offer.load.slots for member in pool.members)
                assert pool.slots == slots
                assert math.isclose(pool.mean, requests / slots if slots else 0.0)


TestFallsBehind = FallsBehind.TestCase
TestFallsBehind.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestKnowsTheLoad = KnowsTheLoad.TestCase
TestKnowsTheLoad.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def replica(id: str, capability: Capability) -> ReplicaView:
    offer = OfferView(capability, Load(0, 0, 4, 0.0), 4, False)
    return ReplicaView(id, 1, "host:1", ReplicaState.LIVE, {capability.name: offer}, 0.0)


@given(st.permutations([f"r{number}" for number in range(7)]))
def test_a_pool_keeps_its_members_when_others_leave_in_any_order(order: list[str]) -> None:
    candidates = Candidates()
    candidates.replace(Fleet.of(replica(id, OFFERS[0]) for id in sorted(order)))
    (pool,) = candidates.live.matched(NEEDS[0])
    for gone in range(1, len(order)):
        candidates.apply(Change(gone, ChangeKind.LEFT, order[gone - 1], None))
        assert {each.key[0] for each in pool.members} == set(order[gone:])
        least = pool.least(())
        assert least is not None
        assert least.key[0] in order[gone:]


def test_a_kind_is_in_no_more_pools_than_are_kept() -> None:
    names = [f"a{number}" for number in range(10)]
    whole = Capability("decode", dict.fromkeys(names, 1))
    parts = [Capability("decode", {**whole.attributes, name: 0}) for name in names]
    candidates = Candidates()
    candidates.replace(
        Fleet.of(replica(f"r{index}", each) for index, each in enumerate([whole, *parts]))
    )
    kind = None
    for number in range(1 << len(names)):
        some = {name: 1 for bit, name in enumerate(names) if number >> bit & 1}
        (pool,) = candidates.live.matched(Capability("decode", some))
        assert len(pool.members) == 1 + len(names) - len(some)
        kind = pool.kinds[0]
    assert kind is not None
    assert len(kind.pools) == 256
