"""Requests in the dispatcher, under any schedule of what can happen to them and around them.

The workers do nothing by themselves, the clock moves only when told, and after each step all that
the dispatcher holds is counted against what it should hold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from anyserve.capability import Capability
from anyserve.errors import (
    AnyServeError,
    DeadlineExceeded,
    Internal,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from anyserve.messages import Sequence
from anyserve.offers import Offer
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Call, Exchange, Listener, Reply, WorkerLost
from anyserve.replica.execution import Execution
from anyserve.replica.pool import State
from anyserve.replica.statistics import Outcome

OFFERS = {
    "echo": Offer(Capability("echo"), concurrency=1, queue=2, idempotent=True),
    "echo.heavy": Offer(Capability("echo.heavy"), concurrency=2, queue=2),
    "chain": Offer(
        Capability("chain"), concurrency=2, queue=2, sequence=True, sequence_idle=4, idempotent=True
    ),
    "chain.heavy": Offer(
        Capability("chain.heavy"), concurrency=1, queue=2, sequence=True, idempotent=True
    ),
}
MOST_WORKERS = 4


class ManualExchange(Exchange):
    """A call that the test replies to and ends."""

    def __init__(self, listener: Listener, offer: Offer) -> None:
        super().__init__(listener)
        self.execution = listener
        self.offer = offer
        self.cancels = 0

    def on_cancelled(self) -> None:
        self.cancels += 1

    def consumed(self) -> None:
        pass


@attrs.define(eq=False)
class Worker:
    """An `Executor` that takes calls and leaves them to the test."""

    world: World
    offers: list[Offer]
    name: str = "manual"
    exchanges: list[ManualExchange] = attrs.field(factory=list)
    is_lost: bool = False
    is_full: bool = False
    """Whether it can't take what it is given."""

    def submit(self, call: Call, offer: Offer, listener: Listener) -> Exchange:
        if self.is_lost:
            raise WorkerLost("it is lost")
        if self.is_full:
            raise ResourceExhausted("no frame can hold it")
        self.world.submitted(listener, offer)
        exchange = ManualExchange(listener, offer)
        self.exchanges.append(exchange)
        return exchange

    def lost(self, reason: str) -> None:
        self.is_lost = True
        for exchange in tuple(self.exchanges):
            exchange.end(error=WorkerLost(reason))


@attrs.define(eq=False)
class Client:
    """Starts one request; what it is told must be told to one that still listens."""

    world: World
    call: Call
    on_news: Callable[[Client], None] | None
    """What it does, once, when it hears something."""
    execution: Execution = attrs.field(init=False)
    counted: bool = True
    """Whether it was ever a request of a capability."""
    over: bool = False
    answered: bool = False
    replies: int = 0
    taken_as: list[Offer] = attrs.field(factory=list)
    """What it was given to a worker for, each time."""

    def __attrs_post_init__(self) -> None:
        self.execution = Execution(self.world.dispatcher, self.call, self)

    def start(self) -> None:
        try:
            self.execution.start()
        except AnyServeError as error:
            assert not self.over
            self.over = True
            self.counted = not isinstance(error, NotFound) and "draining" not in error.message

    def on_reply(self, reply: Reply) -> None:
        assert not self.over
        self.replies += 1
        reply.release()
        self._react()

    def on_end(self, error: AnyServeError | None) -> None:
        assert not self.over
        self.over, self.answered = True, error is None
        if isinstance(error, DeadlineExceeded):
            assert trio.current_time() >= self.call.deadline
        self._react()

    def leave(self, error: AnyServeError | None = None) -> None:
        if not self.over:
            self.over = True
            self.execution.cancel(error)

    def _react(self) -> None:
        react, self.on_news = self.on_news, None
        if react is not None:
            react(self)


