"""One capability's workers, their slots and the requests that wait for one."""

from __future__ import annotations

import enum
from typing import Protocol

import attrs
import trio

from anyserve.app import Condition
from anyserve.errors import AnyServeError, ResourceExhausted, Unavailable, elsewhere
from anyserve.offers import Offer
from anyserve.replica.exchange import Executor
from anyserve.replica.policy import DeadlineQueue, ServiceTime, least_loaded, refusal
from anyserve.replica.rate import Rate
from anyserve.replica.statistics import Statistics
from anyserve.replica.timings import Timings


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
    ill: str = ""
    """Why none can be served there for now, such as that a server is down; else empty."""
    others: int = 0
    """Requests of others that its server has beside these. They refuse nobody a slot: a server
    that others keep full serves in turn."""

    @property
    def slots(self) -> int:
        """How many may run."""
        return 0 if self.gone or self.ill else self.concurrency


class Waiting(Protocol):
    """A request that waits for a slot."""

    def on_granted(self, seat: Seat) -> None:
        """It has a slot of `seat`."""
        ...

    def on_refused(self, error: AnyServeError) -> None:
        """It can't have one any more."""
        ...


@attrs.define(eq=False)
class Ticket:
    """A place in the queue."""

    waiting: Waiting
    pinned: Seat | None
    """The only seat that the request may have, for one in a sequence."""
    key: tuple[float, int] = attrs.field(init=False)


class Pool:
    """Slots are taken at once where one is free, else in the order of deadlines."""

    def __init__(self, offer: Offer, timings: Timings | None = None) -> None:
        self.offer = offer
        self.timings = timings
        """None where nobody asks for them."""
        self.state = State.UNAVAILABLE
        self.reason = "not loaded"
        """Why it is not ready, in words."""
        self.on_demand = False
        """Whether it is loaded and unloaded as the scheduler wants it."""
        self.failures = 0
        """Times in a row that it could not be loaded."""
        self.failure = ""
        """Why it could not, the last time."""
        self.seats: list[Seat] = []
        self.running = 0
        """Requests that hold a slot, also where their worker is on its way out or gone."""
        self.given = 0
        """Responses so far; where the handler says how many tokens one has, those."""
        self.prompted = 0
        """Tokens of prompts so far, where the handler says how many one has."""
        self.rate = Rate()
        """Of `given`, for the one who reports it."""
        self.service_time = ServiceTime()
        self.statistics = Statistics()
        self._queue: DeadlineQueue[Ticket] = DeadlineQueue()
        self._idle = trio.Event()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def serving(self) -> bool:
        """Whether a request sent now would find a worker."""
        if self.state is State.READY:
            for seat in self.seats:
                if not seat.gone and not seat.ill:
                    return True
        return False

    @property
    def seen_state(self) -> State:
        """As clients see it: not ready while all its workers are being restarted."""
        lost = self.state is State.READY and not self.serving
        return State.UNAVAILABLE if lost else self.state

    def check_serving(self) -> None:
        """Raise `Unavailable`, with the reason, unless a worker is there."""
        if not self.serving:
            raise elsewhere(self._no_worker(self.reason))

    def acquire(
        self, waiting: Waiting, deadline: float, pinned: Seat | None = None
    ) -> Seat | Ticket:
        """A slot of a seat, of `pinned` where given; or a place in the queue until one is free.

        Raises `ResourceExhausted` when the queue is full or the deadline can't be met,
        `Unavailable` when no worker is there.
        """
        if pinned is None and self.state is State.READY and len(self.seats) == 1:
            # Nearly always so: one worker, which has a free slot.
            only = self.seats[0]
            if not only.gone and not only.ill and only.running < only.concurrency:
                self._take(only)
                return only
        self.check_serving()
        if pinned is not None and pinned.gone:
            raise Unavailable(f"the worker that {self.offer.name!r} needs here is gone")
        seat = self._free_seat(pinned)
        if seat is not None:
            self._take(seat)
            return seat
        reason = refusal(
            waiting=len(self._queue),
            limit=self.offer.queue,
            ahead=self._queue.ahead_of(deadline),
            slots=sum(seat.slots for seat in self.seats),
            service_time=self.service_time.mean,
            budget=deadline - trio.current_time(),
        )
        if reason is not None:
            refused = ResourceExhausted(f"{self.offer.name!r} refuses the request: {reason}")
            raise elsewhere(refused)
        ticket = Ticket(waiting, pinned)
        ticket.key = self._queue.push(deadline, ticket)
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Leave the queue."""
        self._queue.remove(ticket.key)

    def release(self, seat: Seat) -> None:
        """Give a slot back; the next request that may have it gets it."""
        seat.running -= 1
        self.running -= 1
        if self._queue:
            self._grant()
        if not self.running:
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

    def set_condition(self, executor: Executor, condition: Condition) -> None:
        """What a worker depends on is like that now: it can serve nothing, or can again."""
        reason = condition.reason
        for seat in self.seats:
            if seat.executor is executor:
                seat.ill, seat.others = reason, condition.others
        if self.state is State.READY:
            self.reason = reason
        if reason:
            self._refuse(reason)
        else:
            self._grant()

    def _no_worker(self, reason: str) -> Unavailable:
        return Unavailable(f"no worker for {self.offer.name!r} is ready: {reason}")

    def _refuse(self, reason: str) -> None:
        error = elsewhere(self._no_worker(reason))
        for key, ticket in self._queue:
            hopeless = not self.serving or (ticket.pinned is not None and ticket.pinned.gone)
            if hopeless and self._queue.remove(key):
                ticket.waiting.on_refused(error)

    def set_state(self, state: State, reason: str) -> None:
        """Move on in the life of the capability; what waits is refused where it is not ready."""
        self.state, self.reason = state, reason
        self._refuse(reason)

    def _free_seat(self, pinned: Seat | None) -> Seat | None:
        if pinned is not None:
            return pinned if pinned.running < pinned.slots else None
        index = least_loaded(self.seats)
        if index is None:
            return None
        seat = self.seats[index]
        if len(self.seats) > 1:
            # To the end: workers without load take turns, and open sequences spread over them.
            self.seats.append(self.seats.pop(index))
        return seat

    def _take(self, seat: Seat) -> None:
        seat.running += 1
        self.running += 1

    def _grant(self) -> None:
        # What is called here may take a slot, give one back, or leave the queue.
        for key, ticket in self._queue:
            seat = self._free_seat(ticket.pinned)
            if seat is not None:
                if self._queue.remove(key):
                    self._take(seat)
                    ticket.waiting.on_granted(seat)
            elif ticket.pinned is None:
                return
