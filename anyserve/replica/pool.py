"""One capability's workers, their slots and the requests that wait for one."""

from __future__ import annotations

import enum

import attrs
import trio

from anyserve.errors import AnyServeError, ResourceExhausted, Unavailable
from anyserve.offers import Offer
from anyserve.replica.exchange import Executor
from anyserve.replica.policy import DeadlineQueue, Load, ServiceTime, least_loaded, refusal
from anyserve.replica.statistics import Statistics


class State(enum.Enum):
    """Where a capability stands, in the words of KServe's repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@attrs.define(eq=False)
class Seat:
    """A worker's slots for one capability."""

    executor: Executor
    concurrency: int
    running: int = 0
    gone: bool = False
    """No new request goes there."""

    @property
    def load(self) -> Load:
        return Load(self.running, 0 if self.gone else self.concurrency)


@attrs.define(eq=False)
class _Ticket:
    """A request that waits."""

    pinned: Seat | None
    """The only seat that it may have, for one in a sequence."""
    decided: trio.Event = attrs.field(factory=trio.Event)
    seat: Seat | None = None
    error: AnyServeError | None = None


class Pool:
    """Slots are taken at once where one is free, else in the order of deadlines."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.state = State.UNAVAILABLE
        self.reason = "not loaded"
        """Why it is not ready, in words."""
        self.seats: list[Seat] = []
        self.service_time = ServiceTime()
        self.statistics = Statistics()
        self._queue: DeadlineQueue[_Ticket] = DeadlineQueue()
        self._idle = trio.Event()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests that hold a slot, also where their worker is on its way out."""
        return sum(seat.running for seat in self.seats)

    @property
    def serving(self) -> bool:
        """Whether a request sent now would find a worker."""
        return self.state is State.READY and any(not seat.gone for seat in self.seats)

    @property
    def seen_state(self) -> State:
        """As clients see it: not ready while all its workers are being restarted."""
        lost = self.state is State.READY and not self.serving
        return State.UNAVAILABLE if lost else self.state

    def check_serving(self) -> None:
        """Raise `Unavailable`, with the reason, unless a worker is there."""
        if not self.serving:
            raise Unavailable(f"no worker for {self.offer.name!r} is ready: {self.reason}")

    async def acquire(self, deadline: float, pinned: Seat | None = None) -> Seat:
        """A slot, on `pinned` where given.

        Waits in the queue until one is free; the caller's scope bounds that, and cancelled it
        holds none. Raises `ResourceExhausted` at once when the queue is full or the deadline
        can't be met, `Unavailable` when no worker is there or the last one goes.
        """
        self.check_serving()
        if pinned is not None and pinned.gone:
            raise Unavailable(f"the worker that {self.offer.name!r} needs here is gone")
        seat = self._free_seat(pinned)
        if seat is not None:
            seat.running += 1
            return seat
        slots = sum(seat.load.concurrency for seat in self.seats)
        reason = refusal(
            waiting=len(self._queue),
            limit=self.offer.queue,
            ahead=self._queue.ahead_of(deadline),
            slots=slots,
            service_time=self.service_time.mean,
            budget=deadline - trio.current_time(),
        )
        if reason is not None:
            raise ResourceExhausted(f"{self.offer.name!r} refuses the request: {reason}")
        return await self._wait(deadline, pinned)

    async def _wait(self, deadline: float, pinned: Seat | None) -> Seat:
        ticket = _Ticket(pinned)
        key = self._queue.push(deadline, ticket)
        try:
            await ticket.decided.wait()
        except BaseException:
            if not self._queue.remove(key) and ticket.seat is not None:
                self.release(ticket.seat)
            raise
        if ticket.error is not None:
            raise ticket.error
        assert ticket.seat is not None
        return ticket.seat

    def release(self, seat: Seat) -> None:
        """Give a slot back; the next request that may have it gets it."""
        seat.running -= 1
        self._grant()
        if self.running == 0:
            self._idle.set()

    async def until_idle(self) -> None:
        """Wait until no request holds a slot; the caller's scope bounds it."""
        while self.running:
            self._idle = trio.Event()
            await self._idle.wait()

    def add(self, executor: Executor, offer: Offer) -> None:
        """A worker is ready to serve this capability."""
        self.offer = offer
        self.seats.append(Seat(executor, offer.concurrency))
        self._grant()

    def retire(self, executor: Executor, reason: str) -> None:
        """A worker takes no more requests; those that only it could serve are refused."""
        theirs = [seat for seat in self.seats if seat.executor is executor]
        for seat in theirs:
            seat.gone = True
        if theirs:
            if self.state is State.READY:  # else there is a reason that says more
                self.reason = reason
            self._refuse(reason)

    def remove(self, executor: Executor, reason: str) -> None:
        """A worker is gone, and its slots with it."""
        self.retire(executor, reason)
        self.seats = [seat for seat in self.seats if seat.executor is not executor]

    def _refuse(self, reason: str) -> None:
        error = Unavailable(f"no worker for {self.offer.name!r} is ready: {reason}")
        for key, ticket in self._queue:
            hopeless = not self.serving or (ticket.pinned is not None and ticket.pinned.gone)
            if hopeless and self._queue.remove(key):
                ticket.error = error
                ticket.decided.set()

    def set_state(self, state: State, reason: str) -> None:
        """Move on in the life of the capability; what waits is refused where it is not ready."""
        self.state, self.reason = state, reason
        self._refuse(reason)

    def _free_seat(self, pinned: Seat | None) -> Seat | None:
        if pinned is not None:
            return pinned if pinned.running < pinned.load.concurrency else None
        index = least_loaded(seat.load for seat in self.seats)
        if index is None:
            return None
        # To the end, so that workers without load take turns and open sequences spread over them.
        seat = self.seats.pop(index)
        self.seats.append(seat)
        return seat

    def _grant(self) -> None:
        for key, ticket in self._queue:
            seat = self._free_seat(ticket.pinned)
            if seat is not None:
                self._queue.remove(key)
                seat.running += 1
                ticket.seat = seat
                ticket.decided.set()
            elif ticket.pinned is None:
                return
