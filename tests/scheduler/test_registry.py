from __future__ import annotations

import math

import pytest
from anyserve_scheduler.fleet import Change, ChangeKind, Fleet, OfferView, ReplicaState
from anyserve_scheduler.registration import Heard, LeaseTerms, Registration, Report
from anyserve_scheduler.registry import Limits, MemoryRegistry

from anyserve.capability import Capability
from anyserve.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)
from anyserve.load import Load

IDLE = Load(0, 0, 4, 0.0)
BUSY = Load(4, 3, 4, 0.75, 40.0)


def offer(name: str, load: Load = IDLE, *, version: str = "1", queue_limit: int = 64) -> OfferView:
    return OfferView(Capability(name, {}, version), load, queue_limit, False)


def registration(
    id: str = "a",
    *names: str,
    instance: bytes = b"first",
    epoch: int = 0,
    address: str = "127.0.0.1:8001",
    draining: bool = False,
) -> Registration:
    offers = [offer(name) for name in names or ("decode",)]
    return Registration(id, instance, address, offers, epoch, draining)


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry(LeaseTerms(lease=10.0, interval=2.0, grace=0.5))


def load_of(registry: MemoryRegistry, name: str = "decode") -> Load:
    return registry.fleet().replicas["a"].offers[name].load


def state_of(registry: MemoryRegistry, id: str = "a") -> ReplicaState | None:
    view = registry.fleet().replicas.get(id)
    return None if view is None else view.state


def pass_time(registry: MemoryRegistry, until: float) -> list[Change]:
    """Let the time be `until`, as a keeper does that looks whenever that is due."""
    changes: list[Change] = []
    while (due := registry.due()) <= until:
        changes += registry.expire(due)
    changes += registry.expire(until)
    return changes


# Registering


def test_a_registration_is_granted_an_epoch_and_told_the_terms(registry: MemoryRegistry) -> None:
    grant = registry.register(registration(), 5.0)
    assert not grant.resumed
    assert grant.terms.lease == 10.0
    view = registry.fleet().replicas["a"]
    assert (view.epoch, view.address, view.reported) == (grant.epoch, "127.0.0.1:8001", 5.0)
    assert view.state is ReplicaState.LIVE


def test_epochs_grow_over_all_replicas(registry: MemoryRegistry) -> None:
    epochs = [registry.register(registration(id), 0.0).epoch for id in "abc"]
    registry.release("a", epochs[0])
    epochs.append(registry.register(registration("a"), 0.0).epoch)
    assert epochs == sorted(set(epochs))


def test_a_registry_starts_its_epochs_where_it_is_told() -> None:
    assert MemoryRegistry(next_epoch=70).register(registration(), 0.0).epoch == 70


def test_a_replica_that_reconnects_resumes_with_its_epoch_and_says_all_anew(
    registry: MemoryRegistry,
) -> None:
    first = registry.register(registration(), 0.0)
    registry.report("a", first.epoch, Report(9, full=True, offers=[offer("decode")]), 1.0)
    again = registry.register(registration("a", "rank", epoch=first.epoch), 3.0)
    assert (again.epoch, again.resumed) == (first.epoch, True)
    assert list(registry.fleet().replicas["a"].offers) == ["rank"]
    assert registry.report("a", first.epoch, Report(1), 3.0) is Heard.APPLIED


def test_a_replica_that_never_got_its_grant_resumes_without_an_epoch(
    registry: MemoryRegistry,
) -> None:
    first = registry.register(registration(), 0.0)
    assert registry.register(registration(), 1.0).epoch == first.epoch


def test_another_process_with_the_id_of_a_live_lease_is_refused(registry: MemoryRegistry) -> None:
    grant = registry.register(registration(), 0.0)
    for epoch in (0, grant.epoch):
        with pytest.raises(AlreadyExists, match=r"another process is replica a.*10 s"):
            registry.register(registration(instance=b"second", epoch=epoch), 9.0)


@pytest.mark.parametrize("ended", ["released", "over"])
def test_another_process_gets_the_id_when_the_lease_has_ended(
    registry: MemoryRegistry, ended: str
) -> None:
    first = registry.register(registration(), 0.0)
    if ended == "released":
        assert registry.release("a", first.epoch)
    pass_time(registry, 10.0)
    second = registry.register(registration(instance=b"second"), 10.0)
    assert second.epoch > first.epoch


