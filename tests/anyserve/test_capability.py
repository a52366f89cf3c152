from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyserve.capability import (
    Capability,
    check_name,
    explain_absence,
    need_of,
    satisfying,
    why_not,
)
from anyserve.errors import InvalidArgument

words = st.sampled_from(["decode", "heavy", "long", "embedding"])
names = st.lists(words, min_size=1, max_size=3).map(".".join)
attributes = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["a", "b"]),
        "max_context": st.integers(1, 4),
        "min_batch": st.integers(1, 4),
    },
)
capabilities = st.builds(Capability, names, attributes)


@given(capabilities)
def test_an_offer_satisfies_itself(offer: Capability) -> None:
    assert offer.satisfies(offer)


@given(capabilities, capabilities, capabilities)
def test_satisfaction_is_transitive(a: Capability, b: Capability, c: Capability) -> None:
    if a.satisfies(b) and b.satisfies(c):
        assert a.satisfies(c)


@given(capabilities, st.lists(capabilities, max_size=6), st.randoms(use_true_random=False))
def test_matching_does_not_depend_on_the_order_of_offers(
    need: Capability, offers: list[Capability], shuffle: random.Random
) -> None:
    other = list(offers)
    shuffle.shuffle(other)
    assert satisfying(need, offers) == satisfying(need, other)


@given(capabilities, capabilities)
def test_a_refusal_is_explained_and_only_a_refusal(offer: Capability, need: Capability) -> None:
    assert (why_not(offer, need) is None) == offer.satisfies(need)


def test_a_more_specific_offer_satisfies_a_general_need_and_not_the_reverse() -> None:
    assert Capability("decode.heavy").satisfies(Capability("decode"))
    assert not Capability("decode").satisfies(Capability("decode.heavy"))
    assert not Capability("decoder").satisfies(Capability("decode"))


def test_the_least_powerful_offer_comes_first() -> None:
    offers = [
        Capability("decode.heavy"),
        Capability("decode", {"max_context": 8192}),
        Capability("decode", {"max_context": 2048}),
    ]
    found = satisfying(Capability("decode", {"max_context": 1024}), offers)
    assert [offer.attributes.get("max_context") for offer in found] == [2048, 8192]
    assert satisfying(Capability("decode"), offers)[-1].name == "decode.heavy"


@pytest.mark.parametrize(
    "needed, offered, enough",
    [
        ({"max_context": 4096}, {"max_context": 8192}, True),
        ({"max_context": 8193}, {"max_context": 8192}, False),
        ({"min_batch": 2}, {"min_batch": 1}, True),
        ({"min_batch": 1}, {"min_batch": 2}, False),
        ({"model": "a"}, {"model": "a"}, True),
        ({"model": "a"}, {"model": "b"}, False),
        ({"model": "a"}, {}, False),
        ({"max_context": 1}, {"max_context": "many"}, False),
    ],
)
def test_attributes_compare_by_their_kind(
    needed: dict[str, int | str], offered: dict[str, int | str], enough: bool
) -> None:
    assert Capability("x", offered).satisfies(Capability("x", needed)) is enough


def test_an_absence_names_what_there_is_or_what_is_lacking() -> None:
    offers = [Capability("decode", {"model": "a"}), Capability("embedding")]
    unknown = explain_absence(Capability("speech"), offers)
    assert unknown == "no capability 'speech' here; there is: decode, embedding"
    lacking = explain_absence(Capability("decode", {"model": "b"}), offers)
    assert "decode has model=a, not b" in lacking
    assert "nothing" in explain_absence(Capability("decode"), [])


def test_needs_come_from_parameters_before_metadata_and_limits_are_numbers() -> None:
    need = need_of(
        "decode",
        {"need.model": "mine", "max_tokens": 5},
        [("anyserve-need-model", "other"), ("anyserve-need-max-context", "4096")],
    )
    assert need == Capability("decode", {"model": "mine", "max_context": 4096.0})
    assert need_of("decode", {"temperature": 0.5}) == Capability("decode")


@pytest.mark.parametrize("value", ["large", "nan", float("nan"), ""])
def test_a_limit_that_is_no_number_is_refused(value: str | float) -> None:
    with pytest.raises(InvalidArgument, match="max_context"):
        need_of("decode", {"need.max_context": value})


@pytest.mark.parametrize("name", ["decode", "decode.heavy", "a-b_c.9"])
def test_well_formed_names_pass(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../etc", "a..b", "a b", "decode.", "-x", "n" * 256, "é", "a\0"]
)
def test_empty_and_path_like_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        check_name(name)
