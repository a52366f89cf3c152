"""Protobuf's scalar types: how one value of each is read, and a packed field of them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import attrs

from .wire import FIXED32, FIXED64, LENGTH, VARINT, WireError, read_varint, text

_SHORT = 128
"""Packed varints in up to so many bytes are read one by one, which is then the faster way."""


@attrs.frozen
class Scalar:
    """How one of protobuf's scalar types is read."""

    wire_type: int
    read: Callable[[bytes, int, int], Any]
    """From the data and the positions that `wire.fields` gives."""
    unpack: Callable[[bytes, int, int], list[Any]] | None = None
    """All values of a packed field; None where there is no such form."""


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _fixed(wire_type: int, code: str) -> Scalar:
    one = struct.Struct(f"<{code}")

    def unpack(data: bytes, first: int, last: int) -> list[Any]:
        count, rest = divmod(last - first, one.size)
        if rest:
            raise WireError("packed numbers are cut short")
        return list(struct.unpack_from(f"<{count}{code}", data, first))

    return Scalar(wire_type, lambda data, first, last: one.unpack_from(data, first)[0], unpack)


def _varint(dtype: str, convert: Callable[[int], Any]) -> Scalar:
    def unpack(data: bytes, first: int, last: int) -> list[Any]:
        if last - first > _SHORT:
            # Brings numpy along, which not all who decode messages need.
            from .packed import unpack_varints

            return unpack_varints(data, first, last, dtype)
        values: list[Any] = []
        while first < last:
            value, first = read_varint(data, first, last)
            values.append(convert(value))
        return values

    return Scalar(VARINT, lambda data, first, last: convert(first), unpack)


def enum(python_type: Callable[[int], Any]) -> Scalar:
    """An enumeration whose values become `python_type`."""
    return _varint("int32", lambda value: python_type(_signed(value, 32)))


STRING = Scalar(LENGTH, text)
BYTES = Scalar(LENGTH, lambda data, first, last: data[first:last])
FLOAT = _fixed(FIXED32, "f")
DOUBLE = _fixed(FIXED64, "d")
BOOL = _varint("bool", bool)
INT32 = _varint("int32", lambda value: _signed(value, 32))
INT64 = _varint("int64", lambda value: _signed(value, 64))
UINT32 = _varint("uint32", lambda value: value & 0xFFFF_FFFF)
UINT64 = _varint("uint64", lambda value: value)
