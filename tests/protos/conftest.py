"""What the codec is held against: Google's library, and encodings valid, unusual and broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from anyserve_protos.descriptors import proto_files
from google.protobuf import descriptor_pool
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import strategies as st


@pytest.fixture(scope="session")
def pool() -> Any:
    """Our files as Google's library reads them, which checks that they are whole."""
    pool = descriptor_pool.DescriptorPool()
    waiting = dict(proto_files())
    while waiting:
        ready = [file for file in waiting.values() if not waiting.keys() & set(file.imports)]
        assert ready, "files import what is not there"
        for file in ready:
            pool.AddSerializedFile(file.data)
            del waiting[file.name]
    return pool


def _keeps_an_entry_apart(googles: Any) -> bool:
    """Whether Google's Python library found a map entry with an unknown field in it.

    It alone (C++ and Java do not) then takes the whole entry for an unknown field.
    """
    for unknown in UnknownFieldSet(googles):
        field = googles.DESCRIPTOR.fields_by_number.get(unknown.field_number)
        entry = field and unknown.wire_type == 2 and field.message_type
        if entry and entry.GetOptions().map_entry:
            return True
    parts: list[Any] = []
    for field, value in googles.ListFields():
        if field.message_type and field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type:
                parts += value.values()
        elif field.message_type:
            parts += value if field.is_repeated else [value]
    return any(map(_keeps_an_entry_apart, parts))


@pytest.fixture(scope="session")
def keeps_an_entry_apart() -> Callable[[Any], bool]:
    return _keeps_an_entry_apart


def varint(value: int, padding: int = 0) -> bytes:
    """`value`, made longer than it needs to be by `padding` bytes."""
    groups = []
    while True:
        groups.append(value & 0x7F)
        value >>= 7
        if not value:
            break
    groups += [0] * padding
    return bytes([g | 0x80 for g in groups[:-1]] + [groups[-1]])


_numbers = st.integers(1, 9) | st.sampled_from([15, 16, 500, (1 << 29) - 1])
_varints = st.builds(
    varint,
    st.sampled_from([0, 1, 2, 127, 128, 300, (1 << 31) - 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1])
    | st.integers(0, (1 << 64) - 1),
)
_texts = st.text(max_size=6).map(str.encode) | st.binary(max_size=9)
_padding = st.sampled_from([0, 0, 0, 0, 1, 2, 8])


def _field(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    def span(number: int, padding: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content), padding) + content

    def of_kind(kind: int, content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
        return st.builds(
            lambda number, value: varint(number << 3 | kind) + value, _numbers, content
        )

    return st.one_of(
        st.builds(span, _numbers, _padding, content),
        of_kind(0, _varints),
        of_kind(1, st.binary(min_size=8, max_size=8)),
        of_kind(5, st.binary(min_size=4, max_size=4)),
    )


_packed = st.lists(_varints, max_size=5).map(b"".join)
_fields = st.recursive(
    _field(_texts | _packed),
    lambda inner: _field(st.lists(inner, max_size=4).map(b"".join)),
    max_leaves=20,
)


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    message = bytearray(draw(st.lists(_fields, min_size=1, max_size=6).map(b"".join)))
    kind = draw(st.sampled_from(["cut", "change", "insert"]))
    at = draw(st.integers(0, len(message) - 1))
    if kind == "cut":
        del message[at:]
    elif kind == "change":
        message[at] = draw(st.integers(0, 255))
    else:
        message[at:at] = draw(st.binary(min_size=1, max_size=4))
    return bytes(message)


@pytest.fixture(scope="session")
def encodings() -> st.SearchStrategy[bytes]:
    """Messages of the wire format with all that it allows, such messages damaged, and noise."""
    well_formed = st.lists(_fields, max_size=6).map(b"".join)
    return well_formed | _damaged() | st.binary(max_size=40)