def test_an_epoch_that_is_over_is_refused(registry: MemoryRegistry) -> None:
    old = registry.register(registration(), 0.0).epoch
    pass_time(registry, 9.9)
    with pytest.raises(FailedPrecondition, match=f"epoch {old}; it registers anew"):
        registry.register(registration(epoch=old), 10.0)
    registry.register(registration(instance=b"second"), 10.0)
    with pytest.raises(FailedPrecondition, match=f"epoch {old}; it registers anew"):
        registry.register(registration(epoch=old), 11.0)
    with pytest.raises(FailedPrecondition):
        registry.report("a", old, Report(1), 11.0)
    assert not registry.release("a", old)


def test_a_registry_that_is_new_refuses_an_epoch_that_it_did_not_grant(
    registry: MemoryRegistry,
) -> None:
    with pytest.raises(FailedPrecondition):
        registry.register(registration(epoch=4), 0.0)


def test_a_full_registry_refuses_replicas_and_offers_and_still_lets_one_resume() -> None:
    registry = MemoryRegistry(limits=Limits(replicas=2, offers=3))
    grant = registry.register(registration("a", "x", "y"), 0.0)
    with pytest.raises(ResourceExhausted, match="may have 3 in all"):
        registry.register(registration("b", "x", "y"), 0.0)
    registry.register(registration("b", "x"), 0.0)
    with pytest.raises(ResourceExhausted, match="2 replicas"):
        registry.register(registration("c", "x"), 0.0)
    with pytest.raises(ResourceExhausted):
        registry.report("a", grant.epoch, Report(1, offers=[offer("z")]), 0.0)
    registry.report("a", grant.epoch, Report(1, offers=[offer("z")], removed=["y"]), 0.0)
    assert registry.register(registration("a", "x", "y", epoch=grant.epoch), 0.0).resumed
    registry.release("a", grant.epoch)
    registry.register(registration("c", "x", "y"), 0.0)


# Reports


def test_a_report_changes_the_load_that_it_names_and_nothing_else(
    registry: MemoryRegistry,
) -> None:
    grant = registry.register(registration("a", "decode", "rank"), 0.0)
    before = registry.fleet().replicas["a"]
    assert registry.report("a", grant.epoch, Report(1, {"rank": BUSY}), 2.0) is Heard.APPLIED
    after = registry.fleet().replicas["a"]
    assert after.offers["rank"].load == BUSY
    assert after.offers["decode"] is before.offers["decode"]
    assert after.reported == 2.0
    assert before.offers["rank"].load == IDLE


def test_offers_appear_and_vanish_and_change(registry: MemoryRegistry) -> None:
    epoch = registry.register(registration("a", "decode", "rank"), 0.0).epoch
    added = [offer("embedding"), offer("rank", version="2")]
    registry.report("a", epoch, Report(1, {"embedding": BUSY}, added, ["decode", "gone"]), 0.0)
    offers = registry.fleet().replicas["a"].offers
    assert sorted(offers) == ["embedding", "rank"]
    assert offers["rank"].capability.version == "2"
    assert offers["embedding"].load == BUSY
    assert not registry.fleet().offering("decode")
    assert len(registry.fleet().offering("embedding")) == 1


def test_a_report_that_drains_takes_the_replica_out_of_what_is_offered_until_it_says_otherwise(
    registry: MemoryRegistry,
) -> None:
    epoch = registry.register(registration(), 0.0).epoch
    registry.report("a", epoch, Report(1, draining=True), 0.0)
    assert state_of(registry) is ReplicaState.DRAINING
    assert not registry.fleet().offering("decode")
    registry.report("a", epoch, Report(2), 0.0)
    assert len(registry.fleet().offering("decode")) == 1


@pytest.mark.parametrize("sequence", [2, 1, 0, -1])
def test_a_report_that_comes_twice_or_late_says_nothing(
    registry: MemoryRegistry, sequence: int
) -> None:
    epoch = registry.register(registration(), 0.0).epoch
    registry.report("a", epoch, Report(1), 0.0)
    registry.report("a", epoch, Report(2, {"decode": BUSY}), 0.0)
    version = registry.fleet().version
    late = Report(sequence, {"decode": IDLE}, draining=True, full=True)
    assert registry.report("a", epoch, late, 2.0) is Heard.IGNORED
    assert registry.fleet().version == version
    registry.expire(2.5)
    assert state_of(registry) is ReplicaState.SUSPECT


