from __future__ import annotations

import math

import attrs
from hypothesis import given
from hypothesis import strategies as st

from anyserve.replica.policy import (
    DeadlineQueue,
    ServiceTime,
    expected_wait,
    least_loaded,
    refusal,
)


@attrs.frozen
class Worker:
    running: int
    slots: int
    others: int


deadlines = st.one_of(st.just(math.inf), st.floats(0, 100))


@given(st.lists(deadlines, max_size=20))
def test_the_order_of_service_is_by_deadline_and_then_by_arrival(
    given_deadlines: list[float],
) -> None:
    queue: DeadlineQueue[int] = DeadlineQueue()
    for arrival, deadline in enumerate(given_deadlines):
        queue.push(deadline, arrival)
    expected = sorted(range(len(given_deadlines)), key=lambda i: (given_deadlines[i], i))
    assert [item for _, item in queue] == expected
    assert len(queue) == len(expected)


@given(st.lists(st.tuples(deadlines, st.booleans()), max_size=20))
def test_what_is_removed_is_gone_and_nothing_else(entries: list[tuple[float, bool]]) -> None:
    queue: DeadlineQueue[int] = DeadlineQueue()
    keys = [queue.push(deadline, index) for index, (deadline, _) in enumerate(entries)]
    for key, (_, removed) in zip(keys, entries, strict=True):
        if removed:
            assert queue.remove(key)
            assert not queue.remove(key)
    kept = {index for index, (_, removed) in enumerate(entries) if not removed}
    assert {item for _, item in queue} == kept


@given(st.lists(deadlines, max_size=20), deadlines)
def test_ahead_of_counts_those_that_would_be_served_first(
    waiting: list[float], deadline: float
) -> None:
    queue: DeadlineQueue[str] = DeadlineQueue()
    for other in waiting:
        queue.push(other, "other")
    ahead = queue.ahead_of(deadline)
    queue.push(deadline, "new")
    assert [item for _, item in queue].index("new") == ahead


@given(st.integers(0, 100), st.integers(1, 64), st.floats(0.001, 10), st.integers(0, 10))
def test_the_expected_wait_grows_with_the_queue_and_shrinks_with_slots(
    ahead: int, slots: int, service_time: float, more: int
) -> None:
    wait = expected_wait(ahead, slots, service_time)
    assert 0 < wait <= expected_wait(ahead + more, slots, service_time)
    assert expected_wait(ahead, slots + more, service_time) <= wait


def test_nothing_is_expected_before_anything_was_served_and_no_slot_is_forever() -> None:
    assert expected_wait(5, 2, math.nan) == 0
    assert expected_wait(0, 0, 1.0) == math.inf


@given(
    waiting=st.integers(0, 10),
    limit=st.integers(0, 10),
    ahead=st.integers(0, 10),
    budget=st.one_of(st.just(math.inf), st.floats(0, 10)),
    service_time=st.one_of(st.just(math.nan), st.floats(0.001, 5)),
)
def test_a_request_is_refused_exactly_when_it_has_no_room_or_no_time(
    waiting: int, limit: int, ahead: int, budget: float, service_time: float
) -> None:
    reason = refusal(
        waiting=waiting,
        limit=limit,
        ahead=ahead,
        slots=2,
        service_time=service_time,
        budget=budget,
    )
    too_late = expected_wait(ahead, 2, service_time) > budget
    assert (reason is not None) == (waiting >= limit or too_late)


@given(
    st.lists(st.builds(Worker, st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), max_size=6)
)
def test_the_worker_taken_has_a_free_slot_and_the_smallest_share_in_use(
    loads: list[Worker],
) -> None:
    chosen = least_loaded(loads)
    free = [load for load in loads if load.running < load.slots]
    if chosen is None:
        assert not free
        return
    share = (loads[chosen].running + loads[chosen].others) / loads[chosen].slots
    assert loads[chosen] in free
    assert share == min((load.running + load.others) / load.slots for load in free)


def test_the_mean_service_time_starts_with_the_first_and_follows_slowly() -> None:
    service_time = ServiceTime()
    assert math.isnan(service_time.mean)
    service_time.observe(1.0)
    assert service_time.mean == 1.0
    service_time.observe(2.0)
    assert 1.0 < service_time.mean < 1.5
