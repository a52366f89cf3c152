"""The dispatcher: matches a request to a capability, waits for a slot, follows it to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import TracebackType

import trio
from anyserve_actors import Actor, Context, Detail

from anyserve.capability import Capability, explain_absence, satisfying
from anyserve.errors import AnyServeError, NotFound, ResourceExhausted, Unavailable
from anyserve.messages import Sequence
from anyserve.offers import Offer
from anyserve.replica.exchange import Call, Exchange, Executor, Reply, WorkerLost
from anyserve.replica.pool import Pool, Seat, State
from anyserve.replica.sequences import OpenSequence, Sequences
from anyserve.replica.statistics import Outcome


class Dispatcher(Actor[None]):
    """Pools of workers by capability, and the requests in them.

    It is called directly, in Trio's thread: a request takes no mailbox on its way.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        """on_change: called after what is served may have changed."""
        self._on_change = on_change
        self._pools: dict[str, Pool] = {}
        self._sequences: dict[str, Sequences] = {}
        self._matches: dict[str, list[Pool]] = {}
        self._in_flight = 0
        self._draining = False
        self._accepting: set[trio.CancelScope] = set()
        self._idle = trio.Event()
        self._idle.set()

    async def run(self, context: Context[None]) -> None:
        """Be there until stopped."""
        context.started()
        await trio.sleep_forever()

    def details(self) -> Mapping[str, Detail]:
        details: dict[str, Detail] = {"in_flight": self._in_flight}
        for pool in self.pools:
            if pool.running or pool.waiting:
                details[pool.offer.name] = f"{pool.running} running, {pool.waiting} waiting"
        return details

    # What is offered.

    @property
    def pools(self) -> list[Pool]:
        """All capabilities that the apps declare, loaded or not, by name."""
        return [self._pools[name] for name in sorted(self._pools)]

    @property
    def in_flight(self) -> int:
        """Requests that have come and not ended."""
        return self._in_flight

    def knows(self, name: str) -> bool:
        """Whether a capability of that name is declared."""
        return name in self._pools

    def pool(self, name: str) -> Pool:
        """The pool of exactly `name`; raises `NotFound` naming what there is."""
        pool = self._pools.get(name)
        if pool is None:
            raise NotFound(explain_absence(Capability(name), self._loaded()))
        return pool

    def loaded_pool(self, name: str) -> Pool:
        """The pool that serves `name`, loaded or loading: the one that requests for it go to.

        Raises `NotFound` when there is none.
        """
        return self.match(Capability(name))[0]

    def declare(self, offer: Offer) -> Pool:
        """Make a capability known; it is not loaded by that."""
        if offer.name not in self._pools:
            self._pools[offer.name] = Pool(offer)
            self._matches.clear()
        return self._pools[offer.name]

    def set_state(self, name: str, state: State, reason: str = "") -> None:
        """Move a declared capability on in its life."""
        self._pools[name].set_state(state, reason)
        self._matches.clear()
        self._on_change()

    def explain(self, name: str, reason: str) -> None:
        """Say why a declared capability has no worker, for whoever asks for it."""
        self._pools[name].reason = reason

    def worker_up(self, executor: Executor, offers: Iterable[Offer]) -> None:
        """A worker is ready to serve `offers`."""
        for offer in offers:
            self.declare(offer).add(executor, offer)
            self._sequences.setdefault(offer.name, Sequences(offer.sequence_idle))
        self._matches.clear()
        self._on_change()

    def worker_retiring(self, executor: Executor, reason: str) -> None:
        """A worker finishes what it has and takes no more."""
        for pool in self._pools.values():
            pool.retire(executor, reason)
        self._on_change()

    def worker_down(self, executor: Executor, reason: str) -> None:
        """A worker is gone; it has ended its calls itself."""
        for pool in self._pools.values():
            pool.remove(executor, reason)
        self._on_change()

    def match(self, need: Capability) -> list[Pool]:
        """The loaded pools that satisfy `need`, least powerful first.

        Raises `NotFound` in words when there is none.
        """
        if need.attributes:
            return self._search(need)
        found = self._matches.get(need.name)
        if found is None:
            found = self._matches[need.name] = self._search(need)
        return found

    def _search(self, need: Capability) -> list[Pool]:
        offers = self._loaded()
        names = [offer.name for offer in satisfying(need, offers)]
        if not names:
            raise NotFound(explain_absence(need, offers))
        return [self._pools[name] for name in names]

    def _loaded(self) -> list[Capability]:
        return [
            pool.offer.capability
            for pool in self._pools.values()
            if pool.state in (State.READY, State.LOADING)
        ]

    # What is asked.

    def execute(self, call: Call) -> Execution:
        """Run `call`: an async context manager that holds its slot and ends it."""
        return Execution(self, call)

    @contextmanager
    def accepting(self) -> Iterator[trio.CancelScope]:
        """A scope for reading requests, cancelled once no more are taken."""
        with trio.CancelScope() as scope:
            if self._draining:
                scope.cancel()
            self._accepting.add(scope)
            try:
                yield scope
            finally:
                self._accepting.discard(scope)

    async def drain(self) -> None:
        """Take no more requests and wait until those in flight have ended; the caller bounds it."""
        self._draining = True
        for scope in self._accepting:
            scope.cancel()
        await self._idle.wait()

    def _begin(self) -> None:
        if self._draining:
            raise Unavailable("the replica is draining")
        if self._in_flight == 0:
            self._idle = trio.Event()
        self._in_flight += 1

    def _finish(self) -> None:
        self._in_flight -= 1
        if self._in_flight == 0:
            self._idle.set()


