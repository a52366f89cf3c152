"""The dispatcher against executors that do nothing by themselves: the test ends their calls.

They stand for workers because the order of events is what is tested; real workers are under
test in `test_replica_*.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from anyserve.capability import Capability
from anyserve.errors import (
    AnyServeError,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from anyserve.messages import Sequence
from anyserve.offers import Offer
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Call, Exchange, Listener, Reply, WorkerLost
from anyserve.replica.execution import Execution
from anyserve.replica.pool import State
from anyserve.replica.replies import Replies
from anyserve.replica.statistics import Outcome


class ManualExchange(Exchange):
    """Notes that it was cancelled."""

    def __init__(self, listener: Listener, number: int, cancelled: list[int]) -> None:
        super().__init__(listener)
        self._number = number
        self._cancelled = cancelled

    def on_cancelled(self) -> None:
        self._cancelled.append(self._number)

    def consumed(self) -> None:
        pass


@attrs.define(eq=False)
class ManualExecutor:
    """Takes calls and leaves them to the test."""

    name: str = "manual"
    calls: list[Call] = attrs.field(factory=list)
    exchanges: list[Exchange] = attrs.field(factory=list)
    cancelled: list[int] = attrs.field(factory=list)
    is_lost: bool = False

    def submit(self, call: Call, offer: Offer, listener: Listener) -> Exchange:
        if self.is_lost:
            raise WorkerLost("it is lost")
        number = len(self.calls)
        self.calls.append(call)
        exchange = ManualExchange(listener, number, self.cancelled)
        self.exchanges.append(exchange)
        return exchange

    def lost(self, reason: str) -> None:
        self.is_lost = True
        for exchange in self.exchanges:
            exchange.end(error=WorkerLost(reason))

    @property
    def order(self) -> list[str]:
        return [call.request_id for call in self.calls]


@attrs.define
class Listening:
    """A consumer that keeps what it hears of the end."""

    heard: list[AnyServeError | None]
    then: Callable[[], None] = lambda: None

    def on_reply(self, reply: Reply) -> None:
        reply.release()

    def on_end(self, error: AnyServeError | None) -> None:
        self.heard.append(error)
        self.then()


def serving(*executors: ManualExecutor, **offer: Any) -> Dispatcher:
    """A dispatcher with workers for `echo`."""
    dispatcher = Dispatcher()
    for executor in executors:
        dispatcher.worker_up(executor, [Offer(Capability("echo"), **offer)])
    dispatcher.set_state("echo", State.READY)
    return dispatcher


def a_call(request_id: str = "", **fields: Any) -> Call:
    return Call(Capability("echo"), b"", request_id=request_id, **fields)


async def consume(dispatcher: Dispatcher, call: Call, results: list[Any] | None = None) -> None:
    """Run a call to its end and note how it ended."""
    try:
        async with Replies(dispatcher, call) as execution:
            replies = 0
            while await execution.receive() is not None:
                replies += 1
    except AnyServeError as error:
        if results is not None:
            results.append((call.request_id, error))
        return
    if results is not None:
        results.append((call.request_id, replies))


def outcomes(dispatcher: Dispatcher) -> dict[Outcome, int]:
    counts = dispatcher.pool("echo").statistics.outcomes
    return {outcome: count for outcome, count in counts.items() if count}


async def test_a_call_gets_its_replies_and_then_the_end() -> None:
    executor = ManualExecutor()
    dispatcher = serving(executor)
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume, dispatcher, a_call("a"), results)
        await trio.testing.wait_all_tasks_blocked()
        executor.exchanges[0].deliver(Reply(()))
        executor.exchanges[0].deliver(Reply(()))
        executor.exchanges[0].end(batch=4)
    assert results == [("a", 2)]
    assert outcomes(dispatcher) == {Outcome.ANSWERED: 1}
    assert dispatcher.pool("echo").statistics.inferences == 4
    assert dispatcher.pool("echo").running == 0


async def test_waiting_calls_are_served_by_deadline_and_then_by_arrival(
    mock_clock: trio.testing.MockClock,
) -> None:
    executor = ManualExecutor()
    dispatcher = serving(executor, concurrency=1)
    deadlines = {"first": math.inf, "none": math.inf, "late": 30.0, "soon": 10.0, "soon2": 10.0}
    async with trio.open_nursery() as nursery:
        for request_id, deadline in deadlines.items():
            nursery.start_soon(consume, dispatcher, a_call(request_id, deadline=deadline))
            await trio.testing.wait_all_tasks_blocked()
        for _ in deadlines:
            executor.exchanges[-1].end()
            await trio.testing.wait_all_tasks_blocked()
    assert executor.order == ["first", "soon", "soon2", "late", "none"]


async def test_calls_go_to_the_worker_with_the_smallest_share_in_use() -> None:
    one, two = ManualExecutor("one"), ManualExecutor("two")
    dispatcher = serving(one, two, concurrency=2)
    async with trio.open_nursery() as nursery:
        for request_id in "abcd":
            nursery.start_soon(consume, dispatcher, a_call(request_id))
            await trio.testing.wait_all_tasks_blocked()
        assert (one.order, two.order) == (["a", "c"], ["b", "d"])
        nursery.cancel_scope.cancel()


async def test_a_full_queue_refuses_at_once() -> None:
    executor = ManualExecutor()
    dispatcher = serving(executor, concurrency=1, queue=1)
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        for request_id in "ab":
            nursery.start_soon(consume, dispatcher, a_call(request_id))
            await trio.testing.wait_all_tasks_blocked()
        await consume(dispatcher, a_call("c"), results)
        nursery.cancel_scope.cancel()
    ((_, error),) = results
    assert isinstance(error, ResourceExhausted)
    assert "queue is full" in error.message
    assert outcomes(dispatcher)[Outcome.REFUSED] == 1


async def test_a_deadline_that_the_expected_wait_exceeds_refuses_at_once(
    mock_clock: trio.testing.MockClock,
) -> None:
    executor = ManualExecutor()
    dispatcher = serving(executor, concurrency=1)
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume, dispatcher, a_call("slow"))
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(10)
        executor.exchanges[0].end()
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(consume, dispatcher, a_call("running"))
        await trio.testing.wait_all_tasks_blocked()
        now = trio.current_time()
        await consume(dispatcher, a_call("hopeless", deadline=now + 5), results)
        nursery.start_soon(consume, dispatcher, a_call("patient", deadline=now + 60))
        await trio.testing.wait_all_tasks_blocked()
        assert dispatcher.pool("echo").waiting == 1
        nursery.cancel_scope.cancel()
    ((request_id, error),) = results
    assert request_id == "hopeless"
    assert isinstance(error, ResourceExhausted)


async def test_a_call_cancelled_in_the_queue_leaves_it_and_never_starts() -> None:
    executor = ManualExecutor()
    dispatcher = serving(executor, concurrency=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume, dispatcher, a_call("a"))
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(consume, dispatcher, a_call("b"))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert dispatcher.pool("echo").waiting == 0
        executor.exchanges[0].end()
    assert executor.order == ["a"]
    assert outcomes(dispatcher) == {Outcome.ANSWERED: 1, Outcome.CANCELLED: 1}


async def test_a_call_that_expires_in_the_queue_counts_as_expired(
    autojump_clock: trio.testing.MockClock,
) -> None:
    executor = ManualExecutor()
    dispatcher = serving(executor, concurrency=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume, dispatcher, a_call("a"))
        await trio.testing.wait_all_tasks_blocked()
        deadline = trio.current_time() + 5
        with trio.CancelScope(deadline=deadline):
            await consume(dispatcher, a_call("b", deadline=deadline))
        nursery.cancel_scope.cancel()
    assert outcomes(dispatcher)[Outcome.EXPIRED] == 1


async def test_a_slot_given_at_the_moment_of_cancellation_is_not_lost() -> None:
    executor = ManualExecutor()
    dispatcher = serving(executor, concurrency=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume, dispatcher, a_call("a"))
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as inner:
            inner.start_soon(consume, dispatcher, a_call("b"))
            await trio.testing.wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
            executor.exchanges[0].end()  # b starts, and its task does not know either yet
        assert executor.cancelled == [1]
        nursery.start_soon(consume, dispatcher, a_call("c"))
        await trio.testing.wait_all_tasks_blocked()
        assert executor.order == ["a", "b"]
        executor.exchanges[1].end()
        assert executor.order == ["a", "b", "c"]
        executor.exchanges[2].end()


async def test_the_slot_of_a_cancelled_call_is_free_only_when_its_handler_has_ended() -> None:
    executor = ManualExecutor()
    dispatcher = serving(executor, concurrency=1)
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as inner:
            inner.start_soon(consume, dispatcher, a_call("a"))
            await trio.testing.wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
        assert executor.cancelled == [0]
        nursery.start_soon(consume, dispatcher, a_call("b"))
        await trio.testing.wait_all_tasks_blocked()
        assert executor.order == ["a"]
        executor.exchanges[0].end(error=Internal("cancelled"))
        await trio.testing.wait_all_tasks_blocked()
        assert executor.order == ["a", "b"]
        executor.exchanges[1].end()


async def test_a_lost_worker_ends_its_calls_and_those_that_wait_for_it() -> None:
    executor = ManualExecutor()
    dispatcher = serving(executor, concurrency=1)
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        for request_id in "ab":
            nursery.start_soon(consume, dispatcher, a_call(request_id), results)
            await trio.testing.wait_all_tasks_blocked()
        dispatcher.worker_down(executor, "it was killed by SIGKILL")
        executor.lost("it was killed by SIGKILL")
    assert {request_id for request_id, _ in results} == {"a", "b"}
    assert all(isinstance(error, Unavailable) for _, error in results)
    assert all("SIGKILL" in error.message for _, error in results)
    with pytest.raises(Unavailable, match="SIGKILL"):
        async with Replies(dispatcher, a_call("c")):
            pass


@pytest.mark.parametrize(
    "idempotent, replied, retried",
    [(True, False, True), (True, True, False), (False, False, False)],
)
async def test_only_an_idempotent_call_that_had_sent_nothing_runs_again_elsewhere(
    idempotent: bool, replied: bool, retried: bool
) -> None:
    one, two = ManualExecutor("one"), ManualExecutor("two")
    dispatcher = serving(one, two, idempotent=idempotent)
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume, dispatcher, a_call("a"), results)
        await trio.testing.wait_all_tasks_blocked()
        if replied:
            one.exchanges[0].deliver(Reply(()))
            await trio.testing.wait_all_tasks_blocked()
        dispatcher.worker_down(one, "it died")
        one.lost("it died")
        await trio.testing.wait_all_tasks_blocked()
        assert two.order == (["a"] if retried else [])
        if retried:
            two.exchanges[0].end()
    ((_, result),) = results
    assert (result == 0) if retried else isinstance(result, WorkerLost)


async def test_a_retry_happens_at_most_once() -> None:
    executors = [ManualExecutor(str(number)) for number in range(3)]
    dispatcher = serving(*executors, idempotent=True)
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume, dispatcher, a_call("a"), results)
        for executor in executors[:2]:
            await trio.testing.wait_all_tasks_blocked()
            dispatcher.worker_down(executor, "it died")
            executor.lost("it died")
    assert executors[2].order == []
    assert isinstance(results[0][1], WorkerLost)


async def test_the_least_powerful_offer_serves_and_a_stronger_one_takes_over_when_it_is_full() -> (
    None
):
    plain, heavy = ManualExecutor("plain"), ManualExecutor("heavy")
    dispatcher = Dispatcher()
    dispatcher.worker_up(plain, [Offer(Capability("echo"), concurrency=1, queue=0)])
    dispatcher.worker_up(heavy, [Offer(Capability("echo.heavy"), concurrency=1)])
    for name in ("echo", "echo.heavy"):
        dispatcher.set_state(name, State.READY)
    async with trio.open_nursery() as nursery:
        for request_id in "ab":
            nursery.start_soon(consume, dispatcher, a_call(request_id))
            await trio.testing.wait_all_tasks_blocked()
        assert (plain.order, heavy.order) == (["a"], ["b"])
        nursery.cancel_scope.cancel()


async def test_metadata_of_a_name_is_of_the_pool_that_its_requests_go_to() -> None:
    dispatcher = Dispatcher()
    dispatcher.worker_up(ManualExecutor(), [Offer(Capability("echo.heavy"))])
    dispatcher.declare(Offer(Capability("echo")))
    dispatcher.set_state("echo.heavy", State.READY)
    assert dispatcher.match(Capability("echo"))[0].offer.name == "echo.heavy"
    with pytest.raises(NotFound, match=r"there is: echo\.heavy"):
        dispatcher.match(Capability("speech"))


async def test_a_version_that_is_needed_is_served_by_the_least_powerful_that_has_it() -> None:
    plain, heavy = ManualExecutor("plain"), ManualExecutor("heavy")
    dispatcher = Dispatcher()
    full = {"concurrency": 1, "queue": 0}
    dispatcher.worker_up(plain, [Offer(Capability("echo", {}, "1"), **full)])
    dispatcher.worker_up(heavy, [Offer(Capability("echo.heavy", {}, "2"), **full)])
    for name in ("echo", "echo.heavy"):
        dispatcher.set_state(name, State.READY)
    need = {version: Capability("echo", {}, version) for version in ("", "1", "2", "3")}
    matched = {
        version: [pool.offer.name for pool in dispatcher.match(need[version])]
        for version in ("", "1", "2")
    }
    assert matched == {"": ["echo", "echo.heavy"], "1": ["echo"], "2": ["echo.heavy"]}
    with pytest.raises(NotFound, match=r"version=1, not 3; echo\.heavy has version=2, not 3"):
        dispatcher.match(need["3"])
    # One that finds its version full does not spill to another.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume, dispatcher, Call(need["1"], b"", request_id="a"))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ResourceExhausted):
            async with Replies(dispatcher, Call(need["1"], b"")):
                pass
        assert (plain.order, heavy.order) == (["a"], [])
        nursery.cancel_scope.cancel()
    dispatcher.set_state("echo.heavy", State.UNAVAILABLE)
    with pytest.raises(NotFound):
        dispatcher.match(need["2"])


async def test_what_is_needed_of_an_offer_is_looked_for_in_what_is_offered_now() -> None:
    dispatcher = Dispatcher()
    need = {model: Capability("echo", {"model": model}) for model in ("one", "two")}
    for model, other in (("one", "two"), ("two", "one")):
        dispatcher.worker_up(ManualExecutor(model), [Offer(Capability("echo", {"model": model}))])
        dispatcher.set_state("echo", State.READY)
        for _ in range(2):
            assert [pool.offer.name for pool in dispatcher.match(need[model])] == ["echo"]
            with pytest.raises(NotFound, match=f"model={model}, not {other}"):
                dispatcher.match(need[other])
    for room in range(1000):  # clients may ask for any
        assert dispatcher.match(Capability("echo", {"model": "two"}))
        with pytest.raises(NotFound):
            dispatcher.match(Capability("echo", {"max_room": room}))


async def test_an_unknown_capability_is_not_found_and_the_message_names_what_there_is() -> None:
    dispatcher = serving(ManualExecutor())
    with pytest.raises(NotFound, match="there is: echo"):
        async with Replies(dispatcher, Call(Capability("speech"), b"")):
            pass


async def test_draining_refuses_new_calls_and_waits_for_those_in_flight() -> None:
    executor = ManualExecutor()
    dispatcher = serving(executor)
    drained = trio.Event()

    async def drain() -> None:
        await dispatcher.drain()
        drained.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume, dispatcher, a_call("a"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(drain)
        await trio.testing.wait_all_tasks_blocked()
        assert not drained.is_set()
        with pytest.raises(Unavailable, match="draining"):
            async with Replies(dispatcher, a_call("b")):
                pass
        executor.exchanges[0].end()
    assert drained.is_set()


def in_sequence(
    request_id: str, identity: int | str = 1, *, start: bool = False, end: bool = False
) -> Call:
    return a_call(request_id, sequence=Sequence(identity, start, end))


async def finish(executor: ManualExecutor) -> None:
    await trio.testing.wait_all_tasks_blocked()
    executor.exchanges[-1].end()
    await trio.testing.wait_all_tasks_blocked()


async def test_a_sequence_stays_on_its_worker_and_runs_one_request_at_a_time() -> None:
    one, two = ManualExecutor("one"), ManualExecutor("two")
    dispatcher = serving(one, two, sequence=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume, dispatcher, in_sequence("a", start=True))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(consume, dispatcher, in_sequence("b"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(consume, dispatcher, in_sequence("c", end=True))
        nursery.start_soon(consume, dispatcher, in_sequence("other", 2, start=True, end=True))
        await trio.testing.wait_all_tasks_blocked()
        assert (one.order, two.order) == (["a"], ["other"])
        await finish(two)
        for expected in (["a", "b"], ["a", "b", "c"]):
            await finish(one)
            assert one.order == expected
        await finish(one)
    with pytest.raises(InvalidArgument, match="not open"):
        async with Replies(dispatcher, in_sequence("late")):
            pass


async def test_the_turn_of_a_cancelled_request_is_over_when_its_handler_has_ended() -> None:
    executor = ManualExecutor()
    dispatcher = serving(executor, sequence=True, concurrency=2)
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as inner:
            inner.start_soon(consume, dispatcher, in_sequence("a", start=True))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(consume, dispatcher, in_sequence("b"))
            await trio.testing.wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
        assert executor.cancelled == [0]
        await trio.testing.wait_all_tasks_blocked()
        assert executor.order == ["a"]
        executor.exchanges[0].end()
        assert executor.order == ["a", "b"]
        await finish(executor)


async def test_a_sequence_that_is_idle_for_too_long_is_over(
    mock_clock: trio.testing.MockClock,
) -> None:
    executor = ManualExecutor()
    dispatcher = serving(executor, sequence=True, sequence_idle=10.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume, dispatcher, in_sequence("a", start=True))
        await finish(executor)
    mock_clock.jump(11)
    with pytest.raises(InvalidArgument, match="idle"):
        async with Replies(dispatcher, in_sequence("b")):
            pass


async def test_a_sequence_whose_worker_is_gone_is_lost_and_may_start_again() -> None:
    one, two = ManualExecutor("one"), ManualExecutor("two")
    dispatcher = serving(one, two, sequence=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume, dispatcher, in_sequence("a", start=True))
        await finish(one)
        dispatcher.worker_down(one, "it died")
        one.lost("it died")
        with pytest.raises(Unavailable, match="gone"):
            async with Replies(dispatcher, in_sequence("b")):
                pass
        nursery.start_soon(consume, dispatcher, in_sequence("c", start=True, end=True))
        await finish(two)
    assert two.order == ["c"]


async def test_a_sequence_does_not_move_to_another_worker_when_its_own_dies_under_it() -> None:
    one, two = ManualExecutor("one"), ManualExecutor("two")
    dispatcher = serving(one, two, sequence=True, idempotent=True)
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume, dispatcher, in_sequence("a", start=True), results)
        await trio.testing.wait_all_tasks_blocked()
        dispatcher.worker_down(one, "it died")
        one.lost("it died")
    assert isinstance(results[0][1], Unavailable)
    assert two.order == []


async def test_a_long_sequence_whose_worker_dies_is_refused_to_its_last_request() -> None:
    executor = ManualExecutor()
    dispatcher = serving(executor, sequence=True)
    heard: list[AnyServeError | None] = []
    for number in range(3_000):
        call = in_sequence(str(number), start=not number)
        Execution(dispatcher, call, Listening(heard)).start()
    dispatcher.worker_down(executor, "it died")
    executor.lost("it died")
    assert len(heard) == 3_000
    assert all(isinstance(error, Unavailable) for error in heard)
    assert dispatcher.in_flight == 0


async def test_a_sequence_is_retried_where_it_is_whatever_was_loaded_since() -> None:
    plain, heavy = ManualExecutor("plain"), ManualExecutor("heavy")
    dispatcher = Dispatcher()
    dispatcher.worker_up(plain, [Offer(Capability("echo"), sequence=True)])
    dispatcher.worker_up(heavy, [Offer(Capability("echo.heavy"), sequence=True, idempotent=True)])
    dispatcher.set_state("echo.heavy", State.READY)
    heard: list[AnyServeError | None] = []
    Execution(dispatcher, in_sequence("a", start=True), Listening(heard)).start()
    dispatcher.set_state("echo", State.READY)
    heavy.lost("it died, and the dispatcher hears of it by this request")
    assert heavy.order == ["a"]
    assert plain.order == []
    assert [type(error) for error in heard] == [Unavailable]
    assert [pool.running for pool in dispatcher.pools] == [0, 0]


async def test_whoever_cancels_hears_no_more_even_while_the_end_is_on_its_way() -> None:
    """The end of one request gives the turn to another, whose end may have the first cancelled."""
    executor = ManualExecutor()
    dispatcher = serving(executor, sequence=True)
    heard: list[AnyServeError | None] = []
    first = Execution(dispatcher, in_sequence("a", start=True), Listening(heard))
    second = Execution(dispatcher, in_sequence("b"), Listening([], then=first.cancel))
    first.start()
    second.start()
    dispatcher.worker_down(executor, "it died")
    executor.lost("it died")
    assert heard == []
    assert dispatcher.in_flight == 0


async def test_every_call_ends_in_exactly_one_outcome(
    autojump_clock: trio.testing.MockClock,
) -> None:
    executor = ManualExecutor()
    dispatcher = serving(executor, concurrency=1, queue=2)
    endings: list[Callable[[Exchange], None]] = [
        lambda exchange: exchange.end(),
        lambda exchange: exchange.end(error=Internal("broken")),
    ]
    total = 40

    async def client(number: int) -> None:
        await trio.sleep(number % 5)
        with trio.move_on_after(number % 7 + 0.5):
            await consume(
                dispatcher, a_call(str(number), deadline=trio.current_time() + number % 7 + 0.5)
            )

    async def worker() -> None:
        done = 0
        while True:
            await trio.sleep(0.3)
            while done < len(executor.exchanges):
                endings[done % 2](executor.exchanges[done])
                done += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker)
        async with trio.open_nursery() as clients:
            for number in range(total):
                clients.start_soon(client, number)
        nursery.cancel_scope.cancel()
    assert sum(dispatcher.pool("echo").statistics.outcomes.values()) == total
    assert dispatcher.in_flight == 0
    assert dispatcher.pool("echo").waiting == 0
