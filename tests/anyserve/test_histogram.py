"""Times counted by bounds."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from anyserve.histogram import BOUNDS, Histogram


@given(st.lists(st.floats(0, 1000)))
def test_each_time_is_in_the_first_bucket_that_has_room_for_it(times: list[float]) -> None:
    histogram = Histogram()
    for time in times:
        histogram.observe(time)
    before = -math.inf
    for bound, count in zip((*BOUNDS, math.inf), histogram.counts, strict=True):
        assert count == sum(before < time <= bound for time in times)
        before = bound
    assert math.isclose(histogram.sum, math.fsum(times), abs_tol=1e-9)


def test_several_times_of_one_length_count_as_many() -> None:
    one, other = Histogram(), Histogram()
    one.observe(0.5, 3)
    for _ in range(3):
        other.observe(0.5)
    assert (one.counts, one.sum) == (other.counts, other.sum)
