"""Sampling parameters are held to their types and ranges before native code sees them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyserve.engines.sampling import NAMES, Sampling
from anyserve.errors import InvalidArgument, Unimplemented


@pytest.mark.parametrize(
    "name, value",
    [
        ("max_tokens", 0),
        ("max_tokens", 2**31),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", "many"),
        ("temperature", -1),
        ("temperature", math.nan),
        ("temperature", "inf"),
        ("temperature", "warm"),
        ("temperature", False),
        ("temperature", [1]),
        ("top_p", 0),
        ("top_p", 7),
        ("top_k", -2),
        ("min_p", 1.01),
        ("stop", {"a": 1}),
        ("stop", [1]),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", "x" * 257),
        ("seed", -1),
        ("seed", 2**64),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0),
        ("json_schema", 3),
        ("json_schema", [1]),
        ("json_schema", "[1]"),
        ("json_schema", "true"),
        ("json_schema", ""),
        ("json_schema", "{"),
        ("json_schema", '{"const": NaN}'),
        ("json_schema", "[" * 16_000),
        ("json_schema", "x" * 20_000),
        ("regex", ""),
        ("regex", 3),
        ("regex", "x" * 20_000),
        ("n", 0),
        ("n", 9),
        ("logprobs", 1),
        ("top_logprobs", 21),
        ("return_token_ids", "yes"),
        ("ignore_eos", 0),
        ("priority", 0.5),
        ("lora", ""),
        ("max_token", 3),
    ],
)
def test_a_bad_parameter_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidArgument, match=name):
        Sampling.of({name: value})


def test_every_parameter_has_a_default_and_none_stands_for_it() -> None:
    assert Sampling.of({"temperature": None, "stop": None}) == Sampling()


def test_numbers_may_be_written_as_text_as_clients_of_vllms_backend_do() -> None:
    sampling = Sampling.of({"temperature": "0.1", "top_p": "0.95", "max_tokens": "100"})
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.1, 0.95, 100)


def test_tensorrt_llms_names_mean_the_same() -> None:
    sampling = Sampling.of({"stop_words": ["a", "b"], "random_seed": 2**64 - 1})
    assert (sampling.stop, sampling.seed) == (("a", "b"), 2**64 - 1)


def test_one_stop_string_needs_no_list() -> None:
    assert Sampling.of({"stop": "."}).stop == (".",)


def test_a_parameter_under_two_names_at_once_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="twice"):
        Sampling.of({"seed": 1, "random_seed": 1})


def test_likely_tokens_are_told_only_beside_the_tokens_own() -> None:
    with pytest.raises(InvalidArgument, match="top_logprobs: only together"):
        Sampling.of({"top_logprobs": 1})
    assert Sampling.of({"top_logprobs": 20, "logprobs": True}).top_logprobs == 20


def test_a_text_is_held_to_one_thing() -> None:
    with pytest.raises(InvalidArgument, match="regex: not together"):
        Sampling.of({"regex": "a", "json_schema": {}})


def test_what_is_asked_for_is_what_is_not_at_its_default() -> None:
    assert Sampling().asked() == frozenset()
    assert Sampling.of({"n": "2", "temperature": 0, "stop": "."}).asked() == {"n", "stop"}


def test_a_raw_grammar_is_refused_in_words_whatever_it_is() -> None:
    with pytest.raises(Unimplemented, match="use json_schema"):
        Sampling.of({"grammar": "root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from(NAMES), json_values))
def test_json_of_any_shape_gives_a_sampling_or_an_invalid_argument(values: dict[str, Any]) -> None:
    try:
        sampling = Sampling.of(values)
    except InvalidArgument:
        return
    assert 1 <= sampling.max_tokens < 2**31
    assert 0 <= sampling.temperature <= 10
    json.loads(sampling.json_schema or "{}")
