"""Which capability is loaded where, and which one makes room for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from anyserve_scheduler.demand import Action, Demand, DemandTerms, Verb
from anyserve_scheduler.fleet import Fleet, OfferView, ReplicaState, ReplicaView
from hypothesis import given, settings
from hypothesis import strategies as st

from anyserve.capability import Capability
from anyserve.load import Load

TERMS = DemandTerms()
IDLE = Load(0, 0, 2, 0.0)
BUSY = Load(2, 5, 2, 3.0)
STEP = 2.0


def replica(
    id: str, offers: Mapping[str, Load | None], *, on_demand: str = "", epoch: int = 1
) -> ReplicaView:
    """A replica with these loads of what is loaded, and None for what it could load.

    on_demand: what of the loaded is.
    """
    views = {
        name: OfferView(
            Capability(name),
            load or Load(0, 0, 0, 0.0),
            8,
            False,
            loadable=load is None,
            on_demand=load is None or name in on_demand,
        )
        for name, load in offers.items()
    }
    return ReplicaView(id, epoch, f"{id}:1", ReplicaState.LIVE, views, 0.0)


def says(view: ReplicaView, name: str, **said: Any) -> ReplicaView:
    """The replica, which says this of one of its offers."""
    offer = attrs.evolve(view.offers[name], **said)
    return attrs.evolve(view, offers={**view.offers, name: offer})


def steps(demand: Demand, fleet: Fleet, begin: float, end: float) -> list[tuple[float, Action]]:
    """What is asked for while the fleet stays as it is."""
    times = [begin + n * STEP for n in range(int((end - begin) / STEP) + 1)]
    return [(now, action) for now in times for action in demand.step(fleet, now)]


def told(actions: list[Action]) -> list[tuple[str, str, str]]:
    return [(each.verb, each.replica, each.capability.name) for each in actions]


def test_nothing_is_loaded_that_nobody_wants() -> None:
    fleet = Fleet.of([replica("a", {"x": None}), replica("b", {"y": IDLE})])
    assert not steps(Demand(), fleet, 0, 500)


def test_what_is_wanted_and_unserved_is_loaded_at_once_where_least_is_going_on() -> None:
    fleet = Fleet.of([replica("a", {"x": None, "y": BUSY}), replica("b", {"x": None, "y": IDLE})])
    demand = Demand()
    demand.unserved(Capability("x"), 10.0)
    assert told(demand.step(fleet, 10.0)) == [("load", "b", "x")]


def test_it_is_not_asked_for_again_while_it_loads_and_is_after_that() -> None:
    fleet = Fleet.of([replica("a", {"x": None}), replica("b", {"x": None})])
    demand = Demand()
    asked = []
    for now in (0.0, 2.0, 28.0, 30.0):
        demand.unserved(Capability("x"), now)
        asked.append(len(demand.step(fleet, now)))
    assert asked == [1, 0, 0, 1]


def test_what_takes_long_to_load_is_asked_for_elsewhere_in_the_end() -> None:
    loading = says(replica("a", {"x": None}), "x", loading=True)
    fleet = Fleet.of([loading, replica("b", {"x": None})])
    demand = Demand()
    for now in range(int(TERMS.loading)):
        demand.unserved(Capability("x"), now)
        assert not demand.step(fleet, now)
    demand.unserved(Capability("x"), TERMS.loading)
    assert told(demand.step(fleet, TERMS.loading)) == [("load", "b", "x")]


def test_a_replica_that_loads_is_asked_for_nothing_else() -> None:
    demand = Demand()
    demand.unserved(Capability("x"), 0.0)
    busy = says(replica("a", {"x": None, "y": None}), "y", loading=True)
    assert not demand.step(Fleet.of([busy]), 0.0)


def asked_and_failed(demand: Demand) -> ReplicaView:
    """Replica a, asked for x at 0, which could not load it."""
    demand.unserved(Capability("x"), 0.0)
    a = replica("a", {"x": None, "y": None})
    assert told(demand.step(Fleet.of([a]), 0.0)) == [("load", "a", "x")]
    return says(a, "x", failures=1, failure="no memory")


def test_what_could_not_be_loaded_is_asked_for_elsewhere_at_once() -> None:
    demand = Demand()
    failed = asked_and_failed(demand)
    demand.unserved(Capability("x"), 1.0)
    asked = demand.step(Fleet.of([failed, replica("b", {"x": None})]), 1.0)
    assert told(asked) == [("load", "b", "x")]


def test_a_replica_that_failed_may_load_something_else_at_once() -> None:
    demand = Demand()
    fleet = Fleet.of([asked_and_failed(demand)])
    demand.unserved(Capability("y"), 1.0)
    assert told(demand.step(fleet, 1.0)) == [("load", "a", "y")]


def test_a_load_that_fails_is_tried_again_less_and_less_often() -> None:
    demand = Demand()
    view = replica("a", {"x": None})
    asked = []
    failures = 0
    for now in range(1500):
        demand.unserved(Capability("x"), now)
        if demand.step(Fleet.of([view]), now):
            asked.append(now)
            failures += 1
            view = says(view, "x", failures=failures, failure="no memory")
    # It is heard of a step later.
    assert asked == [0, 11, 32, 73, 154, 315, 636, 1277]


def test_of_two_replicas_the_one_that_has_not_failed_is_asked() -> None:
    demand = Demand()
    failed = says(replica("a", {"x": None}), "x", failures=1, failure="no memory")
    fleet = Fleet.of([failed, replica("b", {"x": None})])
    demand.step(fleet, 0.0)
    demand.unserved(Capability("x"), 100.0)
    assert told(demand.step(fleet, 100.0)) == [("load", "b", "x")]


def test_another_replica_is_asked_at_once_when_the_one_that_loads_falls_silent() -> None:
    demand = Demand()
    demand.unserved(Capability("x"), 0.0)
    a, b = (replica(id, {"x": None}) for id in "ab")
    assert told(demand.step(Fleet.of([a, b]), 0.0)) == [("load", "a", "x")]
    silent = attrs.evolve(says(a, "x", loading=True), state=ReplicaState.SUSPECT)
    assert told(demand.step(Fleet.of([silent, b]), 2.0)) == [("load", "b", "x")]


def test_a_want_is_forgotten_when_nobody_asks_any_more() -> None:
    demand = Demand()
    demand.unserved(Capability("x"), 0.0)
    fleet = Fleet.of([replica("a", {"x": None})])
    assert not demand.step(fleet, TERMS.wanted + 1)


def test_a_starved_capability_is_loaded_once_more_after_some_patience() -> None:
    fleet = Fleet.of([replica("a", {"x": BUSY}), replica("b", {"x": None})])
    asked = steps(Demand(), fleet, 0, 20)
    assert [(now, action.replica) for now, action in asked] == [(6.0, "b")]


def test_a_peak_that_passes_loads_nothing() -> None:
    demand = Demand()
    busy = Fleet.of([replica("a", {"x": BUSY}), replica("b", {"x": None})])
    calm = Fleet.of([replica("a", {"x": IDLE}), replica("b", {"x": None})])
    for now in range(0, 200, 4):
        assert not demand.step(busy, now)
        assert not demand.step(calm, now + 2)


def test_one_replica_that_has_a_slot_free_is_enough_for_all() -> None:
    fleet = Fleet.of([replica("a", {"x": BUSY}), replica("b", {"x": IDLE, "y": None})])
    assert not steps(Demand(), fleet, 0, 100)


def test_what_is_idle_makes_room_for_what_is_starved() -> None:
    fleet = Fleet.of(
        [
            replica("a", {"x": BUSY}),
            replica("b", {"x": None, "y": IDLE}, on_demand="y"),
            replica("c", {"y": IDLE}),
        ]
    )
    asked = steps(Demand(), fleet, 0, 100)
    assert asked[0][0] == TERMS.idle
    assert told([action for _, action in asked[:2]]) == [("unload", "b", "y"), ("load", "b", "x")]


def test_the_last_of_its_kind_stays() -> None:
    b = replica("b", {"x": None, "y": IDLE}, on_demand="y")
    assert not steps(Demand(), Fleet.of([replica("a", {"x": BUSY}), b]), 0, 500)


def test_what_a_suspect_or_draining_replica_has_counts_as_gone() -> None:
    for state in (ReplicaState.SUSPECT, ReplicaState.DRAINING):
        away = attrs.evolve(replica("c", {"y": IDLE}), state=state)
        b = replica("b", {"x": None, "y": IDLE}, on_demand="y")
        assert not steps(Demand(), Fleet.of([replica("a", {"x": BUSY}), b, away]), 0, 500)


def test_what_was_not_loaded_on_demand_is_never_unloaded() -> None:
    demand = Demand(DemandTerms(room=0))
    fleet = Fleet.of(
        [
            replica("a", {"x": BUSY}),
            replica("b", {"x": None, "y": IDLE}),
            replica("c", {"y": IDLE}),
        ]
    )
    assert not steps(demand, fleet, 0, 500)


def test_a_name_that_the_fleet_does_not_know_is_not_kept() -> None:
    demand = Demand()
    for number in range(1000):
        demand.unserved(Capability(f"x{number}"), 0.0)
    demand.step(Fleet.of([replica("a", {"y": None})]), 0.0)
    assert not demand._wanted


def test_where_nothing_is_left_to_load_nothing_is_kept() -> None:
    demand = Demand()
    demand.unserved(Capability("x"), 0.0)
    assert demand.step(Fleet.of([replica("a", {"x": None, "y": IDLE})]), 0.0)
    assert not demand.step(Fleet.of([replica("a", {"x": IDLE, "y": IDLE})]), 1.0)
    assert not demand._wanted.keys() | demand._idle.keys() | demand._starved.keys()


NAMES = ("x", "y", "z")
loads = st.sampled_from([IDLE, IDLE, BUSY])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_is_wanted_and_busy_nothing_is_unloaded_for_good_or_flaps(
    data: st.DataObject,
) -> None:
    terms = DemandTerms(starved=1.0, patience=2.0, idle=8.0, cooldown=6.0)
    demand = Demand(terms)
    loaded = {id: dict.fromkeys(NAMES, False) for id in "abcd"}
    pending: list[tuple[float, Action]] = []
    last_asked: dict[str, float] = {}
    served: set[str] = set()
    for now in [n * STEP for n in range(60)]:
        for at, action in [each for each in pending if each[0] <= now]:
            loaded[action.replica][action.capability.name] = action.verb is Verb.LOAD
            pending.remove((at, action))
        serving = {name for offers in loaded.values() for name in offers if offers[name]}
        assert served <= serving, "the last one was unloaded"
        served = serving
        for offers in loaded.values():
            assert sum(offers.values()) <= terms.room
        busy = {name: data.draw(loads) for name in NAMES}
        fleet = Fleet.of(
            replica(
                id,
                {name: busy[name] if offers[name] else None for name in NAMES},
                on_demand="xyz",
            )
            for id, offers in loaded.items()
        )
        for name in data.draw(st.sets(st.sampled_from(NAMES))) - serving:
            demand.unserved(Capability(name), now)
        actions = demand.step(fleet, now)
        for asked in {action.replica for action in actions}:
            assert now - last_asked.get(asked, -100.0) >= terms.cooldown
            last_asked[asked] = now
        delay = data.draw(st.sampled_from([0.0, STEP, 2 * STEP]))
        pending += [(now + delay, action) for action in actions]
