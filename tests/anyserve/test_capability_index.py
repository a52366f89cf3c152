from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyserve.capability import NEAREST, Attribute, Capability, explain_absence, nearest, satisfying
from anyserve.offer_index import OfferIndex

Value = TypeVar("Value")

names = st.lists(st.sampled_from(["decode", "heavy", "d", "d-2"]), min_size=1, max_size=3).map(
    ".".join
)
values: st.SearchStrategy[Attribute] = st.sampled_from(["a", "b", 1, True, 1.0, 2, False])
attributes: st.SearchStrategy[dict[str, Attribute]] = st.fixed_dictionaries(
    {},
    optional={
        "model": values,
        "fast": values,
        "max_context": st.integers(1, 3),
        "min_batch": st.integers(1, 3),
    },
)
capabilities = st.builds(Capability, names, attributes, st.sampled_from(["", "1", "2"]))
held = st.lists(st.tuples(capabilities, st.integers(0, 3)), max_size=12)


def once(values: Iterable[Value]) -> list[Value]:
    """Without those that equal an earlier one; capabilities have no hash."""
    found: list[Value] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def index_of(offers: list[tuple[Capability, int]]) -> OfferIndex[int]:
    index: OfferIndex[int] = OfferIndex()
    for capability, holder in once(offers):
        index.add(capability, holder)
    return index


def found(index: OfferIndex[int], need: Capability) -> list[tuple[Capability, set[int]]]:
    return [(group.capability, set(group.holders)) for group in index.satisfying(need)]


@given(held, capabilities)
def test_an_index_finds_what_a_search_of_all_offers_finds(
    offers: list[tuple[Capability, int]], need: Capability
) -> None:
    every = [capability for capability, _ in offers]
    assert found(index_of(offers), need) == [
        (capability, {holder for other, holder in offers if other == capability})
        for capability in once(satisfying(need, every))
    ]


@given(held, held, capabilities, st.randoms(use_true_random=False))
def test_only_what_is_offered_counts_and_not_what_came_and_went(
    stay: list[tuple[Capability, int]],
    go: list[tuple[Capability, int]],
    need: Capability,
    shuffle: random.Random,
) -> None:
    gone = [(capability, holder + 100) for capability, holder in go]
    mixed = stay + gone
    shuffle.shuffle(mixed)
    index = index_of(mixed)
    for capability, holder in once(gone):
        index.remove(capability, holder)
    fresh = index_of(stay)
    assert found(index, need) == found(fresh, need)
    assert len(index) == len(fresh)
    assert index.near(need) == fresh.near(need)


@given(held)
def test_an_index_that_all_have_left_holds_nothing(offers: list[tuple[Capability, int]]) -> None:
    index = index_of(offers)
    for capability, holder in once(offers):
        index.remove(capability, holder)
    assert len(index) == 0
    assert index.near(Capability("decode")) == []
    assert all(not index.satisfying(capability) for capability, _ in offers)
    assert not index._lists
    assert not index._names


def test_a_holder_offers_a_capability_once_and_takes_back_what_it_offered() -> None:
    index: OfferIndex[str] = OfferIndex()
    decode = Capability("decode")
    index.add(decode, "one")
    with pytest.raises(ValueError, match="'one' offers decode already"):
        index.add(decode, "one")
    with pytest.raises(KeyError):
        index.remove(decode, "two")
    with pytest.raises(KeyError):
        index.remove(Capability("embedding"), "one")
    assert [list(group.holders) for group in index.satisfying(decode)] == [["one"]]


@given(held, capabilities)
def test_what_is_near_includes_the_nearest(
    offers: list[tuple[Capability, int]], need: Capability
) -> None:
    all_offers = [capability for capability, _ in offers]
    near = index_of(offers).near(need, count=16)
    assert nearest(need, near) == nearest(need, all_offers)


def test_a_look_up_among_very_many_names_touches_those_of_its_own() -> None:
    index: OfferIndex[int] = OfferIndex()
    for number in range(100_000):
        index.add(Capability(f"kind-{number:06}.x"), number)
    for number in range(1000):
        index.add(Capability("decode", {"model": f"m{number}", "max_context": 4096}), number)

    def calls_of(need: Capability) -> int:
        """Python and C functions called by a look-up: its work, whatever the machine does."""
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            index.satisfying(need)
        finally:
            sys.setprofile(None)
        return calls

    assert calls_of(Capability("kind-000500")) < 10
    assert calls_of(Capability("unknown")) < 10
    assert calls_of(Capability("decode", {"model": "m7", "max_context": 1024})) < 40


def test_an_absence_among_very_many_names_is_explained_from_a_few() -> None:
    index: OfferIndex[int] = OfferIndex()
    for number in range(20_000):
        index.add(Capability(f"kind-{number:06}"), number)
    near = index.near(Capability("kind-000500.heavy"))
    assert len(near) <= 2 * NEAREST + 1
    text = explain_absence(Capability("kind-000500.heavy"), near)
    assert "there is: kind-000500, kind-00050" in text
