"""Which texts are encoded together: a pure decision, for any mix of requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from anyserve.engines.embedding.grouping import MAX_CHARACTERS, MAX_TEXTS, plan

lengths = st.lists(st.integers(0, MAX_CHARACTERS), max_size=100)


@given(st.lists(lengths, max_size=20))
def test_a_batch_keeps_its_bounds_and_is_empty_only_when_nothing_waits(
    waiting: list[list[int]],
) -> None:
    counts = plan(waiting)
    taken = [length for own, count in zip(waiting, counts, strict=True) for length in own[:count]]
    assert len(taken) == sum(counts) <= MAX_TEXTS
    assert len(taken) == 1 or sum(taken) <= MAX_CHARACTERS
    assert bool(taken) == any(waiting)


@given(st.lists(lengths, max_size=20))
def test_batch_after_batch_encodes_everything(waiting: list[list[int]]) -> None:
    rounds = 0
    while any(waiting):
        waiting = [own[count:] for own, count in zip(waiting, plan(waiting), strict=True)]
        rounds += 1
        assert rounds <= 2000


def test_small_requests_are_taken_whole_beside_one_with_thousands() -> None:
    assert plan([[50] * 2000, [50], [50, 50]]) == [MAX_TEXTS - 3, 1, 2]


def test_a_text_too_long_for_the_rest_of_a_batch_ends_it() -> None:
    assert plan([[5000], [5000], [10]]) == [1, 0, 0]


def test_a_text_longer_than_a_batch_goes_alone() -> None:
    assert plan([[MAX_CHARACTERS * 2], [1]]) == [1, 0]
