"""One request from its arrival to its end: its slot, its deadline, its retry and its outcome."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import trio
from anyserve_actors import tracing

from anyserve import traces
from anyserve.burst import now
from anyserve.deadlines import Deadline
from anyserve.errors import (
    AnyServeError,
    Cancelled,
    DeadlineExceeded,
    ResourceExhausted,
    Unavailable,
)
from anyserve.offers import Offer
from anyserve.replica.exchange import Call, Exchange, Reply, WorkerLost
from anyserve.replica.pool import Pool, Seat, Ticket
from anyserve.replica.sequences import OpenSequence
from anyserve.replica.statistics import Outcome
from anyserve.replica.timings import Timings

if TYPE_CHECKING:
    from anyserve.replica.dispatcher import Dispatcher


class Consumer(Protocol):
    """Whoever wants the replies to a request; it is called, in Trio's thread, and never waits."""

    def on_reply(self, reply: Reply) -> None:
        """The next reply, whose buffers are the consumer's to release.

        The handler may send so many more as `consumed` is called.
        """
        ...

    def on_end(self, error: AnyServeError | None) -> None:
        """There are no more replies: the handler has returned, or the request failed."""
        ...


class _Nobody:
    """The consumer of a request that is over."""

    def on_reply(self, reply: Reply) -> None:
        reply.release()

    def on_end(self, error: AnyServeError | None) -> None:
        pass


_NOBODY = _Nobody()


