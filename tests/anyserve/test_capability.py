from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyserve.capability import (
    NEAREST,
    Attribute,
    Capability,
    explain_absence,
    least,
    nearest,
    need_of,
    power,
    satisfying,
    tier,
    upgrade,
    why_not,
)
from anyserve.errors import InvalidArgument

# Few words and values, so that many of these satisfy others; with numbers that floats round.
words = st.sampled_from(["decode", "heavy", "heavy-2", "d"])
names = st.lists(words, min_size=1, max_size=3).map(".".join)
numbers = st.one_of(
    st.integers(-2, 3),
    st.sampled_from([0.5, 1.0, -0.0, 2**53, 2**53 + 1, float(2**53), 2**64 - 1, -(2**63), 1e308]),
)
values: st.SearchStrategy[Attribute] = st.one_of(
    st.sampled_from(["a", "b", "", "1", "é"]), numbers, st.booleans()
)
attributes: st.SearchStrategy[dict[str, Attribute]] = st.fixed_dictionaries(
    {},
    optional={
        "model": values,
        "quantised": values,
        "max_context": numbers,
        "max_batch": numbers,
        "min_batch": numbers,
        "min_z": numbers,
    },
)
versions = st.sampled_from(["", "1", "2", "01", "10"])
capabilities = st.builds(Capability, names, attributes, versions)
fleets = st.lists(capabilities, max_size=8)


@st.composite
def weakened(draw: st.DrawFn, offer: Capability) -> Capability:
    """A need that `offer` satisfies, made by asking for less of it."""
    all_words = offer.name.split(".")
    name = ".".join(all_words[: draw(st.integers(1, len(all_words)))])
    kept = draw(st.sets(st.sampled_from(sorted(offer.attributes)))) if offer.attributes else ()
    needed = {key: offer.attributes[key] for key in kept}
    for key, limit in needed.items():
        other = draw(numbers)
        if isinstance(limit, int | float) and (
            (key.startswith("max_") and other <= limit)
            or (key.startswith("min_") and other >= limit)
        ):
            needed[key] = other
    return Capability(name, needed, draw(st.sampled_from(["", offer.version])))


@st.composite
def chains(draw: st.DrawFn) -> tuple[Capability, Capability, Capability]:
    """Three of which each satisfies the next."""
    first = draw(capabilities)
    second = draw(weakened(first))
    return first, second, draw(weakened(second))


# The laws.


@given(capabilities)
def test_an_offer_satisfies_itself(offer: Capability) -> None:
    assert offer.satisfies(offer)


@given(capabilities, capabilities, capabilities)
def test_satisfaction_is_transitive(a: Capability, b: Capability, c: Capability) -> None:
    if a.satisfies(b) and b.satisfies(c):
        assert a.satisfies(c)


@given(chains())
def test_satisfaction_is_transitive_along_chains_of_weaker_needs(
    chain: tuple[Capability, Capability, Capability],
) -> None:
    first, second, third = chain
    assert first.satisfies(second)
    assert second.satisfies(third)
    assert first.satisfies(third)


@given(capabilities, capabilities)
def test_two_that_satisfy_each_other_are_equal(a: Capability, b: Capability) -> None:
    assert (a.satisfies(b) and b.satisfies(a)) == (a == b)


@given(capabilities, capabilities)
@example(Capability("d", {"max_batch": 1, "max_context": 2}), Capability("d", {"max_context": 2}))
@example(Capability("d", {"min_batch": 1}), Capability("d", {"min_batch": 2}))
@example(Capability("d", {"max_batch": 10, "model": "a"}), Capability("d", {"max_batch": 9}))
@example(Capability("d", {"max_batch": 2**53 + 1}), Capability("d", {"max_batch": float(2**53)}))
def test_power_is_a_total_order_and_equal_for_equal_offers_alone(
    a: Capability, b: Capability
) -> None:
    assert (power(a) < power(b)) + (power(a) == power(b)) + (power(a) > power(b)) == 1
    assert (power(a) == power(b)) == (a == b)
    if a.satisfies(b):
        assert power(a) >= power(b)
        assert tier(a) >= tier(b)
    if tier(a) < tier(b):
        assert power(a) < power(b)


@given(chains())
def test_what_satisfies_a_need_is_never_less_powerful_than_it(
    chain: tuple[Capability, Capability, Capability],
) -> None:
    assert [power(link) for link in chain] == sorted(map(power, chain), reverse=True)


@given(capabilities, fleets)
def test_the_least_is_the_first_that_satisfies(need: Capability, offers: list[Capability]) -> None:
    found = satisfying(need, offers)
    assert all(offer.satisfies(need) for offer in found)
    assert len(found) == sum(offer.satisfies(need) for offer in offers)
    assert least(need, offers) == (found[0] if found else None)


