from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyserve.app import App
from anyserve.capability import Attribute, Capability, check_name, need_of
from anyserve.errors import InvalidArgument
from anyserve.needs import NEED_LIMIT, from_bytes, to_bytes

HUGE = 10**5000
"""More digits than Python turns into text."""

anything: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=5),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner)),
    max_leaves=4,
)
attribute_names = st.sampled_from(["model", "max_context", "min_batch", "a.b", "_9"])
values: st.SearchStrategy[Attribute] = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)
texts = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=255)
attributes = st.dictionaries(attribute_names, values, max_size=5).flatmap(
    lambda found: st.one_of(st.just(found), texts.map(lambda text: {**found, "model": text}))
)
capabilities = st.builds(
    Capability, st.sampled_from(["decode", "a.b-c._d"]), attributes, st.sampled_from(["", "1"])
)


# Names.


@pytest.mark.parametrize(
    "name", ["decode", "decode.heavy", "a-b_c.9", "n" * 255, ".".join("n" * 16)]
)
def test_well_formed_names_pass(name: str) -> None:
    assert check_name(name) == name
    assert Capability(name).name == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "a/b", "../etc", "a..b", "a b", "decode.", "-x", "n" * 256, "é", "a\0"),
        *("a\n", ".".join("n" * 17), 5, None, b"decode", ["decode"]),
    ],
)
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(InvalidArgument):
        check_name(name)
    with pytest.raises(InvalidArgument):
        Capability(name)


# Attributes and versions.


@pytest.mark.parametrize(
    "attributes",
    [
        *({"max_context": "many"}, {"min_batch": "1"}, {"max_context": float("nan")}),
        *({"max_context": float("inf")}, {"min_batch": float("-inf")}, {"x": float("nan")}),
        *(
            {"x": 2**64},
            {"x": -(2**63) - 1},
            {"max_x": HUGE},
            {"x": HUGE},
            {HUGE: 1},
            {"x": None},
            {"x": [1]},
        ),
        *({"x": "t" * 256}, {"x": "a\nb"}, {"x": "\ud800"}, {"": 1}, {"a b": 1}, {"n" * 65: 1}),
        *(
            {5: 1},
            {"é": 1},
            {None: 1, "a": 1},
            [("x", 1)],
            None,
            "x",
            {f"a{i}": i for i in range(17)},
        ),
    ],
)
def test_attributes_that_none_can_have_are_refused(attributes: Any) -> None:
    with pytest.raises(InvalidArgument) as refused:
        Capability("decode", attributes)
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("version", ["x", "-1", "1.0", "²", "9" * 20, "1\n", 1, 0, None, b"1"])
def test_versions_that_are_no_numbers_are_refused(version: Any) -> None:
    with pytest.raises(InvalidArgument, match="version"):
        Capability("decode", {}, version)


@given(anything, anything, anything)
def test_anything_at_all_is_a_capability_or_refused(name: Any, found: Any, version: Any) -> None:
    candidates: list[tuple[Any, Any, Any]] = [
        (name, {}, ""),
        ("x", found, ""),
        ("x", {}, version),
        ("x", {"y": found}, ""),
    ]
    for arguments in candidates:
        try:
            made = Capability(*arguments)
        except InvalidArgument as refused:
            message = refused.message
        else:
            message = ""
            assert made.satisfies(made)
        assert len(message) < 1000


def test_the_largest_attributes_pass() -> None:
    largest = {"a" * 62 + f"{i:02}": "\U0001f600" * 255 for i in range(16)}
    assert Capability("n" * 255, largest, "9" * 19).attributes == largest


@pytest.mark.parametrize("key", ["need.", "need.a b", "need.é", "need." + "n" * 65])
def test_a_request_that_needs_what_none_can_have_is_refused(key: str) -> None:
    with pytest.raises(InvalidArgument, match="attribute name"):
        need_of("decode", {key: 1})


def test_a_capability_does_not_change_with_the_attributes_it_was_made_of() -> None:
    found: dict[str, Attribute] = {"model": "a"}
    made = Capability("decode", found)
    found["model"] = "b"
    assert made.attributes["model"] == "a"


@pytest.mark.parametrize("name, more", [("a b", {}), ("decode", {"max_context": "many"})])
def test_a_handler_declared_with_bad_values_is_a_value_error(name: str, more: Any) -> None:
    with pytest.raises(ValueError, match=r"a b|max_context"):
        App().capability(name, **more)(lambda request, context: None)


# Needs as bytes.


@given(capabilities)
def test_a_need_comes_back_from_its_bytes(need: Capability) -> None:
    data = to_bytes(need)
    back = from_bytes(data)
    assert back == need
    assert [type(value) for value in back.attributes.values()] == [
        type(value) for value in need.attributes.values()
    ]
    assert to_bytes(back) == data


def test_the_bytes_are_compact_and_do_not_depend_on_the_order_of_attributes() -> None:
    one = Capability("decode.heavy", {"model": "é", "max_context": 4096}, "2")
    other = Capability("decode.heavy", {"max_context": 4096, "model": "é"}, "2")
    assert to_bytes(one) == to_bytes(other)
    assert to_bytes(one) == '["decode.heavy",{"max_context":4096,"model":"é"},"2"]'.encode()


def test_the_largest_need_fits_its_bytes() -> None:
    largest = {"a" * 62 + f"{i:02}": "\U0001f600" * 255 for i in range(16)}
    need = Capability("n" * 255, largest, "9" * 19)
    data = to_bytes(need)
    assert len(data) <= NEED_LIMIT
    assert from_bytes(data) == need


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xff", b"null", b"{}", b"[]", b'"decode"', b'["decode"]', b'["decode",{}]'),
        *(b'["decode",{},"","x"]', b'[5,{},""]', b'["decode",[],""]', b'["decode",{},1]'),
        *(b'["decode",null,""]', b'["decode",{"x":null},""]', b'["decode",{"x":{}},""]'),
        *(
            b'["decode",{"x":NaN},""]',
            b'["decode",{"x":Infinity},""]',
            b'["decode",{"x":1e999},""]',
        ),
        # What means the same as another form, or could be read in two ways.
        *(b' ["decode",{},""]', b'["decode", {},""]', b'["decode",{},""]x', b'["decode",{},""]\n'),
        *(
            b'["decode",{"x":1,"x":2},""]',
            b'["decode",{"b":1,"a":1},""]',
            b'["d\\u0065code",{},""]',
        ),
        *(b'["decode",{"x":1e2},""]', '["decode",{},""]'.encode("utf-16")),
        *(b"[" * 20_000, b"[" * 200_000, b'["decode",{"x":' + b"9" * 5000 + b'},""]'),
        b'["decode",{"x":"' + b"v" * NEED_LIMIT + b'"},""]',
    ],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument) as refused:
        from_bytes(data)
    assert len(refused.value.message) < 300


@given(st.one_of(st.binary(max_size=40), st.lists(anything, min_size=3, max_size=3)))
def test_any_bytes_are_a_need_or_refused(found: bytes | list[Any]) -> None:
    try:
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
    except (TypeError, ValueError):
        return
    try:
        need = from_bytes(data)
    except InvalidArgument:
        return
    assert to_bytes(need) == data