class Execution:
    """A request in the dispatcher, without a task of its own.

    After `start` it ends exactly once: by `on_end` of its consumer, or by `cancel`. However it
    ends, the slot is given back when the handler has really ended, the request is counted under
    one `Outcome`, and a worker that still runs it is told to stop.
    """

    # What most requests never change.
    _span: traces.Span | None = None
    _part: tracing.OpenSpan | None = None
    """Of the span: that it waits, or that it runs."""
    _deadline: Deadline | None = None
    _pool: Pool | None = None
    _ticket: Ticket | None = None
    _others: Sequence[Pool] = ()
    _seat: Seat | None = None
    _exchange: Exchange | None = None
    _open: OpenSequence | None = None
    _submitted = _answered = _retried = False
    _over = True
    """Or not begun."""
    _batch = 1
    _replied = 0.0
    """When the last reply came, where that is timed."""

    def __init__(
        self, dispatcher: Dispatcher, call: Call, consumer: Consumer, name: str = "request"
    ) -> None:
        """name: of its span in a trace."""
        self._dispatcher = dispatcher
        self._name = name
        self.call = call
        self._consumer = consumer
        self.arrived = self._started = now()
        """When it came, on Trio's clock."""

    @property
    def offer(self) -> Offer:
        """What the request was matched to."""
        assert self._pool is not None
        return self._pool.offer

    @property
    def worker(self) -> str | None:
        """The name of the worker that runs it; None while it waits."""
        return None if self._seat is None else self._seat.executor.name

    def start(self) -> None:
        """Start the handler, or wait for a slot.

        Raises, and is over then: `NotFound`, `Unavailable`, `ResourceExhausted`,
        `DeadlineExceeded`, and for a sequence `InvalidArgument`.
        """
        dispatcher, call = self._dispatcher, self.call
        dispatcher.begin(self)
        self._over = False
        self._span = traces.begin(self._name, call.trace, logged_as=call.request_id)
        try:
            pools = dispatcher.match(call.need)
            self._pool = pools[0]
            if self.arrived >= call.deadline:
                raise DeadlineExceeded("the deadline passed before the request was started")
            self._place(pools)
        except BaseException as error:
            self._consumer = _NOBODY
            if isinstance(error, AnyServeError):
                self._finish(self._outcome(error))
            else:
                self._finish(Outcome.FAILED)
            raise
        if call.deadline != math.inf and not self._over:
            self._deadline = dispatcher.deadlines.add(call.deadline, self._expire)

    def consumed(self) -> None:
        """A reply is on its way to the client: one more may come."""
        if self._exchange is not None:
            self._exchange.consumed()

    def cancel(self, error: AnyServeError | None = None) -> None:
        """The consumer wants no more, and hears no more; nothing happens where it is over.

        error: what the request failed with, where the consumer found something wrong.
        """
        self._consumer = _NOBODY
        if self._over:
            return
        self._stop()
        if error is not None:
            self._finish(self._outcome(error))
        elif now() >= self.call.deadline:
            self._finish(Outcome.EXPIRED)
        else:
            self._finish(Outcome.CANCELLED)

    def abort(self, error: Cancelled) -> None:
        """Whoever operates this wants it to end; its consumer hears `error`."""
        if not self._over:
            self._stop()
            self._finish(Outcome.CANCELLED)
            consumer, self._consumer = self._consumer, _NOBODY
            consumer.on_end(error)

    # What the pool, the sequence and the executor say.

    def on_granted(self, seat: Seat) -> None:
        """A slot is free for it."""
        self._ticket = None
        self._close_part()
        self._started = now()
        try:
            self._run(seat)
        except AnyServeError as error:
            self._end(error)

    def on_refused(self, error: AnyServeError) -> None:
        """There will be no slot where it waits."""
        self._ticket = None
        self._close_part()
        try:
            self._place(self._others, error)
        except AnyServeError as refused:
            self._end(refused)

    def on_turn(self) -> None:
        """The requests of its sequence before it have ended."""
        self._started = now()
        self._close_part()
        try:
            self._take_pinned()
        except AnyServeError as error:
            self._end(error)

    def on_reply(self, reply: Reply) -> None:
        """See `Listener`."""
        pool = self._pool
        assert pool is not None
        pool.given += 1
        if pool.timings is not None:
            self._time_reply(pool.timings)
        self._answered = True
        self._consumer.on_reply(reply)

    def on_tokens(self, more: int, prompt: int) -> None:
        """See `Listener`."""
        assert self._pool is not None
        self._pool.given += more
        self._pool.prompted += prompt

    def on_ended(self, batch: int, error: AnyServeError | None) -> None:
        """See `Listener`."""
        assert self._pool is not None
        assert self._seat is not None
        seat, self._seat, self._exchange = self._seat, None, None
        if self._part is not None:
            self._part.close()
        served = now() - self._started
        self._pool.service_time.observe(served)
        if self._pool.timings is not None:
            self._pool.timings.service.observe(served)
        self._pool.release(seat)
        if self._over:
            self._leave_sequence()
            return
        if isinstance(error, WorkerLost) and self._may_retry():
            self._retry()
        else:
            self._batch = batch
            self._end(error)

    # Its way.

    def _place(self, pools: Sequence[Pool], refused: AnyServeError | None = None) -> None:
        """A slot, or a place in the queue, in the least powerful pool that takes the call."""
        if self.call.sequence is not None and refused is None:
            self._take_turn()
            return
        for index, pool in enumerate(pools):
            try:
                place = pool.acquire(self, self.call.deadline)
            except (ResourceExhausted, Unavailable) as error:
                refused = refused or error
                continue
            self._pool = pool
            if isinstance(place, Seat):
                self._run(place)
            else:
                self._ticket, self._others = place, pools[index + 1 :]
                self._begin_part("queue")
            return
        assert refused is not None
        raise refused

    def _take_turn(self) -> None:
        """A slot on the worker that holds the sequence, after the requests before this one."""
        pool = self._pool  # where the sequence is, whatever else is loaded meanwhile
        assert pool is not None
        assert self.call.sequence is not None
        pool.check_serving()
        if self._open is None:
            sequences = self._dispatcher.sequences(pool.offer.name)
            self._open = sequences.enter(self.call.sequence, self.arrived)
            if not self._open.take_turn(self):
                self._begin_part("turn")
                return
        self._take_pinned()

    def _take_pinned(self) -> None:
        pool = self._pool
        assert pool is not None
        assert self._open is not None
        place = pool.acquire(self, self.call.deadline, self._open.seat)
        if isinstance(place, Seat):
            self._run(place)
        else:
            self._ticket = place
            self._begin_part("queue")

    def _run(self, seat: Seat) -> None:
        """Start the call in its slot; once more elsewhere where the worker goes in between."""
        pool = self._pool
        assert pool is not None
        if self._open is not None:
            self._open.seat = seat
        if self.call.deadline != math.inf and trio.current_time() >= self.call.deadline:
            pool.release(seat)
            raise DeadlineExceeded("the deadline passed before the request was started")
        if self._span is not None:
            self._begin_part("run", worker=seat.executor.name)
        try:
            self._exchange = seat.executor.submit(self.call, pool.offer, self)
        except WorkerLost as lost:
            self._close_part()
            pool.retire(seat.executor, lost.message)
            pool.release(seat)
            self._place(self._dispatcher.match(self.call.need))
            return
        except BaseException:
            self._close_part()
            pool.release(seat)
            raise
        self._seat = seat
        if pool.timings is not None and not self._submitted:
            pool.timings.queue.observe(self._started - self.arrived)
        self._submitted = True

    def _may_retry(self) -> bool:
        return self.offer.idempotent and not self._answered and not self._retried

    def _retry(self) -> None:
        self._retried = True
        self._started = now()
        try:
            self._place(self._dispatcher.match(self.call.need))
        except AnyServeError as error:
            self._end(error)

    # Its end.

    def _expire(self) -> None:
        self._stop()
        self._end(DeadlineExceeded("the deadline passed before the request was answered"))

    def _end(self, error: AnyServeError | None) -> None:
        if not self._over:
            self._finish(Outcome.ANSWERED if error is None else self._outcome(error))
            # Another, whose turn that made it, may have had this one cancelled.
            consumer, self._consumer = self._consumer, _NOBODY
            consumer.on_end(error)

    def _stop(self) -> None:
        """Wait and run no more."""
        if self._ticket is not None:
            assert self._pool is not None
            self._pool.withdraw(self._ticket)
        if self._exchange is not None:
            self._exchange.close()

    def _finish(self, outcome: Outcome) -> None:
        """Count it, and let go of all that it held but the slot."""
        self._over = True
        ended = now()
        dispatcher, pool = self._dispatcher, self._pool
        if self._deadline is not None:
            dispatcher.deadlines.drop(self._deadline)
        if self._exchange is None:
            self._leave_sequence()  # else when the handler has ended
        dispatcher.finish(self)
        if self._span is not None:
            if self._exchange is None:
                self._close_part()
            self._span.args["outcome"] = outcome.value
            if pool is not None:
                self._span.args["capability"] = pool.offer.name
            self._span.close(error=None if outcome is Outcome.ANSWERED else outcome.value)
        if pool is None:
            dispatcher.turned_away += 1
        else:
            pool.statistics.record(
                outcome,
                seconds=ended - self.arrived,
                queued=self._started - self.arrived,
                batch=self._batch,
                wall_ms=time.time_ns() // 1_000_000,
            )

    def _time_reply(self, timings: Timings) -> None:
        time = now()
        if self._answered:
            timings.between.observe(time - self._replied)
        else:
            timings.first.observe(time - self.arrived)
        self._replied = time

    def _leave_sequence(self) -> None:
        if self._open is not None:
            assert self.call.sequence is not None
            left, self._open = self._open, None
            sequences = self._dispatcher.sequences(self.offer.name)
            sequences.leave(self.call.sequence, left, self, now())

    def _begin_part(self, name: str, **args: str) -> None:
        """Record that it waits or runs, where all of it is recorded."""
        if self._span is not None:
            self._part = traces.begin_part(name, self.call.trace, **args)

    def _close_part(self) -> None:
        if self._part is not None:
            self._part.close()

    def _outcome(self, error: AnyServeError) -> Outcome:
        if isinstance(error, DeadlineExceeded) and trio.current_time() >= self.call.deadline:
            return Outcome.EXPIRED
        return Outcome.FAILED if self._submitted else Outcome.REFUSED