def test_after_a_gap_only_a_full_report_is_believed(registry: MemoryRegistry) -> None:
    epoch = registry.register(registration(), 0.0).epoch
    assert registry.report("a", epoch, Report(2, {"decode": BUSY}), 0.0) is Heard.INCOMPLETE
    assert registry.report("a", epoch, Report(3, {"decode": BUSY}), 0.0) is Heard.INCOMPLETE
    assert registry.report("a", epoch, Report(1, {"decode": BUSY}), 0.0) is Heard.IGNORED
    assert load_of(registry) == IDLE
    full = Report(5, offers=[offer("rank", BUSY)], full=True)
    assert registry.report("a", epoch, full, 0.0) is Heard.APPLIED
    assert list(registry.fleet().replicas["a"].offers) == ["rank"]
    assert not registry.fleet().offering("decode")
    assert len(registry.fleet().offering("rank")) == 1
    assert registry.report("a", epoch, Report(6, {"rank": IDLE}), 0.0) is Heard.APPLIED
    assert load_of(registry, "rank") == IDLE


def test_a_report_after_a_gap_still_says_that_the_replica_lives_and_drains(
    registry: MemoryRegistry,
) -> None:
    epoch = registry.register(registration(), 0.0).epoch
    registry.expire(3.0)
    assert registry.report("a", epoch, Report(2), 3.0) is Heard.INCOMPLETE
    assert state_of(registry) is ReplicaState.LIVE
    assert registry.fleet().replicas["a"].reported == 0.0
    registry.report("a", epoch, Report(3, draining=True), 3.0)
    assert state_of(registry) is ReplicaState.DRAINING


# Leases


def test_a_silent_replica_is_suspect_after_an_interval_and_out_after_its_lease(
    registry: MemoryRegistry,
) -> None:
    registry.register(registration(), 0.0)
    assert registry.due() == 2.5
    assert not registry.expire(2.4)
    [change] = registry.expire(registry.due())
    assert change.replica is not None
    assert change.replica.state is ReplicaState.SUSPECT
    assert registry.due() == 10.0
    assert not registry.expire(9.9)
    [change] = registry.expire(registry.due())
    assert (change.kind, change.replica) == (ChangeKind.LEFT, None)
    assert registry.due() == math.inf
    assert not registry.fleet().replicas
    assert not registry.fleet().offering("decode")


def test_a_report_renews_the_lease_and_ends_the_suspicion(registry: MemoryRegistry) -> None:
    epoch = registry.register(registration(), 0.0).epoch
    pass_time(registry, 9.0)
    assert state_of(registry) is ReplicaState.SUSPECT
    registry.report("a", epoch, Report(1), 9.0)
    assert state_of(registry) is ReplicaState.LIVE
    assert registry.due() == 11.5
    pass_time(registry, 18.9)
    assert state_of(registry) is ReplicaState.SUSPECT
    registry.expire(19.0)
    assert state_of(registry) is None


def test_whoever_reports_does_not_hide_the_silence_of_another(registry: MemoryRegistry) -> None:
    epoch = registry.register(registration("a"), 0.0).epoch
    registry.register(registration("b"), 0.0)
    registry.report("a", epoch, Report(1), 2.0)
    assert [change.id for change in registry.expire(2.5)] == ["b"]
    pass_time(registry, 9.5)
    registry.report("a", epoch, Report(2), 9.5)
    assert [change.id for change in registry.expire(10.0)] == ["b"]


def test_leases_that_are_over_by_the_thousand_end_a_few_at_a_time() -> None:
    registry = MemoryRegistry()
    for number in range(5_000):
        registry.register(registration(f"replica-{number}"), number / 10_000)
    suspected = looks = 0
    while (due := registry.due()) < 10.0:
        suspected += len(registry.expire(due))
    assert suspected == 5_000
    ended: list[str] = []
    while registry.fleet().replicas:
        changes = registry.expire(max(10.5, registry.due()))
        assert 0 < len(changes) <= 300
        ended += [change.id for change in changes]
        looks += 1
    assert ended == [f"replica-{number}" for number in range(5_000)]
    assert looks == 20
    assert not registry.fleet().offering("decode")


def test_a_silent_replica_that_drains_stays_draining_until_its_lease_is_over(
    registry: MemoryRegistry,
) -> None:
    registry.register(registration(draining=True), 0.0)
    assert not pass_time(registry, 9.9)
    assert state_of(registry) is ReplicaState.DRAINING
    assert [change.kind for change in registry.expire(10.0)] == [ChangeKind.LEFT]


def test_a_report_that_comes_when_the_lease_is_over_is_refused(registry: MemoryRegistry) -> None:
    epoch = registry.register(registration(), 0.0).epoch
    pass_time(registry, 9.9)
    with pytest.raises(FailedPrecondition):
        registry.report("a", epoch, Report(1), 10.0)
    assert state_of(registry) is None