class Execution:
    """One request from its arrival to its end, as an async context manager.

    Entering waits for a slot. However the body ends, the slot is given back when the handler has
    really ended, the request is counted under one `Outcome`, and a worker that still runs it is
    told to stop.
    """

    def __init__(self, dispatcher: Dispatcher, call: Call) -> None:
        self._dispatcher = dispatcher
        self._call = call
        self._arrived = trio.current_time()
        self._queued = 0.0
        self._exchange: Exchange | None = None
        self._pool: Pool | None = None
        self._open: OpenSequence | None = None
        self._answered = False
        self._retried = False

    @property
    def offer(self) -> Offer:
        """What the request was matched to."""
        assert self._pool is not None
        return self._pool.offer

    async def __aenter__(self) -> Execution:
        """Wait for a slot and start the handler.

        The caller's scope bounds it. Raises `NotFound`, `Unavailable`, `ResourceExhausted`, and
        for a sequence `InvalidArgument`.
        """
        self._dispatcher._begin()
        try:
            await self._submit()
        except BaseException as error:
            self._end(error)
            raise
        return self

    async def receive(self) -> Reply | None:
        """The next reply, or None after the last; its buffers are the caller's to release.

        The caller's scope bounds the wait. Raises what the handler raised, or `WorkerLost`; a
        handler declared idempotent that had sent nothing is first run once more.
        """
        assert self._exchange is not None
        try:
            reply = await self._exchange.receive()
        except WorkerLost:
            if self._answered or self._retried or not self.offer.idempotent:
                raise
            self._retried = True
            await self._submit()
            return await self.receive()
        self._answered = True
        return reply

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(error)

    async def _submit(self) -> None:
        """Take a slot and start the call; once more where the worker goes in between."""
        while True:
            pool, seat = await self._take_slot()
            try:
                exchange = seat.executor.submit(self._call, pool.offer)
            except WorkerLost as lost:
                pool.retire(seat.executor, lost.message)
                pool.release(seat)
                continue
            except BaseException:
                pool.release(seat)
                raise
            started = trio.current_time()
            exchange.on_ended(partial(_give_back, pool, seat, started))
            self._pool, self._exchange = pool, exchange
            self._queued = started - self._arrived
            return

    async def _take_slot(self) -> tuple[Pool, Seat]:
        """A slot in the least powerful pool that takes the call."""
        pools = self._dispatcher.match(self._call.need)
        self._pool = pools[0]
        # A free slot is had without waiting; one whose time is over must not get it.
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._call.sequence is not None:
            return pools[0], await self._take_turn(pools[0], self._call.sequence)
        refused: AnyServeError | None = None
        for pool in pools:
            try:
                return pool, await pool.acquire(self._call.deadline)
            except (ResourceExhausted, Unavailable) as error:
                refused = refused or error
        assert refused is not None
        raise refused

    async def _take_turn(self, pool: Pool, sequence: Sequence) -> Seat:
        """A slot on the worker that holds the sequence, after the requests before this one."""
        pool.check_serving()
        if self._open is None:
            sequences = self._dispatcher._sequences[pool.offer.name]
            self._open = sequences.enter(sequence, trio.current_time())
            await self._open.turn.acquire()
        self._open.seat = await pool.acquire(self._call.deadline, self._open.seat)
        return self._open.seat

    def _end(self, error: BaseException | None) -> None:
        if self._exchange is not None:
            self._exchange.close()
        now = trio.current_time()
        if self._open is not None:
            self._leave_sequence(self._open, now)
        self._dispatcher._finish()
        if self._pool is not None:
            batch = 1 if self._exchange is None else self._exchange.batch
            self._pool.statistics.record(
                self._outcome(error, now),
                seconds=now - self._arrived,
                queued=self._queued,
                batch=batch,
                wall_ms=time.time_ns() // 1_000_000,
            )

    def _leave_sequence(self, entered: OpenSequence, now: float) -> None:
        assert self._call.sequence is not None
        assert self._pool is not None
        if entered.turn.statistics().owner is trio.lowlevel.current_task():
            entered.turn.release()
        self._dispatcher._sequences[self._pool.offer.name].leave(self._call.sequence, entered, now)

    def _outcome(self, error: BaseException | None, now: float) -> Outcome:
        if error is None:
            return Outcome.ANSWERED
        if self._exchange is None and isinstance(error, AnyServeError):
            return Outcome.REFUSED
        if isinstance(error, AnyServeError):
            return Outcome.FAILED
        return Outcome.EXPIRED if now >= self._call.deadline else Outcome.CANCELLED


def _give_back(pool: Pool, seat: Seat, started: float) -> None:
    pool.service_time.observe(trio.current_time() - started)
    pool.release(seat)
