"""A ModelInferResponse without its raw contents, written as bytes; each response has one.

The generated classes write the same, and take ten times as long.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import attrs

from .infer_wire import Parameter
from .wire import encode_varint

__all__ = ["OutputHead", "encode_response_head"]

_MODEL_NAME, _MODEL_VERSION, _ID, _PARAMETERS, _OUTPUTS = 0x0A, 0x12, 0x1A, 0x22, 0x2A
_NAME, _DATATYPE, _SHAPE, _OUTPUT_PARAMETERS = 0x0A, 0x12, 0x1A, 0x22
_KEY, _VALUE = 0x0A, 0x12
_BOOL, _INT64, _STRING, _DOUBLE, _UINT64 = 0x08, 0x10, 0x1A, 0x21, 0x28

_DOUBLE_FORMAT = struct.Struct("<Bd")


@attrs.frozen
class OutputHead:
    """What a response says of an output beside its contents."""

    name: str
    datatype: str
    shape: Sequence[int]
    parameters: Mapping[str, Parameter] = attrs.field(factory=dict)


def encode_response_head(
    model_name: str,
    model_version: str,
    identity: str,
    parameters: Mapping[str, Parameter],
    outputs: Sequence[OutputHead],
) -> bytes:
    """The message, whose raw contents can be put behind it.

    Raises `ValueError` for an int of more than 64 bits and a string that has no UTF-8.
    """
    pieces = bytearray()
    for tag, value in (
        (_MODEL_NAME, model_name),
        (_MODEL_VERSION, model_version),
        (_ID, identity),
    ):
        if value:
            _add(pieces, tag, value.encode())
    _add_parameters(pieces, _PARAMETERS, parameters)
    for output in outputs:
        _add(pieces, _OUTPUTS, _encode_output(output))
    return bytes(pieces)


def _encode_output(output: OutputHead) -> bytearray:
    pieces = bytearray()
    _add(pieces, _NAME, output.name.encode())
    _add(pieces, _DATATYPE, output.datatype.encode())
    if output.shape:
        _add(pieces, _SHAPE, b"".join(map(encode_varint, output.shape)))
    _add_parameters(pieces, _OUTPUT_PARAMETERS, output.parameters)
    return pieces


def _add_parameters(pieces: bytearray, tag: int, parameters: Mapping[str, Parameter]) -> None:
    for key, value in parameters.items():
        entry = bytearray()
        _add(entry, _KEY, key.encode())
        _add(entry, _VALUE, _encode_parameter(value))
        _add(pieces, tag, entry)


def _encode_parameter(value: Parameter) -> bytes | bytearray:
    if isinstance(value, bool):
        return bytes((_BOOL, value))
    if isinstance(value, int):
        if -(1 << 63) <= value < 1 << 63:
            return bytes((_INT64,)) + encode_varint(value & (1 << 64) - 1)
        if 0 <= value < 1 << 64:
            return bytes((_UINT64,)) + encode_varint(value)
        raise ValueError(f"{value} has more than 64 bits")
    if isinstance(value, float):
        return _DOUBLE_FORMAT.pack(_DOUBLE, value)
    pieces = bytearray()
    _add(pieces, _STRING, str(value).encode())
    return pieces


def _add(pieces: bytearray, tag: int, content: bytes | bytearray) -> None:
    """Add a field that is its length and that many bytes."""
    pieces.append(tag)
    pieces += encode_varint(len(content))
    pieces += content