def test_a_replica_whose_link_broke_is_suspect_at_once_and_live_when_it_is_heard(
    registry: MemoryRegistry,
) -> None:
    epoch = registry.register(registration(), 0.0).epoch
    registry.suspect("a", epoch + 1)
    registry.suspect("b", epoch)
    assert state_of(registry) is ReplicaState.LIVE
    registry.suspect("a", epoch)
    assert state_of(registry) is ReplicaState.SUSPECT
    assert not pass_time(registry, 9.9)
    registry.register(registration(epoch=epoch), 9.9)
    assert state_of(registry) is ReplicaState.LIVE


def test_a_replica_that_leaves_is_gone_at_once(registry: MemoryRegistry) -> None:
    epoch = registry.register(registration(), 0.0).epoch
    assert registry.release("a", epoch)
    assert not registry.release("a", epoch)
    assert not registry.fleet().replicas
    assert not registry.expire(20.0)


def test_a_clock_that_goes_back_makes_no_lease_shorter_and_none_endless(
    registry: MemoryRegistry,
) -> None:
    registry.register(registration("a"), 100.0)
    registry.expire(102.0)
    registry.expire(3.0)
    assert state_of(registry) is ReplicaState.LIVE
    registry.register(registration("b"), 3.0)
    assert registry.due() == 3.5
    registry.expire(registry.due())
    assert state_of(registry) is ReplicaState.SUSPECT
    pass_time(registry, 10.9)
    assert state_of(registry, "a") is ReplicaState.SUSPECT
    registry.expire(11.0)
    assert state_of(registry, "a") is None
    assert state_of(registry, "b") is ReplicaState.SUSPECT
    registry.expire(13.0)
    assert state_of(registry, "b") is None


def test_a_clock_that_jumps_ahead_and_back_ends_no_lease(registry: MemoryRegistry) -> None:
    epoch = registry.register(registration(), 0.0).epoch
    assert not registry.expire(1e9)
    registry.expire(1.0)
    registry.report("a", epoch, Report(1), 1.0)
    assert state_of(registry) is ReplicaState.LIVE


@pytest.mark.parametrize("first", ["the keeper", "a report"])
def test_who_was_stopped_hears_its_replicas_before_it_ends_their_leases(
    registry: MemoryRegistry, first: str
) -> None:
    epochs = {id: registry.register(registration(id), 0.0).epoch for id in "abc"}
    pass_time(registry, 2.0)
    if first == "the keeper":
        assert not registry.expire(100.0)
    for id in "ab":
        assert registry.report(id, epochs[id], Report(1), 100.1) is Heard.APPLIED
    assert {state_of(registry, id) for id in "abc"} == {ReplicaState.LIVE}
    # The one that stays silent has an interval more than was left of its lease.
    assert registry.due() == pytest.approx(102.5, abs=0.2)
    for id in "ab":
        registry.report(id, epochs[id], Report(2), 102.0)
    changes = pass_time(registry, 104.0)
    assert [change.id for change in changes] == ["c"]
    assert state_of(registry, "c") is ReplicaState.SUSPECT


def test_who_is_stopped_again_and_again_ends_no_lease(registry: MemoryRegistry) -> None:
    epoch = registry.register(registration(), 0.0).epoch
    for stop in range(1, 6):
        assert not registry.expire(50.0 * stop)
    pass_time(registry, 256.0)
    assert state_of(registry) is ReplicaState.SUSPECT
    assert registry.report("a", epoch, Report(1), 256.0) is Heard.APPLIED


def test_a_look_that_is_a_little_late_lets_time_pass(registry: MemoryRegistry) -> None:
    registry.register(registration(), 0.0)
    assert [change.id for change in registry.expire(3.0)] == ["a"]
    assert registry.due() == 10.0


@pytest.mark.parametrize(
    "terms", [{"lease": 2.5}, {"interval": 0.0}, {"grace": -1.0}, {"interval": 10.0}]
)
def test_terms_that_no_replica_could_keep_are_refused(terms: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="longer than one interval"):
        LeaseTerms(**terms)


# Watching


def test_a_watcher_gets_the_changes_since_its_version(registry: MemoryRegistry) -> None:
    epoch = registry.register(registration(), 0.0).epoch
    registry.report("a", epoch, Report(1, {"decode": BUSY}), 1.0)
    registry.report("a", epoch, Report(2, {}, [offer("rank")]), 2.0)
    registry.expire(4.5)
    registry.release("a", epoch)
    changes = registry.since(0)
    assert not isinstance(changes, Fleet)
    assert [(change.version, change.kind) for change in changes] == [
        (1, ChangeKind.JOINED),
        (2, ChangeKind.REPORTED),
        (3, ChangeKind.CHANGED),
        (4, ChangeKind.CHANGED),
        (5, ChangeKind.LEFT),
    ]
    assert registry.since(3) == changes[3:]
    assert registry.since(5) == []


