"""Strict decoding into the generated classes, for whatever comes from outside.

The same classes as betterproto2's own parser fills, with protobuf's rules: what is malformed is
refused, a field with the wrong wire type is unknown, of a oneof the last member counts, parts of a
message that come apart are merged, strings are UTF-8, packed and unpacked numbers are the same.
Unknown fields are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias, TypeVar

import attrs
import betterproto2

from . import scalars
from .scalars import Scalar
from .wire import LENGTH, Buffer, WireError, fields

Message = TypeVar("Message", bound=betterproto2.Message)

MAX_DEPTH = 100
"""Messages inside one another, as in Google's parsers."""
MAX_FIELDS = 1 << 18
"""Fields of a message and of those inside it, together; packed numbers are one. Each costs up to a
few microseconds, in which an event loop does nothing else."""

_SCALARS = {
    betterproto2.TYPE_STRING: scalars.STRING,
    betterproto2.TYPE_BYTES: scalars.BYTES,
    betterproto2.TYPE_FLOAT: scalars.FLOAT,
    betterproto2.TYPE_DOUBLE: scalars.DOUBLE,
    betterproto2.TYPE_BOOL: scalars.BOOL,
    betterproto2.TYPE_INT32: scalars.INT32,
    betterproto2.TYPE_INT64: scalars.INT64,
    betterproto2.TYPE_UINT32: scalars.UINT32,
    betterproto2.TYPE_UINT64: scalars.UINT64,
}
"""Those that the messages of this package have."""


@attrs.define
class _Walk:
    """Where a decoder is, and how much it may still read."""

    depth: int = 0
    room: int = MAX_FIELDS


Store: TypeAlias = Callable[[Any, bytes, int, int, _Walk], None]
"""Puts a field into a message, from (message, data, first, last, walk) with the positions that
`wire.fields` gives."""


def decode(message_type: type[Message], data: Buffer) -> Message:
    """The message of `message_type` in `data`.

    Takes time in proportion to its packed numbers and to its fields, of which there are at most
    `MAX_FIELDS`. Raises `WireError` for more, and when `data` is no such message.
    """
    message = message_type()
    data = bytes(data)
    _decode_into(message, data, 0, len(data), _Walk())
    return message


def _decode_into(message: Any, data: bytes, first: int, last: int, walk: _Walk) -> None:
    if walk.depth > MAX_DEPTH:
        raise WireError(f"messages are nested more than {MAX_DEPTH} deep")
    walk.depth += 1
    stores = _stores(message.__class__)
    for tag, start, stop in fields(data, first, last):
        walk.room -= 1
        if walk.room < 0:
            raise WireError(f"the message has more than {MAX_FIELDS} fields")
        store = stores.get(tag)
        if store is not None:
            store(message, data, start, stop, walk)
    walk.depth -= 1


@cache
def _stores(message_type: Any) -> dict[int, Store]:
    """How each field of a message type is stored, by the tags that it may have."""
    described = message_type._betterproto
    stores: dict[int, Store] = {}
    for name, meta in described.meta_by_field_name.items():
        tag = meta.number << 3
        if meta.proto_type in (betterproto2.TYPE_MESSAGE, betterproto2.TYPE_MAP):
            part_type = described.cls_by_field[name]
            if meta.proto_type == betterproto2.TYPE_MAP:
                value_type = described.cls_by_field[f"{name}.value"]
                stores[tag | LENGTH] = _store_entry(name, part_type, value_type)
            elif meta.repeated:
                stores[tag | LENGTH] = _append_message(name, part_type)
            else:
                stores[tag | LENGTH] = _merge_message(name, part_type)
        else:
            if meta.proto_type == betterproto2.TYPE_ENUM:
                scalar = scalars.enum(described.cls_by_field[name])
            else:
                scalar = _SCALARS[meta.proto_type]
            if meta.repeated:
                stores[tag | scalar.wire_type] = _append_scalar(name, scalar)
                if scalar.unpack is not None:
                    stores[tag | LENGTH] = _extend(name, scalar.unpack)
            else:
                stores[tag | scalar.wire_type] = _set_scalar(name, scalar)
        if meta.group is not None:
            members = described.oneof_field_by_group[meta.group]
            others = [field.name for field in members if field.name != name]
            for present in [key for key in stores if key >> 3 == meta.number]:
                stores[present] = _choose(others, stores[present])
    return stores


def _choose(others: list[str], store: Store) -> Store:
    def choose(message: Any, data: bytes, first: int, last: int, walk: _Walk) -> None:
        for other in others:
            setattr(message, other, None)
        store(message, data, first, last, walk)

    return choose


def _merge_message(name: str, part_type: type[betterproto2.Message]) -> Store:
    def merge(message: Any, data: bytes, first: int, last: int, walk: _Walk) -> None:
        part = getattr(message, name)
        if part is None:
            part = part_type()
            setattr(message, name, part)
        _decode_into(part, data, first, last, walk)

    return merge


def _append_message(name: str, part_type: type[betterproto2.Message]) -> Store:
    def append(message: Any, data: bytes, first: int, last: int, walk: _Walk) -> None:
        part = part_type()
        _decode_into(part, data, first, last, walk)
        getattr(message, name).append(part)

    return append


def _store_entry(
    name: str, entry_type: type[betterproto2.Message], value_type: Callable[[], Any]
) -> Store:
    def store(message: Any, data: bytes, first: int, last: int, walk: _Walk) -> None:
        entry: Any = entry_type()
        _decode_into(entry, data, first, last, walk)
        # Only a message can be None: the entry has a key alone.
        value = value_type() if entry.value is None else entry.value
        getattr(message, name)[entry.key] = value

    return store


def _set_scalar(name: str, scalar: Scalar) -> Store:
    read = scalar.read

    def store(message: Any, data: bytes, first: int, last: int, walk: _Walk) -> None:
        setattr(message, name, read(data, first, last))

    return store


def _append_scalar(name: str, scalar: Scalar) -> Store:
    read = scalar.read

    def append(message: Any, data: bytes, first: int, last: int, walk: _Walk) -> None:
        getattr(message, name).append(read(data, first, last))

    return append


def _extend(name: str, unpack: Callable[[bytes, int, int], list[Any]]) -> Store:
    def extend(message: Any, data: bytes, first: int, last: int, walk: _Walk) -> None:
        getattr(message, name).extend(unpack(data, first, last))

    return extend
