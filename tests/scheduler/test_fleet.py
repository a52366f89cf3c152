from __future__ import annotations

import attrs
import pytest
from anyserve_scheduler.fleet import (
    Change,
    ChangeKind,
    Fleet,
    OfferView,
    ReplicaState,
    ReplicaView,
)
from anyserve_scheduler.persistent import PersistentMap
from hypothesis import given
from hypothesis import strategies as st

from anyserve.capability import Capability
from anyserve.load import Load


def replica(
    id: str,
    *names: str,
    loadable: tuple[str, ...] = (),
    state: ReplicaState = ReplicaState.LIVE,
) -> ReplicaView:
    offers = {
        name: OfferView(Capability(name), Load(0, 0, 4, 0.0), 64, False, loadable=name in loadable)
        for name in (*names, *loadable)
    }
    return ReplicaView(id, 1, "127.0.0.1:8001", state, offers, 0.0)


def ids(fleet: Fleet, name: str) -> list[str]:
    return [view.id for view in fleet.offering(name)]


def test_a_need_finds_offers_of_its_name_and_of_kinds_of_it_in_the_order_of_ids() -> None:
    fleet = Fleet.of([replica("c", "decode.heavy"), replica("a", "decode"), replica("b", "rank")])
    assert ids(fleet, "decode") == ["a", "c"]
    assert ids(fleet, "decode.heavy") == ["c"]
    assert ids(fleet, "decod") == []
    assert ids(fleet, "") == []


def test_two_kinds_on_one_replica_find_it_once() -> None:
    fleet = Fleet.of([replica("a", "decode.heavy", "decode.light")])
    assert ids(fleet, "decode") == ["a"]


def test_what_could_be_loaded_is_found_apart_from_what_is() -> None:
    fleet = Fleet.of([replica("a", "rank", loadable=("decode.heavy",))])
    assert ids(fleet, "decode") == []
    assert [view.id for view in fleet.loadable("decode")] == ["a"]
    assert not fleet.loadable("rank")


def test_a_draining_replica_is_in_the_fleet_but_offers_nothing() -> None:
    fleet = Fleet.of([replica("a", "decode", state=ReplicaState.DRAINING)])
    assert list(fleet.replicas) == ["a"]
    assert ids(fleet, "decode") == []


def test_a_suspect_replica_still_offers() -> None:
    fleet = Fleet.of([replica("a", "decode", state=ReplicaState.SUSPECT)])
    assert ids(fleet, "decode") == ["a"]


def test_a_snapshot_stays_as_it_is_when_the_fleet_goes_on() -> None:
    before = Fleet.of([replica("a", "decode")])
    offering = before.offering("decode")
    after = before.after(Change(2, ChangeKind.JOINED, "b", replica("b", "decode")))
    after = after.after(Change(3, ChangeKind.LEFT, "a", None))
    assert [view.id for view in offering] == ids(before, "decode") == ["a"]
    assert ids(after, "decode") == ["b"]
    assert list(after.replicas) == ["b"]


def test_a_new_load_is_seen_by_whoever_looks_by_name() -> None:
    fleet = Fleet.of([replica("a", "decode")])
    offer = fleet.replicas["a"].offers["decode"]
    busy = attrs.evolve(
        fleet.replicas["a"], offers={"decode": attrs.evolve(offer, load=Load(4, 2, 4, 0.5))}
    )
    fleet = fleet.after(Change(2, ChangeKind.REPORTED, "a", busy))
    assert fleet.offering("decode")[0].offers["decode"].load.queued == 2


def test_a_change_that_is_not_the_next_is_refused() -> None:
    fleet = Fleet.of([replica("a", "decode")])
    for version in (1, 3):
        with pytest.raises(ValueError, match="does not follow version 1"):
            fleet.after(Change(version, ChangeKind.LEFT, "a", None))


views = st.builds(
    lambda id, names, loadable, state: replica(
        id, *(names - loadable), loadable=tuple(loadable), state=state
    ),
    st.sampled_from("abcdef"),
    st.sets(st.sampled_from(["decode", "decode.heavy", "decode.heavy.long", "rank"])),
    st.sets(st.sampled_from(["decode", "decode.heavy", "rank.fast"])),
    st.sampled_from(ReplicaState),
)


@given(st.lists(views | st.sampled_from("abcdef"), max_size=30))
def test_the_index_by_name_is_what_a_scan_would_find(steps: list[ReplicaView | str]) -> None:
    fleet = Fleet()
    for version, step in enumerate(steps, 1):
        if isinstance(step, str):
            fleet = fleet.after(Change(version, ChangeKind.LEFT, step, None))
        else:
            fleet = fleet.after(Change(version, ChangeKind.CHANGED, step.id, step))
    for name in ("decode", "decode.heavy", "decode.heavy.long", "rank", "rank.fast"):
        need = Capability(name)
        for loadable, found in ((False, fleet.offering(name)), (True, fleet.loadable(name))):
            assert list(found) == [
                view
                for view in fleet.replicas.values()
                if view.state is not ReplicaState.DRAINING
                and any(
                    offer.loadable is loadable and offer.capability.satisfies(need)
                    for offer in view.offers.values()
                )
            ]


keys = st.text("abc", max_size=3)


@given(st.lists(st.tuples(keys, st.none() | st.integers()), max_size=60))
def test_a_persistent_map_is_a_dict_that_keeps_its_past(
    steps: list[tuple[str, int | None]],
) -> None:
    model: dict[str, int] = {}
    current: PersistentMap[int] = PersistentMap()
    past: list[tuple[PersistentMap[int], dict[str, int]]] = []
    for key, value in steps:
        past.append((current, model.copy()))
        if value is None:
            model.pop(key, None)
            current = current.without(key)
        else:
            model[key] = value
            current = current.with_item(key, value)
    for version, then in (*past, (current, model)):
        assert dict(version) == then
        assert list(version) == sorted(then)
        assert len(version) == len(then)


def test_a_persistent_map_finds_all_of_thousands_of_keys() -> None:
    current: PersistentMap[int] = PersistentMap()
    for number in range(5_000):
        current = current.with_item(str(number), number)
    assert len(current) == 5_000
    assert all(current[str(number)] == number for number in range(5_000))
    assert "5000" not in current
