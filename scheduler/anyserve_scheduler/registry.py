"""The registry: which replicas there are, what they offer, and how they do.

Pure: it takes the time as an argument and does nothing by itself. Whoever owns it calls `expire`
when it is due, and lets its watchers know when the fleet's version has grown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from anyserve.errors import AlreadyExists, FailedPrecondition, ResourceExhausted
from anyserve_scheduler.changes import History
from anyserve_scheduler.checks import changed_offers, check_registration, checked_offers
from anyserve_scheduler.fleet import Change, ChangeKind, Fleet, ReplicaState, ReplicaView
from anyserve_scheduler.leases import NOBODY, Leases
from anyserve_scheduler.registration import Grant, Heard, LeaseTerms, Registration, Report


class Registry(Protocol):
    """Who offers what, with leases and versions. Times are seconds on the caller's clock."""

    def register(self, registration: Registration, now: float) -> Grant:
        """Give a replica a lease, or let the one that it holds go on with all that is said now.

        Raises `InvalidArgument` for what can't be, `FailedPrecondition` for an epoch that is over
        (the replica registers anew, without one), `AlreadyExists` while another process holds the
        id, and `ResourceExhausted` when there are too many replicas or offers.
        """
        ...

    def report(self, id: str, epoch: int, report: Report, now: float) -> Heard:
        """Take in what a replica says of itself; it lives.

        Raises as `register` does. After an error nothing has changed.
        """
        ...

    def suspect(self, id: str, epoch: int) -> None:
        """A replica's link broke: it is suspect until it is heard again. Its lease runs on.

        Nothing happens where it holds no lease of `epoch`.
        """
        ...

    def release(self, id: str, epoch: int) -> bool:
        """A replica leaves; False where it holds no lease of `epoch`."""
        ...

    def expire(self, now: float) -> Sequence[Change]:
        """Suspect who is silent and end the leases that are over; what that changes.

        Of very many some at a time. Where it is called late, nobody could be heard, and the leases
        stand still (see `Leases`). `register` and `report` do the same first: watchers follow
        `since`.
        """
        ...

    def due(self) -> float:
        """When `expire` has something to do, if nothing is heard before; inf for never."""
        ...

    def fleet(self) -> Fleet:
        """The fleet as it is now, at no cost."""
        ...

    def since(self, version: int) -> Sequence[Change] | Fleet:
        """The changes after `version`, or the fleet where they are too many to be kept."""
        ...


@attrs.frozen
class Limits:
    """How much one registry holds."""

    replicas: int = 10_000
    offers: int = 100_000
    """Of all replicas."""


@attrs.define
class _Record:
    """What the registry knows of a replica besides its view."""

    view: ReplicaView
    instance: bytes
    sequence: int = 0
    """The newest report's."""
    complete: bool = True
    """No report is missing since the last full one."""