class World:
    """A dispatcher with workers that come and go, and clients."""

    def __init__(self, clock: trio.testing.MockClock) -> None:
        self.clock = clock
        self.dispatcher = Dispatcher()
        self.workers: list[Worker] = []
        self.clients: list[Client] = []
        self.by_execution: dict[Any, Client] = {}
        self.open: list[ManualExchange] = []
        self.released: Counter[int] = Counter()
        self.replies = 0
        self.up(list(OFFERS))
        for name in OFFERS:
            self.dispatcher.set_state(name, State.READY)

    # What can happen.

    def call(
        self, need: str, identity: int, start: bool, end: bool, budget: float, reaction: str
    ) -> None:
        """A client comes."""
        client = Client(
            self,
            Call(
                Capability(need),
                b"",
                deadline=trio.current_time() + budget,
                sequence=Sequence(identity, start, end) if "chain" in need else None,
            ),
            REACTIONS[reaction],
        )
        self.clients.append(client)
        self.by_execution[client.execution] = client
        client.start()

    def leave(self, index: int, faulty: bool) -> None:
        """A client goes, or finds something wrong with what it was sent."""
        if live := self.live:
            live[index % len(live)].leave(Unimplemented("not that") if faulty else None)

    def reply(self, index: int) -> None:
        """A handler that runs says something, also one whose request was cancelled."""
        if running := self.running:
            number = self.replies = self.replies + 1
            release = partial(self.released.update, (number,))
            running[index % len(running)].deliver(Reply((b"",), release))

    def end(self, index: int, failed: bool) -> None:
        """A handler returns or fails."""
        if running := self.running:
            running[index % len(running)].end(error=Internal("broken") if failed else None)

    def time(self, seconds: float) -> None:
        """Time passes."""
        self.clock.jump(seconds)
        self.dispatcher.deadlines.expire(trio.current_time())

    def up(self, names: list[str]) -> None:
        """A worker is ready."""
        if len(self.workers) < MOST_WORKERS:
            worker = Worker(self, [OFFERS[name] for name in names])
            self.workers.append(worker)
            self.dispatcher.worker_up(worker, worker.offers)

    def full(self, index: int, is_full: bool) -> None:
        """From now on a worker can't take what it is given, or can again."""
        if self.workers:
            self.workers[index % len(self.workers)].is_full = is_full

    def retire(self, index: int) -> None:
        """A worker is to be replaced."""
        if self.workers:
            self.dispatcher.worker_retiring(self.workers[index % len(self.workers)], "it hangs")

    def dies(self, index: int, known_first: bool) -> None:
        """A worker is gone; mostly the dispatcher hears of that before the calls end."""
        if self.workers:
            worker = self.workers[index % len(self.workers)]
            if not known_first:
                worker.lost("it died")
                self.check()
            self.dispatcher.worker_down(worker, "it died")
            worker.lost("it died")
            self.workers.remove(worker)

    def breaks(self, index: int) -> None:
        """A worker's link breaks, and nobody has heard of it: it takes no calls."""
        if self.workers:
            self.workers[index % len(self.workers)].lost("its link broke")

    def state(self, name: str, state: State) -> None:
        """A capability is unloaded or loaded."""
        self.dispatcher.set_state(name, state, "the test says so")

    # What must hold.

    @property
    def live(self) -> list[Client]:
        return [client for client in self.clients if not client.over]

    @property
    def running(self) -> list[ManualExchange]:
        self.open = [exchange for exchange in self.open if not exchange.ended]
        self.open += [
            exchange
            for worker in self.workers
            for exchange in worker.exchanges
            if not exchange.ended and exchange not in self.open
        ]
        return self.open

    def submitted(self, execution: Any, offer: Offer) -> None:
        """A worker takes a call: one that may run, and for the first time or again."""
        client = self.by_execution[execution]
        assert not client.over
        client.taken_as.append(offer)
        assert len(client.taken_as) <= 2
        assert len(client.taken_as) == 1 or (client.taken_as[0].idempotent and not client.replies)
        if offer.sequence:
            assert self._before(client) == []

    def _before(self, client: Client) -> list[Execution]:
        """Those of the client's sequence that came before it and have not ended."""
        ours = client.execution._open
        earlier = [other.execution for other in self.clients[: self.clients.index(client)]]
        return [other for other in earlier if other._open is ours and not other._over]

    def check(self) -> None:
        """Count everything."""
        live, running, dispatcher = self.live, self.running, self.dispatcher
        with_slot = Counter(exchange.offer.name for exchange in running)
        served = {exchange.execution for exchange in running}
        waiting = 0
        for pool in dispatcher.pools:
            assert pool.running == with_slot[pool.offer.name]
            assert all(0 <= seat.running <= seat.concurrency for seat in pool.seats)
            assert pool.waiting <= pool.offer.queue
            waiting += pool.waiting
            for _, ticket in pool._queue:
                # Nobody waits for what is free, or for what will never be.
                assert pool.serving
                assert not self.by_execution[ticket.waiting].over
                seats = pool.seats if ticket.pinned is None else [ticket.pinned]
                assert all(seat.running >= seat.slots for seat in seats)
        # A request that was cancelled has its turn until its handler has ended.
        sequences: dict[Any, int] = Counter()
        for execution in {client.execution for client in live} | served:
            if execution._open is not None:
                sequences[execution._open] += 1
        behind_others = sum(requests - 1 for requests in sequences.values())
        assert waiting + behind_others == sum(c.execution not in served for c in live)
        assert dispatcher.in_flight == len(live)
        assert len(dispatcher.deadlines) == sum(c.call.deadline < math.inf for c in live)
        assert all(exchange.cancels == 0 for exchange in running if self._wanted(exchange))
        assert all(exchange.cancels == 1 for exchange in running if not self._wanted(exchange))
        outcomes = self.outcomes
        assert outcomes.total() == sum(c.over and c.counted for c in self.clients)
        # A client may leave between the end of its request and hearing of that.
        assert outcomes[Outcome.ANSWERED] >= sum(c.answered for c in self.clients)
        assert list(self.released.values()) == [1] * self.replies

    def _wanted(self, exchange: ManualExchange) -> bool:
        return not self.by_execution[exchange.execution].over

    @property
    def outcomes(self) -> Counter[Outcome]:
        total: Counter[Outcome] = Counter()
        for pool in self.dispatcher.pools:
            total.update(pool.statistics.outcomes)
        return total

    async def wind_down(self) -> None:
        """Take no more, let all that runs end: nothing and nobody is left over."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.dispatcher.drain)
            await trio.testing.wait_all_tasks_blocked()
            refused = Client(self, Call(Capability("echo"), b""), None)
            with pytest.raises(Unavailable, match="draining"):
                refused.execution.start()
            while running := self.running:
                running[0].end()
                self.check()
            assert self.live == []
            # The drain ends with the last of them, and the nursery with that.
        self.check()
        assert all(pool.running == pool.waiting == 0 for pool in self.dispatcher.pools)
        assert self.dispatcher.in_flight == len(self.dispatcher.deadlines) == 0


def _ask_again(client: Client) -> None:
    # In the middle of whatever is told to the others.
    client.world.call("echo", 1, False, False, 2, "nothing")


def _chase_others(client: Client) -> None:
    for other in client.world.live[:2]:
        other.leave()


REACTIONS: dict[str, Callable[[Client], None] | None] = {
    "nothing": None,
    "leave": Client.leave,
    "ask again": _ask_again,
    "chase others": _chase_others,
}

_index = st.integers(0, 7)
_steps = st.one_of(
    st.tuples(
        st.just("call"),
        st.sampled_from(["echo", "echo", "echo.heavy", "chain", "chain", "chain.heavy", "nothing"]),
        st.integers(1, 2),
        st.booleans(),
        st.booleans(),
        st.sampled_from([math.inf, math.inf, 1.0, 3.0, 0.0]),
        st.sampled_from(list(REACTIONS)),
    ),
    st.tuples(st.just("leave"), _index, st.booleans()),
    st.tuples(st.just("reply"), _index),
    st.tuples(st.just("end"), _index, st.booleans()),
    st.tuples(st.just("time"), st.sampled_from([0.5, 1.0, 5.0])),
    st.tuples(st.just("up"), st.lists(st.sampled_from(list(OFFERS)), unique=True)),
    st.tuples(st.just("full"), _index, st.booleans()),
    st.tuples(st.just("retire"), _index),
    st.tuples(st.just("dies"), _index, st.booleans()),
    st.tuples(st.just("breaks"), _index),
    st.tuples(
        st.just("state"),
        st.sampled_from(list(OFFERS)),
        st.sampled_from([State.READY, State.READY, State.LOADING, State.UNAVAILABLE]),
    ),
)


@settings(max_examples=500)
@given(st.lists(_steps, min_size=5, max_size=60))
def test_whatever_happens_each_request_ends_once_and_leaves_nothing_behind(
    steps: list[Any],
) -> None:
    clock = trio.testing.MockClock()

    async def scenario() -> None:
        world = World(clock)
        for name, *arguments in steps:
            getattr(world, name)(*arguments)
            world.check()
        await world.wind_down()

    trio.run(scenario, clock=clock)
