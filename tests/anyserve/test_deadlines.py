"""Deadlines of many requests, kept by one task."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from anyserve.deadlines import Deadline, Deadlines


def nothing() -> None:
    pass


times = st.integers(0, 20).map(float)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), times),
        st.tuples(st.just("drop"), st.integers(0, 30)),
        st.tuples(st.just("expire"), times),
    ),
    max_size=60,
)


@given(steps)
def test_those_whose_time_is_over_are_called_in_order_and_once(
    steps: list[tuple[str, float]],
):
    """Against a list of (time, number); those of one time may come in any order."""
    deadlines = Deadlines()
    made: list[Deadline] = []
    pending: dict[int, float] = {}
    called: list[int] = []
    for what, value in steps:
        if what == "add":
            number = len(made)
            made.append(deadlines.add(value, partial(called.append, number)))
            pending[number] = value
        elif what == "drop" and made:
            number = int(value) % len(made)  # also one that was dropped or called before
            deadlines.drop(made[number])
            pending.pop(number, None)
        elif what == "expire":
            called.clear()
            following = deadlines.expire(value)
            over = {number: at for number, at in pending.items() if at <= value}
            assert sorted(called) == sorted(over)
            assert [over[number] for number in called] == sorted(over.values())
            for number in over:
                del pending[number]
            assert following == min(pending.values(), default=math.inf)
        assert len(deadlines) == len(pending)


@given(st.lists(st.tuples(times, st.booleans()), max_size=300), st.booleans())
def test_what_is_dropped_costs_no_more_memory_than_what_is_kept(
    entries: list[tuple[float, bool]], at_once: bool
):
    deadlines = Deadlines()
    kept = 0
    for at, keep in entries * 4:
        deadline = deadlines.add(at, nothing)
        if keep:
            kept += 1
        else:
            deadlines.drop(deadline)
        assert len(deadlines._heap) <= 2 * (kept + 64) + 2
    deadlines.expire(10.0)
    assert len(deadlines) <= kept


def test_a_call_back_may_add_and_drop_others():
    deadlines = Deadlines()
    called: list[str] = []
    doomed = [deadlines.add(3.0, partial(called.append, "dropped")) for _ in range(200)]

    def first() -> None:
        called.append("first")
        for deadline in doomed:  # so many that what is left is put together anew
            deadlines.drop(deadline)
        deadlines.add(2.0, partial(called.append, "added"))
        deadlines.add(9.0, partial(called.append, "later"))

    deadlines.add(1.0, first)
    assert deadlines.expire(5.0) == 9.0
    assert called == ["first", "added"]
    assert len(deadlines) == 1


def test_one_may_drop_itself_while_it_is_called():
    deadlines = Deadlines()
    made: list[Deadline] = []
    made.append(deadlines.add(1.0, lambda: deadlines.drop(made[0])))
    assert deadlines.expire(1.0) == math.inf
    assert len(deadlines) == 0


Note = Callable[[], None]


async def test_they_are_called_when_it_is_time(autojump_clock: trio.testing.MockClock):
    deadlines = Deadlines()
    seen: dict[str, float] = {}

    def note(name: str) -> Note:
        return lambda: seen.setdefault(name, trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        now = trio.current_time()
        deadlines.add(now + 30, note("last"))
        await trio.testing.wait_all_tasks_blocked()
        deadlines.add(now + 10, note("earlier, and added later"))
        deadlines.drop(deadlines.add(now + 5, note("dropped")))
        deadlines.add(now - 1, note("over already"))
        await trio.sleep(20)
        deadlines.add(now + 25, lambda: deadlines.add(now + 26, note("added by another")))
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert seen == {
        "over already": now,
        "earlier, and added later": now + 10,
        "added by another": now + 26,
        "last": now + 30,
    }


async def test_nobody_waits_for_the_end_of_time(autojump_clock: trio.testing.MockClock):
    """With none left, the task sleeps until there is one again."""
    deadlines = Deadlines()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        for _ in range(3):
            called = trio.Event()
            began = trio.current_time()
            deadlines.add(began + 7, called.set)
            await called.wait()
            assert trio.current_time() == began + 7
            await trio.sleep(50)
        nursery.cancel_scope.cancel()
