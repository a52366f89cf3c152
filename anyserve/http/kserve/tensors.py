"""Tensors as JSON has them ⇄ their bytes as KServe's raw contents have them. Pure.

Without numpy, which a replica does without.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

from anyserve.errors import InvalidArgument

_CODES = {
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP32": "f",
    "FP64": "d",
}
"""Of the `array` module."""
_LENGTH = struct.Struct("<I")
_DEEPEST = 16
"""Dimensions of nested data."""


def to_raw(what: str, datatype: str, shape: Sequence[int], data: Sequence[Any]) -> bytes:
    """The raw contents of JSON data, flat or nested, in row-major order.

    what: how errors call the tensor. Raises `InvalidArgument`.
    """
    flat = _flat(what, data)
    if len(flat) != math.prod(shape):
        raise InvalidArgument(
            f"{what}: {len(flat)} elements, but shape {list(shape)} has {math.prod(shape)}"
        )
    try:
        return _pack(datatype, flat)
    except (TypeError, OverflowError, struct.error, UnicodeEncodeError) as error:
        raise InvalidArgument(f"{what}: an element is no {datatype}: {error}") from None
    except KeyError:
        raise InvalidArgument(
            f"{what}: {datatype[:20]!r} can't come as JSON: send it as binary data"
        ) from None


def from_raw(datatype: str, raw: bytes) -> list[Any]:
    """The elements of raw contents; text that is no UTF-8 has U+FFFD where it is not."""
    if datatype == "BYTES":
        return [element.decode("utf-8", "replace") for element in _elements(raw)]
    if datatype == "BOOL":
        return [byte != 0 for byte in raw]
    if datatype == "FP16":
        return list(struct.unpack(f"<{len(raw) // 2}e", raw))
    if datatype == "BF16":  # the upper half of an FP32
        words = array("H", raw)
        raw = array("I", [word << 16 for word in words]).tobytes()
        datatype = "FP32"
    values = array(_CODES[datatype], raw)
    return values.tolist()


def _flat(what: str, data: Sequence[Any]) -> Sequence[Any]:
    for _ in range(_DEEPEST):
        if not data or not isinstance(data[0], list):
            return data
        if not all(isinstance(part, list) for part in data):
            break
        data = list(chain.from_iterable(data))
    raise InvalidArgument(f"{what}: the data is nested unevenly or too deeply")


def _pack(datatype: str, flat: Sequence[Any]) -> bytes:
    match datatype:
        case "BYTES":
            pieces: list[bytes] = []
            for text in flat:
                if not isinstance(text, str):
                    raise TypeError(f"a {type(text).__name__} is no text")
                element = text.encode()
                pieces += (_LENGTH.pack(len(element)), element)
            return b"".join(pieces)
        case "BOOL":
            if not all(value in (0, 1) for value in flat):
                raise TypeError("it is neither true nor false")
            return bytes(map(int, flat))
        case "FP16":
            return struct.pack(f"<{len(flat)}e", *flat)
        case _:
            return array(_CODES[datatype], flat).tobytes()


def _elements(raw: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(raw):
        (size,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        found.append(raw[at : at + size])
        at += size
    return found
