"""Responses that differ in their contents alone, written by filling in what is the same.

A stream sends hundreds of responses with the same names, datatypes and shapes; nearly all of it
are small tensors of numbers, and texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import numpy as np
from anyserve_protos.infer_wire import RAW_OUTPUT_TAG
from anyserve_protos.wire import encode_varint

from anyserve import tensors
from anyserve.errors import Internal
from anyserve.link.frames import LEASE_THRESHOLD, Buffer

_LENGTH_SIZE = 4
"""Bytes before each element of a BYTES tensor that say how long it is, little-endian."""


@attrs.frozen
class Template:
    """All that responses of one form have in common."""

    head: bytes
    """The message without its raw contents."""
    outputs: list[tuple[str, bytes | None]]
    """Names, with what comes before the contents: the same for numbers, not for texts."""

    @classmethod
    def of(cls, head: bytes, names: Iterable[str], values: Mapping[str, Any]) -> Template | None:
        """From a response that was encoded; None where its form does not decide the rest.

        Templates are for small arrays of numbers as they go on the wire, `str` and `bytes`.
        """
        outputs: list[tuple[str, bytes | None]] = []
        for name in names:
            value = values[name]
            if isinstance(value, str | bytes):
                outputs.append((name, None))
            elif type(value) is np.ndarray and _goes_as_it_is(value):
                outputs.append((name, RAW_OUTPUT_TAG + encode_varint(value.nbytes)))
            else:
                return None
        return cls(head, outputs)

    def fill(self, values: Mapping[str, Any]) -> list[Buffer]:
        """The message with these values, in pieces, all of them copies.

        Raises `Internal` for text that is no UTF-8.
        """
        pieces: list[Buffer] = [self.head]
        for name, before in self.outputs:
            value = values[name]
            if before is not None:
                pieces += (before, value.tobytes())
            else:
                text = value if isinstance(value, bytes) else _utf8(name, value)
                length = len(text)
                pieces += (
                    RAW_OUTPUT_TAG + encode_varint(_LENGTH_SIZE + length),
                    length.to_bytes(_LENGTH_SIZE, "little"),
                    text,
                )
        return pieces


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Internal(
            f"output {name!r} can't be encoded: a string is not UTF-8: {error.reason}"
        ) from error


def _goes_as_it_is(array: np.ndarray[Any, Any]) -> bool:
    if array.nbytes >= LEASE_THRESHOLD or array.dtype == np.object_:
        return False
    return bool(array.dtype == tensors.numpy_dtype(tensors.datatype_of(array)))
