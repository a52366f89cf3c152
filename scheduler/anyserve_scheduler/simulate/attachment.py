"""The scheduler link of a simulated replica: it registers, reports, and comes back.

The product's link is an actor that waits; this is what it does, event by event, with the same
messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Protocol

from anyserve_protos.anyserve import v1 as pb

from anyserve.errors import AnyServeError, FailedPrecondition
from anyserve.replica.reports import Standing, all_offers, report
from anyserve.replica.scheduler_link import backoff
from anyserve_scheduler.registration import Grant, Heard
from anyserve_scheduler.simulate.network import SCHEDULER, Call, Network

_UNANSWERED = 5.0
"""Seconds after which a registration is tried again."""


class Registrar(Protocol):
    """What the scheduler takes from replicas."""

    def on_register(self, attachment: Attachment, stream: int, message: pb.Register) -> None:
        """A replica registers by a new stream."""
        ...

    def on_report(self, attachment: Attachment, stream: int, message: pb.Report) -> None:
        """A replica reports by the stream that it registered by."""
        ...

    def on_lost(self, attachment: Attachment, stream: int) -> None:
        """The stream was closed."""
        ...

    def on_leave(self, attachment: Attachment) -> None:
        """A replica says goodbye."""
        ...

    def connect(self, call: Call) -> None:
        """A replica hands a client's request over, by this call."""
        ...


class Attachment:
    """That of one process."""

    def __init__(
        self,
        replica: str,
        instance: bytes,
        token: bytes,
        standing: Callable[[], Standing],
        act: Callable[[Callable[[], None]], None],
        network: Network,
        front: Registrar,
    ) -> None:
        """standing: what is offered now.

        act: does something in the replica's process, which may be stopped or gone.
        """
        self.replica = replica
        self.instance = instance
        self.token = token
        self.epoch = 0
        self.attached = False
        self.lease = math.inf
        """Seconds of the one granted last; inf before the first."""
        self.drop = self.duplicate = self.late = 0.0
        """Probabilities that a report is lost, comes twice, comes later."""
        self.lateness = 0.0
        """Seconds that it comes later."""
        self._standing = standing
        self._act = act
        self._network = network
        self._front = front
        self._rng = Random(instance)
        self._stream = 0
        self._attempt = 0
        self._failures = 0
        self._ended = False
        self._heard = 0.0
        self._interval = 0.0
        self._sequence = 0
        self._want_full = False
        self._told: Standing
        self._first: Standing

    def start(self) -> None:
        """Register by a new stream."""
        if self._ended:
            return
        self.attached = False
        self._attempt += 1
        self._stream += 1
        now = self._first = self._standing()
        message = pb.Register(
            replica_id=self.replica,
            instance=self.instance,
            epoch=self.epoch,
            address=f"unix:/{self.replica}",
            link_token=self.token,
            draining=now.draining,
            offers=all_offers(now),
        )
        self._send(self._front.on_register, self, self._stream, message)
        self._later(_UNANSWERED, self._unanswered, self._attempt)

    def end(self) -> None:
        """The process is gone, or the run is over."""
        if not self._ended:
            self._ended = True
            self.attached = False
            self._send(self._front.on_lost, self, self._stream)

    def leave(self) -> None:
        """The process ends, and says goodbye where the scheduler hears it."""
        attached = self.attached
        self.end()
        if attached:
            self._send(self._front.on_leave, self)  # which may overtake its last answers

    def changed(self) -> None:
        """What is offered may be different: tell it at once."""
        if self.attached and self._told.differs(self._standing()):
            self._report()

    # What the scheduler answers.

    def on_granted(self, stream: int, grant: Grant) -> None:
        """The registration was taken."""
        if stream != self._stream or self._ended:
            return
        self.attached = True
        self.epoch = grant.epoch
        self._failures = 0
        self._sequence = 0
        self._want_full = False
        self._told = self._first
        self.lease, self._interval = grant.terms.lease, grant.terms.interval
        self._heard = self._network.loop.now
        self._later(self._interval, self._tick, stream)

    def on_refused(self, stream: int, error: AnyServeError) -> None:
        """The scheduler has ended the stream."""
        if stream != self._stream or self._ended:
            return
        self.attached = False
        if isinstance(error, FailedPrecondition):
            self.epoch = self._failures = 0
        self._again()

    def on_heard(self, stream: int, heard: Heard) -> None:
        """A report was taken."""
        if stream == self._stream:
            self._heard = self._network.loop.now
            self._want_full = self._want_full or heard is Heard.INCOMPLETE

    def _again(self) -> None:
        delay = backoff(self.lease).delay(self._failures, self._rng.random())
        self._failures += 1
        self._attempt += 1
        self._later(delay, self._retry, self._attempt)

    def _retry(self, attempt: int) -> None:
        if attempt == self._attempt:
            self.start()

    def _unanswered(self, attempt: int) -> None:
        if attempt == self._attempt and not self.attached:
            self._again()

    def _tick(self, stream: int) -> None:
        if stream != self._stream or not self.attached or self._ended:
            return
        if self._network.loop.now - self._heard > self.lease:
            self.attached = False
            self._again()
            return
        self._report()
        self._later(self._interval, self._tick, stream)

    def _report(self) -> None:
        self._sequence += 1
        now = self._standing()
        message = report(self._sequence, None if self._want_full else self._told, now)
        self._want_full = False
        self._told = now
        draws = [self._rng.random() for _ in range(3)]
        if draws[0] < self.drop:
            return
        late = self.lateness if draws[1] < self.late else 0.0
        for _ in range(2 if draws[2] < self.duplicate else 1):
            self._send(self._front.on_report, self, self._stream, message, late=late)

    def _send(self, handle: Callable[..., None], *values: object, late: float = 0.0) -> None:
        self._network.send(self.replica, SCHEDULER, handle, *values, late=late)

    def _later(self, delay: float, do: Callable[[int], None], value: int) -> None:
        self._network.loop.after(delay, self._act, lambda: do(value))
