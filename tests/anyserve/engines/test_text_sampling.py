"""Sampling parameters are held to their types and ranges before native code sees them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyserve.engines.text import Sampling
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


def test_a_raw_grammar_is_refused_in_words_whatever_it_is() -> None:
    with pytest.raises(Unimplemented, match="use json_schema"):
        Sampling.of({"grammar": "root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from(Sampling.names()), json_values))
def test_json_of_any_shape_gives_a_sampling_or_an_invalid_argument(values: dict[str, Any]) -> None:
    try:
        sampling = Sampling.of(values)
    except InvalidArgument:
        return
    assert 1 <= sampling.max_tokens < 2**31
    assert 0 <= sampling.temperature <= 10
    json.loads(sampling.json_schema or "{}")
