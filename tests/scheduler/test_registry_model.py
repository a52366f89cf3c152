"""Any order of what replicas, links and clocks do, beside a model that is a scan over a dict."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import hypothesis.strategies as st
from anyserve_scheduler.fleet import Fleet, OfferView, ReplicaState
from anyserve_scheduler.registration import Heard, LeaseTerms, Registration, Report
from anyserve_scheduler.registry import MemoryRegistry
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from anyserve.capability import Capability
from anyserve.errors import AlreadyExists, AnyServeError, FailedPrecondition, InvalidArgument
from anyserve.load import Load

TERMS = LeaseTerms(lease=10.0, interval=2.0, grace=0.5)
IDS = ("a", "b", "c")
NAMES = ("decode", "decode.heavy", "rank")

ids = st.sampled_from(IDS)
instances = st.sampled_from([b"first", b"second"])
offers = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3), max_size=3)
"""How many requests run, by what is offered."""
picks = st.integers(0, 2)
steps = st.integers(1, 5).map(lambda quarters: quarters / 4)
"""Seconds that a float holds exactly."""


def offer_views(running: dict[str, int]) -> list[OfferView]:
    return [OfferView(Capability(name), load(n), 8, False) for name, n in running.items()]


def load(running: int) -> Load:
    return Load(running, 0, 4, 0.0)


@attrs.define
class Replica:
    """What the model knows of one that holds a lease, or did."""

    instance: bytes
    epoch: int
    heard: float
    offers: dict[str, int]
    draining: bool
    lost: bool = False
    sequence: int = 0
    complete: bool = True


class RegistryBesideItsModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.registry = MemoryRegistry(TERMS)
        self.now = 1_000.0
        self.looked = self.now
        """What the clock showed at the last look."""
        self.time = 0.0
        """Seconds that the leases had run for then."""
        self.runs_from = self.now
        """When they run on, on the clock."""
        self.model: dict[str, Replica] = {}
        self.granted: list[int] = []
        self.watched = self.registry.fleet()

    def live(self, id: str) -> Replica | None:
        replica = self.model.get(id)
        over = replica is not None and self.time - replica.heard >= TERMS.lease
        return None if over else replica

    def any_live(self, pick: int) -> str:
        """One that holds a lease, where there is one; one that did, else."""
        found = [id for id in self.model if self.live(id)] or list(self.model)
        return found[pick % len(found)]

    def refusal(self, action: Callable[[], object]) -> type[AnyServeError] | None:
        """The class of what `action` raises, which looks at the clock first."""
        self.look()
        try:
            action()
        except AnyServeError as error:
            return type(error)
        return None

    # Time

    def look(self) -> None:
        """Let the leases run on, or stand still where the clock went back or the look is late."""
        self.runs_from -= max(0.0, self.looked - self.now)
        self.looked = self.now
        passed = max(0.0, self.now - self.runs_from)
        due = max(self.time, min((self.due(r) for r in self.lives()), default=math.inf))
        if self.time + passed - due > 0.5:
            self.runs_from = self.now + TERMS.interval
        else:
            self.time += passed
            self.runs_from = max(self.runs_from, self.now)

    def lives(self) -> list[Replica]:
        return [replica for id in self.model if (replica := self.live(id))]

    def due(self, replica: Replica) -> float:
        suspicion = replica.heard + TERMS.suspicion
        return suspicion if suspicion > self.time else replica.heard + TERMS.lease

    @rule(seconds=steps, noticed=st.booleans())
    def time_passes(self, seconds: float, noticed: bool) -> None:
        self.now += seconds
        if noticed:
            self.expiry()

    @rule(seconds=st.sampled_from([-900.0, -5.0, -0.25, 3.0, 1_000.0]))
    def the_clock_jumps(self, seconds: float) -> None:
        self.expiry()
        self.now += seconds
        self.expiry()

    def expiry(self) -> None:
        version = self.registry.fleet().version
        self.look()
        changes = self.registry.expire(self.now)
        assert changes == self.registry.since(version)

    @rule()
    def expiry_when_it_is_due(self) -> None:
        self.expiry()
        due = self.registry.due()
        if self.lives():
            assert due > self.now
            self.now = due
            version = self.registry.fleet().version
            self.expiry()
            lost = [r for r in self.model.values() if r.lost or r.draining]
            assert self.registry.fleet().version > version or lost

    # What replicas do

    @precondition(lambda self: self.model)
    @rule(pick=picks, added=st.just({}) | offers, removed=st.sets(st.sampled_from(NAMES)))
    def next_report(self, pick: int, added: dict[str, int], removed: set[str]) -> None:
        self.any_report(pick, 1, "known", added, removed, False, False)

    @rule(id=ids, instance=instances, offers=offers, draining=st.booleans())
    def register(self, id: str, instance: bytes, offers: dict[str, int], draining: bool) -> None:
        self.attempt(id, instance, offers, draining, 0)

    @precondition(lambda self: self.model)
    @rule(pick=picks, offers=offers, draining=st.booleans(), back=st.sampled_from([0, 0, 1, 2]))
    def reconnect(self, pick: int, offers: dict[str, int], draining: bool, back: int) -> None:
        """back: how many epochs ago it was that the replica remembers."""
        id = self.any_live(pick)
        replica = self.model[id]
        epoch = replica.epoch if back == 0 else self.granted[-min(back, len(self.granted))]
        self.attempt(id, replica.instance, offers, draining, epoch)

    def attempt(
        self, id: str, instance: bytes, offers: dict[str, int], draining: bool, epoch: int
    ) -> None:
        registration = Registration(
            id, instance, "127.0.0.1:1", offer_views(offers), epoch, draining
        )
        refused = self.refusal(lambda: self.registry.register(registration, self.now))
        replica = self.live(id)
        if epoch and (replica is None or epoch != replica.epoch):
            assert refused is FailedPrecondition
        elif replica is not None and instance != replica.instance:
            assert refused is AlreadyExists
        else:
            assert refused is None
            granted = self.registry.fleet().replicas[id].epoch
            if replica is None:
                assert all(granted > earlier for earlier in self.granted)
                self.granted.append(granted)
            else:
                assert granted == replica.epoch
            self.model[id] = Replica(instance, granted, self.time, dict(offers), draining)

    @precondition(lambda self: self.model)
    @rule(
        pick=picks,
        step=st.sampled_from([1, 0, -1, 2]),
        loads=st.sampled_from(["none", "known", "unknown"]),
        added=st.just({}) | offers,
        removed=st.sets(st.sampled_from(NAMES), max_size=1),
        draining=st.booleans(),
        full=st.booleans(),
    )
    def any_report(
        self,
        pick: int,
        step: int,
        loads: str,
        added: dict[str, int],
        removed: set[str],
        draining: bool,
        full: bool,
    ) -> None:
        """step: how far the sequence goes on; 1 for a report that follows on the last.

        loads: whose the report has.
        """
        id = self.any_live(pick)
        replica = self.model[id]
        kept = {} if full else {n: r for n, r in replica.offers.items() if n not in removed}
        known = kept | added
        running = {"none": {}, "known": dict.fromkeys(known, 4), "unknown": {"gone": 4}}[loads]
        sequence = replica.sequence + step
        report = Report(
            sequence,
            {name: load(n) for name, n in running.items()},
            offer_views(added),
            sorted(removed),
            draining,
            full,
        )
        heard: list[Heard] = []
        refused = self.refusal(
            lambda: heard.append(self.registry.report(id, replica.epoch, report, self.now))
        )
        if self.live(id) is None:
            assert refused is FailedPrecondition
            return
        if step < 1:
            assert heard == [Heard.IGNORED]
            return
        applied = full or (step == 1 and replica.complete)
        if applied and not running.keys() <= known.keys():
            assert refused is InvalidArgument
            return
        assert heard == [Heard.APPLIED if applied else Heard.INCOMPLETE]
        replica.sequence, replica.complete = sequence, applied
        replica.heard, replica.lost, replica.draining = self.time, False, draining
        if applied:
            replica.offers = known | running

    @rule(id=ids)
    def the_link_breaks(self, id: str) -> None:
        if id in self.model:
            self.registry.suspect(id, self.model[id].epoch)
            self.model[id].lost = True

    @rule(id=ids)
    def leave(self, id: str) -> None:
        if id in self.model:
            self.registry.release(id, self.model.pop(id).epoch)

    # What holds

    @rule()
    def a_watcher_looks(self) -> None:
        changes = self.registry.since(self.watched.version)
        assert not isinstance(changes, Fleet)
        for change in changes:
            self.watched = self.watched.after(change)
        fleet = self.registry.fleet()
        assert self.watched == fleet
        for name in NAMES:
            assert list(self.watched.offering(name)) == list(fleet.offering(name))

    @invariant()
    def the_fleet_is_what_the_model_says(self) -> None:
        fleet = self.registry.fleet()
        lives = {id: replica for id in sorted(self.model) if (replica := self.live(id))}
        assert list(fleet.replicas) == list(lives)
        for id, replica in lives.items():
            view = fleet.replicas[id]
            assert view.epoch == replica.epoch
            assert view.state is self.state(replica)
            running = {name: offer.load.running for name, offer in view.offers.items()}
            assert running == replica.offers
        for name in NAMES:
            assert [view.id for view in fleet.offering(name)] == [
                id
                for id, replica in lives.items()
                if not replica.draining
                and any(Capability(o).satisfies(Capability(name)) for o in replica.offers)
            ]

    def state(self, replica: Replica) -> ReplicaState:
        if replica.draining:
            return ReplicaState.DRAINING
        silent = self.time - replica.heard >= TERMS.suspicion
        return ReplicaState.SUSPECT if silent or replica.lost else ReplicaState.LIVE


RegistryBesideItsModel.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None
)
TestRegistryBesideItsModel = RegistryBesideItsModel.TestCase