def test_a_watcher_that_is_too_far_behind_or_from_another_registry_gets_the_fleet(
    registry: MemoryRegistry,
) -> None:
    epoch = registry.register(registration(), 0.0).epoch
    for sequence in range(1, 4_100):
        registry.report("a", epoch, Report(sequence), 0.0)
    assert registry.since(0) is registry.fleet()
    assert registry.since(registry.fleet().version + 1) is registry.fleet()
    kept = registry.since(registry.fleet().version - 4_096)
    assert not isinstance(kept, Fleet)
    assert len(kept) == 4_096


# What is not believed


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (registration(""), "id"),
        (registration("a b"), "id"),
        (registration("a" * 256), "id"),
        (registration("é"), "id"),
        (registration(instance=b""), "instance"),
        (registration(instance=b"x" * 65), "instance"),
        (registration(address=""), "address"),
        (registration(address="localhost"), "address"),
        (registration(address="localhost:0"), "address"),
        (registration(address="localhost:99999"), "address"),
        (registration(address="h" * 256 + ":1"), "address"),
        (registration(epoch=-1), "epoch"),
        (registration("a", "decode", "decode"), "offers: decode is offered twice"),
        (registration("a", *(f"name{n}" for n in range(1_025))), "offers: .*more than 1024"),
    ],
)
def test_an_impossible_registration_is_refused_and_its_field_named(
    registry: MemoryRegistry, bad: Registration, field: str
) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}"):
        registry.register(bad, 0.0)
    assert registry.fleet().version == 0


IMPOSSIBLE_LOADS = [
    (Load(-1, 0, 0, 0.0), "running is -1"),
    (Load(0, -1, 0, 0.0), "queued is -1"),
    (Load(0, 0, -1, 0.0), "slots is -1"),
    (Load(0, 0, 0, -0.5), "expected_wait is -0.5"),
    (Load(0, 0, 0, math.nan), "expected_wait is nan"),
    (Load(0, 0, 0, 0.0, -math.inf), "tokens_per_second is -inf"),
    (Load(0, 0, 0, 0.0, math.nan), "tokens_per_second is nan"),
]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        *((offer("decode", load), f"load of decode: {field}") for load, field in IMPOSSIBLE_LOADS),
        (offer("decode", queue_limit=-1), "offers: decode: queue_limit is -1"),
    ],
)
def test_an_impossible_offer_is_refused_in_registrations_and_reports(
    registry: MemoryRegistry, bad: OfferView, field: str
) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}"):
        registry.register(Registration("a", b"first", "127.0.0.1:1", [bad]), 0.0)
    epoch = registry.register(registration("a", "rank"), 0.0).epoch
    fleet = registry.fleet()
    with pytest.raises(InvalidArgument, match=f"^{field}"):
        registry.report("a", epoch, Report(1, offers=[bad]), 0.0)
    assert registry.fleet() is fleet


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        *((Report(1, {"decode": load}), f"load of decode: {f}") for load, f in IMPOSSIBLE_LOADS),
        (Report(1, {"rank": BUSY}), "loads: 'rank' is not offered"),
        (Report(1, {"decode": BUSY}, removed=["decode"]), "loads: 'decode' is not offered"),
        (Report(1, {"decode": BUSY}, full=True), "loads: 'decode' is not offered"),
        (Report(1, offers=[offer(f"n{n}") for n in range(1_024)]), "offers: .*more than 1024"),
    ],
)
def test_an_impossible_report_changes_nothing_and_the_next_one_may_be_right(
    registry: MemoryRegistry, bad: Report, field: str
) -> None:
    epoch = registry.register(registration(), 0.0).epoch
    fleet = registry.fleet()
    with pytest.raises(InvalidArgument, match=f"^{field}"):
        registry.report("a", epoch, bad, 2.0)
    assert registry.fleet() is fleet
    assert registry.due() == 2.5
    assert registry.report("a", epoch, Report(1, {"decode": BUSY}), 2.0) is Heard.APPLIED


def test_a_load_that_is_larger_than_any_is_cut(registry: MemoryRegistry) -> None:
    epoch = registry.register(registration(), 0.0).epoch
    boast = Load(10**30, 10**30, 10**30, math.inf, math.inf)
    registry.report("a", epoch, Report(1, {"decode": boast}), 0.0)
    assert load_of(registry) == Load(1_000_000, 1_000_000, 1_000_000, 3_600.0, 1e9)
