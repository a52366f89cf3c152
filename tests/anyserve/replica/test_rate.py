"""The rate of a count that is looked at now and then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyserve.replica.rate import WINDOW, Rate


def test_at_first_nothing_is_known() -> None:
    rate = Rate()
    assert rate.per_second(1000, 50.0) == 0.0
    assert rate.per_second(1001, 50.01) == 0.0


def test_a_steady_count_has_its_rate_from_the_second_look_on() -> None:
    rate = Rate()
    rate.per_second(0, 0.0)
    for tick in range(1, 50):
        assert rate.per_second(20 * tick, float(tick)) == 20.0


def test_a_count_that_stands_still_has_no_rate_once_the_window_has_passed() -> None:
    rate = Rate()
    rate.per_second(0, 0.0)
    assert rate.per_second(100, 1.0) == 100.0
    assert rate.per_second(100, 2.0) == 50.0
    assert [rate.per_second(100, now) for now in (3.0, 4.0, 5.0, 1.0 + WINDOW)][-1] == 0.0


def test_after_a_long_silence_it_is_the_mean_over_that() -> None:
    rate = Rate()
    rate.per_second(0, 0.0)
    rate.per_second(10, 1.0)
    assert rate.per_second(1010, 101.0) == 10.0


@given(st.lists(st.tuples(st.floats(0.001, 10), st.integers(0, 1000)), max_size=60))
def test_it_is_never_below_the_least_nor_above_the_highest_growth_and_keeps_few_looks(
    steps: list[tuple[float, int]],
) -> None:
    rate, now, count = Rate(), 0.0, 0
    rate.per_second(0, now)
    for seconds, more in steps:
        now += seconds
        count += more
        assert 0 <= rate.per_second(count, now) <= max(m / s for s, m in steps) * (1 + 1e-9)
    assert len(rate._looks) <= WINDOW / 0.5 + 2


def test_looks_close_together_cost_no_precision() -> None:
    rate = Rate()
    rate.per_second(0, 0.0)
    for tick in range(1, 1000):
        rate.per_second(tick, tick / 100)
    assert rate.per_second(1000, 10.0) == pytest.approx(100, rel=0.01)
