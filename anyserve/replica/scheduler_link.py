"""The scheduler link: the actor that registers a replica, reports for it, and comes back."""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from functools import lru_cache
from typing import TypeAlias

import attrs
import trio
from anyserve_actors import Actor, Backoff, Context, Detail
from anyserve_protos.anyserve import v1 as pb

from anyserve.errors import (
    AnyServeError,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    Unavailable,
    first_of,
)
from anyserve.replica.orders import Order
from anyserve.replica.reports import Standing, all_offers, report
from anyserve.transport.address import TcpAddress
from anyserve.transport.channel import ClientStream
from anyserve.transport.trio_client import Channel

ATTACH = "/anyserve.v1.Scheduler/Attach"
LEAVE = "/anyserve.v1.Scheduler/Leave"
_BACKOFF = Backoff(initial=0.2, factor=2.0, maximum=4.0, jitter=0.5)
"""Between attempts."""
_ANSWER_TIMEOUT = 5.0
"""Seconds for the scheduler to be reached and to answer the registration."""
_LEAVE_TIMEOUT = 1.0
"""Seconds to say goodbye."""

Stream: TypeAlias = ClientStream[pb.FromReplica, pb.ToReplica]


@attrs.frozen
class LinkConfig:
    """Which scheduler a replica registers with, and as what."""

    scheduler: TcpAddress
    advertise: TcpAddress | None = None
    """Where the scheduler reaches the replica; None: where it listens."""
    replica_id: str = ""
    """Its own in the fleet; empty: the host's name and the port."""


def ignore(order: Order) -> None:
    """What a replica does with orders that has nothing on demand."""


@lru_cache(16)
def backoff(lease: float) -> Backoff:
    """Between attempts of a replica whose last lease was of so many seconds, inf for none yet.

    A scheduler that is back has heard of all its replicas within one lease.
    """
    return attrs.evolve(_BACKOFF, maximum=min(_BACKOFF.maximum, lease / 3))


