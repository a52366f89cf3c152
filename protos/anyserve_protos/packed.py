"""Packed varints by the thousand, read by numpy.

A module of its own since many who decode messages, a replica among them, need no numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .wire import WireError

_CHUNK = 1 << 16
"""Bytes that are read at once, since the arrays on the way are larger."""


def unpack_varints(data: bytes, first: int, last: int, dtype: str) -> list[Any]:
    """The varints that fill `data[first:last]`, each cut down to `dtype`.

    Raises `WireError` when the last is cut short, or one is longer than 10 bytes.
    """
    values: list[Any] = []
    while first < last:
        stop = min(first + _CHUNK, last)
        while stop < last and data[stop - 1] > 0x7F:
            stop += 1
        values += _unpack_chunk(data, first, stop).astype(dtype).tolist()
        first = stop
    return values


def _unpack_chunk(data: bytes, first: int, last: int) -> npt.NDArray[np.uint64]:
    """The varints that fill `data[first:last]`, which is not empty."""
    raw = np.frombuffer(data, np.uint8, last - first, first)
    ends = np.flatnonzero(raw < 0x80)
    if not ends.size or ends[-1] != raw.size - 1:
        raise WireError("packed numbers are cut short")
    starts = np.concatenate(([0], ends[:-1] + 1))
    longest = int((ends - starts).max()) + 1
    if longest > 10:
        raise WireError("a varint is longer than 10 bytes")
    values = np.zeros(ends.size, np.uint64)
    places = np.arange(ends.size)
    for byte in range(longest):
        bits = (raw[starts[places] + byte] & 0x7F).astype(np.uint64)
        values[places] |= bits << np.uint64(7 * byte)
        places = places[starts[places] + byte < ends[places]]
    return values
