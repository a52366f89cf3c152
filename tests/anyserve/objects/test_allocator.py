"""The allocator's rules, on any sequence of allocations and frees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyserve.objects.allocator import ALIGNMENT, Allocator, aligned

steps = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), st.integers(0, 1500)),
        st.tuples(st.just("free"), st.integers(0, 1000)),
    ),
    max_size=80,
)


@given(size=st.integers(0, 8192), steps=steps)
def test_allocations_are_aligned_inside_and_never_overlap(
    size: int, steps: list[tuple[str, int]]
) -> None:
    allocator = Allocator(size)
    live: dict[int, int] = {}
    for kind, number in steps:
        if kind == "allocate":
            offset = allocator.allocate(number)
            if offset is None:
                assert allocator.statistics().largest_hole < aligned(number)
                continue
            assert offset % ALIGNMENT == 0
            assert offset + number <= size
            assert all(
                offset + aligned(number) <= other or other + aligned(length) <= offset
                for other, length in live.items()
            )
            live[offset] = number
        elif live:
            offset = sorted(live)[number % len(live)]
            del live[offset]
            allocator.free(offset)
        assert len(allocator) == len(live)
        assert allocator.used == sum(map(aligned, live.values()))


@given(size=st.integers(64, 8192), steps=steps)
def test_freeing_everything_leaves_one_hole_of_the_whole_size(
    size: int, steps: list[tuple[str, int]]
) -> None:
    allocator = Allocator(size)
    live: list[int] = []
    for kind, number in steps:
        if kind == "allocate":
            offset = allocator.allocate(number)
            if offset is not None:
                live.append(offset)
        elif live:
            allocator.free(live.pop(number % len(live)))
    for offset in live:
        allocator.free(offset)
    statistics = allocator.statistics()
    assert (statistics.holes, statistics.largest_hole) == (1, size)
    assert (statistics.used, statistics.allocations) == (0, 0)


def test_the_lowest_hole_that_fits_is_taken() -> None:
    allocator = Allocator(64 * 10)
    offsets = [allocator.allocate(64) for _ in range(10)]
    assert offsets == [64 * n for n in range(10)]
    for n in (7, 2, 3):
        allocator.free(64 * n)
    assert allocator.allocate(128) == 64 * 2
    assert allocator.allocate(64) == 64 * 7
    assert allocator.allocate(1) is None


def test_an_empty_allocation_has_a_place_of_its_own() -> None:
    allocator = Allocator(128)
    assert allocator.allocate(0) == 0
    assert allocator.allocate(0) == 64


def test_freeing_twice_and_negative_lengths_are_refused() -> None:
    allocator = Allocator(128)
    assert allocator.allocate(1) == 0
    allocator.free(0)
    with pytest.raises(KeyError):
        allocator.free(0)
    with pytest.raises(ValueError, match="-1"):
        allocator.allocate(-1)
    assert allocator.statistics().holes == 1
