"""Protobuf's wire format: one strict walk over the fields of a message, and varints.

betterproto2's own parser takes a message that is cut short, a wrong wire type or a group for
something else than it is. What reads bytes from outside goes through here instead. It accepts what
Google's parsers accept, but for groups, which are long deprecated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes, flat: what `len()` says is their number."""

VARINT = 0
FIXED64 = 1
LENGTH = 2
FIXED32 = 5

_BYTES = [bytes((value,)) for value in range(0x80)]
_MASK64 = (1 << 64) - 1
_LIMIT32 = 1 << 32
_MAX_LENGTH = (1 << 31) - 1


class WireError(ValueError):
    """The bytes are no message of the type that they should be."""


def fields(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Walk over the fields of the message at `data[start:stop]`, in order.

    Yields for each its tag (field number and wire type), and: the value and the position behind it
    for a varint, the first position and the one behind the last for all others. Raises `WireError`
    where the message is malformed, when the walk gets there.
    """
    position = start
    while position < stop:
        tag = data[position]
        position += 1
        if tag > 0x7F:
            tag, position = _read_tag(data, position - 1, stop)
        if tag < 8:
            raise WireError("a field has number 0")
        kind = tag & 7
        if kind == LENGTH:
            if position < stop and (length := data[position]) < 0x80:
                first = position + 1
            else:
                length, first = read_varint(data, position, stop)
                if length > _MAX_LENGTH:
                    raise WireError("a field is longer than 2 GiB")
            position = first + length
        elif kind == VARINT:
            first, position = read_varint(data, position, stop)
        elif kind == FIXED64:
            first, position = position, position + 8
        elif kind == FIXED32:
            first, position = position, position + 4
        else:
            raise WireError("a field is a group or has an unknown wire type")
        if position > stop:
            raise WireError("a field reaches past the end")
        yield tag, first, position


def read_varint(data: bytes, start: int, stop: int) -> tuple[int, int]:
    """The unsigned 64-bit varint at `start`, and the position behind it."""
    value = shift = 0
    for position in range(start, min(start + 10, stop)):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK64, position + 1
        shift += 7
    raise WireError("a varint is cut short or longer than 10 bytes")


def _read_tag(data: bytes, start: int, stop: int) -> tuple[int, int]:
    """As `read_varint`, for tags, which have 32 bits in at most 5 bytes."""
    value, position = read_varint(data, start, min(start + 5, stop))
    if value >= _LIMIT32:
        raise WireError("a tag has more than 32 bits")
    return value, position


def encode_varint(value: int) -> bytes:
    """An unsigned number as a varint."""
    if 0 <= value < 0x80:
        return _BYTES[value]
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def text(data: bytes, first: int, last: int) -> str:
    """The string at `data[first:last]`."""
    try:
        return data[first:last].decode()
    except UnicodeDecodeError as error:
        raise WireError(f"a string is not UTF-8: {error.reason}") from error