@given(st.data(), fleets.filter(bool))
def test_an_upgrade_satisfies_what_it_upgrades_and_is_the_least_that_does(
    data: st.DataObject, offers: list[Capability]
) -> None:
    need = data.draw(weakened(data.draw(st.sampled_from(offers))))
    upgraded = upgrade(need, offers)
    assert upgraded is not None
    assert upgraded.satisfies(need)
    assert least(upgraded, offers) == least(need, offers)
    assert all(power(offer) >= power(upgraded) for offer in satisfying(need, offers))
    assert upgrade(upgraded, offers) == upgraded


@given(capabilities, fleets)
def test_there_is_an_upgrade_exactly_where_an_offer_satisfies(
    need: Capability, offers: list[Capability]
) -> None:
    assert (upgrade(need, offers) is None) == (not satisfying(need, offers))


@given(capabilities, fleets, st.randoms(use_true_random=False))
def test_nothing_depends_on_the_order_of_the_offers(
    need: Capability, offers: list[Capability], shuffle: random.Random
) -> None:
    other = list(offers)
    shuffle.shuffle(other)
    assert satisfying(need, offers) == satisfying(need, other)
    assert least(need, offers) == least(need, other)
    assert upgrade(need, offers) == upgrade(need, other)
    assert nearest(need, offers) == nearest(need, other)
    assert explain_absence(need, offers) == explain_absence(need, other)


@given(st.data(), capabilities, capabilities)
def test_a_need_for_more_is_never_easier(
    data: st.DataObject, offer: Capability, need: Capability
) -> None:
    if offer.satisfies(need):
        assert offer.satisfies(data.draw(weakened(need)))


@given(capabilities, capabilities)
def test_a_refusal_is_explained_and_only_a_refusal(offer: Capability, need: Capability) -> None:
    assert (why_not(offer, need) is None) == offer.satisfies(need)


@given(capabilities, fleets, st.integers(0, 9))
def test_the_nearest_are_different_offers_that_do_not_satisfy(
    need: Capability, offers: list[Capability], count: int
) -> None:
    misses = nearest(need, offers, count)
    failing = {power(offer) for offer in offers if not offer.satisfies(need)}
    assert len(misses) == min(count, len(failing))
    assert len({power(miss.offer) for miss in misses}) == len(misses)
    assert all(power(miss.offer) in failing for miss in misses)
    assert all(miss.why == why_not(miss.offer, need) for miss in misses)


# Examples.


def test_a_more_specific_offer_satisfies_a_general_need_and_not_the_reverse() -> None:
    assert Capability("decode.heavy").satisfies(Capability("decode"))
    assert not Capability("decode").satisfies(Capability("decode.heavy"))
    assert not Capability("decoder").satisfies(Capability("decode"))


@pytest.mark.parametrize(
    "offers",
    [
        # Each list from the least powerful to the most, by one reason.
        [Capability("decode", {"max_context": 2048}), Capability("decode.heavy")],
        [Capability("decode", {"max_context": 2048}), Capability("decode", {"max_context": 8192})],
        [Capability("decode", {"min_batch": 4}), Capability("decode", {"min_batch": 1})],
        [Capability("decode", {"max_a": 1}), Capability("decode", {"max_a": 1, "max_b": 1})],
        [Capability("decode", {"model": "a"}), Capability("decode", {"max_context": 1})],
        [Capability("decode"), Capability("decode", {"model": "a"})],
        [Capability("decode", {}, "10"), Capability("decode", {}, "9")],
    ],
)
def test_the_least_powerful_offer_comes_first(offers: list[Capability]) -> None:
    for order in itertools.permutations(offers):
        assert satisfying(Capability("decode"), order) == offers


def test_values_that_must_be_equal_and_versions_make_no_tier() -> None:
    a = Capability("decode", {"model": "a", "max_context": 1}, "1")
    b = Capability("decode", {"model": "b", "max_context": 1}, "2")
    assert tier(a) == tier(b)
    assert tier(a) < tier(Capability("decode", {"model": "a", "max_context": 2}, "1"))


def test_a_need_takes_the_smallest_limit_that_is_enough() -> None:
    offers = [Capability("decode", {"max_context": size}) for size in (8192, 1024, 2048)]
    found = satisfying(Capability("decode", {"max_context": 1500}), offers)
    assert [offer.attributes["max_context"] for offer in found] == [2048, 8192]


def test_an_upgrade_is_the_same_capability_elsewhere_or_a_stronger_one() -> None:
    need = Capability("decode", {"max_context": 4096})
    same = Capability("decode", {"max_context": 8192, "model": "a"}, "1")
    stronger = Capability("decode.heavy", {"max_context": 65536}, "1")
    assert upgrade(need, [stronger, same]) == need
    assert upgrade(need, [stronger]) == Capability("decode.heavy", {"max_context": 4096})
    assert upgrade(need, [Capability("embedding")]) is None