class SchedulerLink(Actor[None]):
    """Keeps a replica registered with its scheduler.

    Whatever becomes of the link, the replica serves on: without it, alone.
    """

    def __init__(
        self,
        replica_id: str,
        address: str,
        standing: Callable[[], Standing],
        open_channel: Callable[[], AbstractAsyncContextManager[Channel]],
        order: Callable[[Order], None] = ignore,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """address: where the scheduler reaches the replica. standing: what it offers now.

        open_channel: a channel to the scheduler, a new one for each attempt. order: takes what
        the scheduler wants loaded or unloaded, and does not wait.
        """
        self.replica_id = replica_id
        self.token = secrets.token_bytes(32)
        """What a call carries in `anyserve-link-token-bin` that comes from the scheduler."""
        self.epoch = 0
        """The last one granted; 0 before the first."""
        self.channel: Channel | None = None
        """To the scheduler; None while the replica is not registered."""
        self.registrations = 0
        """Times that the scheduler has granted one."""
        self.handed_back = 0
        """Requests of the scheduler that were not served here."""
        self.relayed = 0
        """Requests of clients that the scheduler was given instead."""
        self._address = address
        self._instance = secrets.token_bytes(16)
        self._standing = standing
        self._open_channel = open_channel
        self._order = order
        self._jitter = jitter
        self._changed = trio.Event()
        self._want_full = False
        self._lease = math.inf
        """Seconds of the one granted last."""
        self._patience = _ANSWER_TIMEOUT
        self._silence = trio.CancelScope()
        self._failures = 0
        self._last_error = ""

    def details(self) -> Mapping[str, Detail]:
        return {
            "replica_id": self.replica_id,
            "epoch": self.epoch,
            "attached": self.channel is not None,
            "handed_back": self.handed_back,
            "relayed": self.relayed,
            "error": self._last_error or None,
        }

    def changed(self) -> None:
        """What the replica offers may be different now; it is looked at, and told at once if so."""
        self._changed.set()

    async def run(self, context: Context[None]) -> None:
        """Register and report until stopped; ready at once."""
        context.started()
        while True:
            errors: BaseExceptionGroup[AnyServeError] | None = None
            try:
                await self._attach(context)
            except* AnyServeError as caught:
                errors = caught
            if errors is not None:
                self._lost(errors, context)
            await trio.sleep(backoff(self._lease).delay(self._failures, self._jitter()))
            self._failures += 1

    async def aclose(self) -> None:
        """Say goodbye, where the last link was good, and wait a second at most for the answer."""
        if self._last_error or not self.epoch:
            return
        request = pb.LeaveRequest(
            replica_id=self.replica_id, epoch=self.epoch, link_token=self.token
        )
        with trio.move_on_after(_LEAVE_TIMEOUT), suppress(AnyServeError):
            # A new channel: the link's own was cancelled with it.
            async with self._open_channel() as channel:
                await channel.unary(LEAVE, request, pb.LeaveReply)

    def _lost(self, errors: BaseExceptionGroup[AnyServeError], context: Context[None]) -> None:
        """Note why there is no link, and log it where that is news."""
        error = first_of(errors)
        if isinstance(error, FailedPrecondition):
            self.epoch = 0  # it is over: register anew, soon
            self._failures = 0
        if str(error) != self._last_error:
            context.log.warning("no scheduler, serving alone: %s", error)
        self._last_error = str(error)

    async def _attach(self, context: Context[None]) -> None:
        """One registration, from the first message to its end, which always raises.

        An `AnyServeError` in a group: the scheduler refused, can't be reached, or is silent.
        """
        self._silence = trio.CancelScope()
        self._heard(_ANSWER_TIMEOUT)
        async with trio.open_nursery() as nursery, self._open_channel() as channel:
            # Not by a deadline, which would go along with the call and end it.
            nursery.start_soon(self._watch)
            async with channel.stream(ATTACH, pb.FromReplica, pb.ToReplica) as stream:
                told = self._standing()
                granted = await self._register(stream, told)
                self.epoch = granted.epoch
                self.registrations += 1
                self._lease = granted.lease_ms / 1000
                self._heard(self._lease)
                self._want_full = False
                self._failures = 0
                self._last_error = ""
                context.log.info("registered as %s, epoch %d", self.replica_id, self.epoch)
                self.channel = channel
                try:
                    nursery.start_soon(self._read, stream)
                    await self._report(stream, told, granted.interval_ms / 1000)
                finally:
                    self.channel = None

    async def _register(self, stream: Stream, now: Standing) -> pb.Granted:
        register = pb.Register(
            replica_id=self.replica_id,
            instance=self._instance,
            epoch=self.epoch,
            address=self._address,
            link_token=self.token,
            draining=now.draining,
            offers=all_offers(now),
        )
        await stream.send(pb.FromReplica(register=register))
        reply = await stream.recv()
        if reply is None or reply.granted is None:
            raise Internal("the scheduler did not answer the registration")
        if not (reply.granted.lease_ms and reply.granted.interval_ms):
            raise Internal("the scheduler granted a lease without a length")
        return reply.granted

    async def _report(self, stream: Stream, told: Standing, interval: float) -> None:
        """Tell what is new, each interval and at once where it matters; never returns.

        Waits while the scheduler does not read: whoever watches for its silence ends that.
        """
        sequence = 0
        while True:
            with trio.move_on_after(interval):
                while not (self._want_full or told.differs(self._standing())):
                    self._changed = trio.Event()
                    await self._changed.wait()
            sequence += 1
            now = self._standing()
            message = report(sequence, None if self._want_full else told, now)
            self._want_full = False
            await stream.send(pb.FromReplica(report=message))
            told = now

    async def _read(self, stream: Stream) -> None:
        """Take the scheduler's answers and orders; raises when the link has ended."""
        async for message in stream:
            self._heard(self._patience)
            if message.heard is not None and message.heard.want_full:
                self._want_full = True
                self._changed.set()
            if message.want is not None:
                self._order(Order(message.want.name, True, message.want.reason))
            if message.unwant is not None:
                self._order(Order(message.unwant.name, False, message.unwant.reason))
        raise Unavailable("the scheduler ended the link")

    def _heard(self, patience: float) -> None:
        """The scheduler has said something, and may now be silent for so many seconds."""
        self._patience = patience
        self._silence.deadline = trio.current_time() + patience

    async def _watch(self) -> None:
        """Raise once the scheduler has been silent for too long."""
        with self._silence:
            await trio.sleep_forever()
        raise DeadlineExceeded(f"the scheduler has been silent for {self._patience:g} s")