@attrs.define
class MemoryRegistry:
    """A registry in this process, which ends with it: replicas register again."""

    _terms: LeaseTerms = attrs.field(factory=LeaseTerms)
    _limits: Limits = attrs.field(factory=Limits)
    _next_epoch: int = 1
    """Larger than any that an earlier registry of the same replicas has granted."""
    _leases: Leases = attrs.field(
        init=False, default=attrs.Factory(lambda self: Leases(self._terms), takes_self=True)
    )
    _history: History = attrs.field(init=False, factory=History)
    _records: dict[str, _Record] = attrs.field(init=False, factory=dict)
    _offers: int = attrs.field(init=False, default=0)
    """Offers of all replicas."""

    def register(self, registration: Registration, now: float) -> Grant:
        """As `Registry` says."""
        self.expire(now)
        check_registration(registration)
        offers = checked_offers(registration.offers)
        id = registration.id
        record = self._records.get(id)
        if registration.epoch and (record is None or registration.epoch != record.view.epoch):
            raise _over(id, registration.epoch)
        if record is not None and record.instance != registration.instance:
            raise AlreadyExists(
                f"another process is replica {id}, until it leaves or is silent for"
                f" {self._terms.lease:g} s"
            )
        if record is None:
            if len(self._records) == self._limits.replicas:
                raise ResourceExhausted(f"the fleet has {len(self._records)} replicas, and no room")
            self._make_room(len(offers))
            kind, epoch = ChangeKind.JOINED, self._next_epoch
            self._next_epoch += 1
        else:
            self._make_room(len(offers) - len(record.view.offers))
            kind, epoch = ChangeKind.CHANGED, record.view.epoch
        state = _state(registration.draining)
        view = ReplicaView(id, epoch, registration.address, state, offers, now)
        self._records[id] = _Record(view, registration.instance)
        self._leases.renew(id)
        self._publish(kind, id, view)
        return Grant(epoch, record is not None, self._terms)

    def report(self, id: str, epoch: int, report: Report, now: float) -> Heard:
        """As `Registry` says."""
        self.expire(now)
        record = self._records.get(id)
        if record is None or record.view.epoch != epoch:
            raise _over(id, epoch)
        if report.sequence <= record.sequence:
            return Heard.IGNORED
        follows = record.complete and report.sequence == record.sequence + 1
        if follows or report.full:
            self._take(record, report, now)
            heard = Heard.APPLIED
        else:
            self._set_state(record, _state(report.draining))
            heard = Heard.INCOMPLETE
        record.sequence = report.sequence
        record.complete = heard is Heard.APPLIED
        self._leases.renew(id)
        return heard

    def suspect(self, id: str, epoch: int) -> None:
        """As `Registry` says."""
        record = self._records.get(id)
        if record is not None and record.view.epoch == epoch:
            self._doubt(record)

    def release(self, id: str, epoch: int) -> bool:
        """As `Registry` says."""
        record = self._records.get(id)
        if record is None or record.view.epoch != epoch:
            return False
        self._leases.end(id)
        self._remove(record, goodbye=True)
        return True

    def expire(self, now: float) -> Sequence[Change]:
        """As `Registry` says."""
        silences = self._leases.pass_time(now)
        if silences is NOBODY:
            return []
        doubted = [self._doubt(self._records[id]) for id in silences.suspect]
        removed = [self._remove(self._records[id]) for id in silences.over]
        return [change for change in (*doubted, *removed) if change is not None]

    def due(self) -> float:
        """As `Registry` says."""
        return self._leases.due()

    def fleet(self) -> Fleet:
        """As `Registry` says."""
        return self._history.fleet

    def since(self, version: int) -> Sequence[Change] | Fleet:
        """As `Registry` says."""
        return self._history.since(version)

    def _take(self, record: _Record, report: Report, now: float) -> None:
        """Let `report` be what is known of its replica."""
        view = record.view
        offers = changed_offers(view.offers, report)
        self._make_room(len(offers) - len(view.offers))
        state = _state(report.draining)
        only_loads = state is view.state and not (report.full or report.offers or report.removed)
        kind = ChangeKind.REPORTED if only_loads else ChangeKind.CHANGED
        record.view = ReplicaView(view.id, view.epoch, view.address, state, offers, now)
        self._publish(kind, view.id, record.view)

    def _set_state(self, record: _Record, state: ReplicaState) -> Change | None:
        if record.view.state is state:
            return None
        record.view = attrs.evolve(record.view, state=state)
        return self._publish(ChangeKind.CHANGED, record.view.id, record.view)

    def _doubt(self, record: _Record) -> Change | None:
        """Suspect a replica; one that is draining is sent nothing anyway."""
        draining = record.view.state is ReplicaState.DRAINING
        return None if draining else self._set_state(record, ReplicaState.SUSPECT)

    def _remove(self, record: _Record, *, goodbye: bool = False) -> Change:
        del self._records[record.view.id]
        self._offers -= len(record.view.offers)
        return self._publish(ChangeKind.LEFT, record.view.id, None, goodbye)

    def _publish(
        self, kind: ChangeKind, id: str, view: ReplicaView | None, goodbye: bool = False
    ) -> Change:
        change = Change(self._history.fleet.version + 1, kind, id, view, goodbye)
        self._history.add(change)
        return change

    def _make_room(self, more: int) -> None:
        """Count so many offers more; `ResourceExhausted` where there is no room for them."""
        offers = self._offers + more
        if more > 0 and offers > self._limits.offers:
            raise ResourceExhausted(f"offers: the fleet may have {self._limits.offers} in all")
        self._offers = offers


def _state(draining: bool) -> ReplicaState:
    """That of a replica which has just been heard."""
    return ReplicaState.DRAINING if draining else ReplicaState.LIVE


def _over(id: str, epoch: int) -> FailedPrecondition:
    return FailedPrecondition(f"replica {id} holds no lease of epoch {epoch}; it registers anew")