@pytest.mark.parametrize(
    "needed, offered, enough",
    [
        ({"max_context": 4096}, {"max_context": 8192}, True),
        ({"max_context": 8193}, {"max_context": 8192}, False),
        ({"max_context": 8192.5}, {"max_context": 8192}, False),
        ({"min_batch": 2}, {"min_batch": 1}, True),
        ({"min_batch": 1}, {"min_batch": 2}, False),
        ({"model": "a"}, {"model": "a"}, True),
        ({"model": "a"}, {"model": "b"}, False),
        ({"model": "a"}, {}, False),
        ({"gpus": 2}, {"gpus": 2.0}, True),
        ({"gpus": 2}, {"gpus": "2"}, False),
        ({"quantised": False}, {"quantised": False}, True),
        ({}, {"model": "a", "max_context": 1}, True),
    ],
)
def test_attributes_compare_by_their_kind(
    needed: dict[str, Attribute], offered: dict[str, Attribute], enough: bool
) -> None:
    assert Capability("x", offered).satisfies(Capability("x", needed)) is enough


@pytest.mark.parametrize(
    "needed, offered, enough",
    [("", "2", True), ("2", "2", True), ("1", "2", False), ("1", "", False), ("", "", True)],
)
def test_a_version_that_is_needed_is_the_offers(needed: str, offered: str, enough: bool) -> None:
    assert Capability("x", {}, offered).satisfies(Capability("x", {}, needed)) is enough


@pytest.mark.parametrize(
    "offer, reason",
    [
        (Capability("embedding"), "embedding is not decode or a kind of it"),
        (Capability("decode", {"max_context": 512}, "1"), "max_context=512, not 1024 or more"),
        (Capability("decode", {"min_batch": 3}, "1"), "min_batch=3, not 2 or less"),
        (Capability("decode", {"model": "b"}, "1"), "model=b, not a"),
        (Capability("decode", {}, "2"), "version=2, not 1"),
        (Capability("decode"), "no version"),
        (
            Capability("decode", {"max_context": 2048, "min_batch": 1}, "2"),
            "decode has no model, and version=2, not 1",
        ),
    ],
)
def test_a_reason_says_in_words_all_that_is_lacking(offer: Capability, reason: str) -> None:
    need = Capability("decode", {"max_context": 1024, "min_batch": 2, "model": "a"}, "1")
    assert reason in str(why_not(offer, need))


def test_the_nearest_are_of_the_kind_asked_for_then_of_the_names_most_like_it() -> None:
    need = Capability("decode", {"model": "a", "max_context": 8})
    offers = [
        Capability("speech"),
        Capability("deco"),
        Capability("decode"),
        Capability("decode", {"model": "b", "max_context": 8}),
    ]
    assert [str(miss.offer) for miss in nearest(need, offers)] == [
        "decode[max_context=8, model=b]",
        "decode",
        "deco",
        "speech",
    ]


def test_an_absence_names_what_there_is_or_what_is_lacking() -> None:
    offers = [Capability("decode", {"model": "a"}), Capability("embedding")]
    unknown = explain_absence(Capability("speech"), offers)
    assert unknown == "no capability 'speech' here; there is: decode, embedding"
    lacking = explain_absence(Capability("decode", {"model": "b"}), offers)
    assert lacking == "nothing here satisfies decode[model=b]: decode has model=a, not b"
    assert "nothing" in explain_absence(Capability("decode"), [])


def test_an_absence_among_very_many_offers_is_one_short_line() -> None:
    offers = [Capability(f"kind-{i}") for i in range(100)]
    text = explain_absence(Capability("speech"), offers)
    assert text.count("kind-") == 32
    assert text.endswith(", and more")
    large = [Capability(f"x.k{i}", {f"a{j}": "v" * 255 for j in range(16)}) for i in range(NEAREST)]
    need = Capability("x", {f"a{j}": "w" * 255 for j in range(16)})
    assert len(explain_absence(need, large)) == 2000


def test_a_capability_in_words_has_its_attributes_and_its_version() -> None:
    assert str(Capability("decode")) == "decode"
    assert str(Capability("decode", {"model": "a"}, "2")) == "decode[model=a] version 2"


# Needs of requests.


def test_needs_come_from_parameters_before_metadata_and_limits_are_numbers() -> None:
    need = need_of(
        "decode",
        {"need.model": "mine", "max_tokens": 5},
        [("anyserve-need-model", "other"), ("anyserve-need-max-context", "4096")],
    )
    assert need == Capability("decode", {"model": "mine", "max_context": 4096.0})
    assert need_of("decode", {"temperature": 0.5}) == Capability("decode")


@pytest.mark.parametrize("value", ["large", "nan", "inf", "1e999", float("nan"), ""])
def test_a_limit_that_is_no_finite_number_is_refused(value: str | float) -> None:
    with pytest.raises(InvalidArgument, match="max_context"):
        need_of("decode", {"need.max_context": value})
