"""ModelInferRequest and ModelInferResponse as bytes: routed, taken apart and joined unparsed.

A message is a head, everything but the raw contents of its tensors, and those. On the way through
a server the head stays bytes and the raw contents are views: only what routes a request is read.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeAlias

import attrs

from .wire import Buffer, WireError, encode_varint, fields, text

__all__ = [
    "MAX_FIELDS",
    "RAW_OUTPUT_TAG",
    "Buffer",
    "InferRequestHead",
    "Parameter",
    "WireError",
    "join_request",
    "response_pieces",
    "scan_request",
    "scan_tensor_names",
    "scan_tensor_parameters",
    "stream_content",
    "stream_response",
]

Parameter: TypeAlias = bool | int | float | str

MAX_FIELDS = 16_384
"""Fields that are read of a request, together: inputs, outputs and raw contents, and some four for
each parameter. Without it, one message of empty fields would hold the event loop for minutes."""

_TOO_MANY = f"the message has more than {MAX_FIELDS} fields"

# Tags: a field's number and wire type. 1 to 4 are the same in request and response.
_MODEL_NAME, _MODEL_VERSION, _ID, _PARAMETERS = 0x0A, 0x12, 0x1A, 0x22
_INPUT, _OUTPUT, _RAW_INPUT, _RAW_OUTPUT = 0x2A, 0x32, 0x3A, 0x32
_TENSOR_NAME, _INPUT_PARAMETERS, _OUTPUT_PARAMETERS = 0x0A, 0x22, 0x12
_KEY, _VALUE = 0x0A, 0x12
_BOOL, _INT64, _STRING, _DOUBLE, _UINT64 = 0x08, 0x10, 0x1A, 0x21, 0x28
_ERROR_MESSAGE, _INFER_RESPONSE = 0x0A, 0x12

_DOUBLE_FORMAT = struct.Struct("<d")

RAW_OUTPUT_TAG = bytes((_RAW_OUTPUT,))
"""What comes before the length of each of a response's raw contents."""


@attrs.frozen
class InferRequestHead:
    """What routes a ModelInferRequest, and the message in the two parts that are passed on."""

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, Parameter]
    """Those that have a value."""
    head: bytes
    """The message without raw_input_contents."""
    raw: Sequence[memoryview]
    """raw_input_contents: views of the message that was scanned, or what stands for them."""


def scan_request(body: bytes) -> InferRequestHead:
    """Take a ModelInferRequest apart, copying nothing of its tensors.

    Inputs and outputs are not looked into: that they are malformed shows in `decode_request`.
    Raises `WireError` when the message is malformed or has more than `MAX_FIELDS` fields.
    """
    name = version = identity = ""
    parameters: dict[str, Parameter] = {}
    raw: list[memoryview] = []
    view = memoryview(body)
    pieces: list[bytes] = []
    kept = end = 0  # the head goes on at `kept`; the field before ends at `end`
    room = MAX_FIELDS
    for tag, first, last in fields(body, 0, len(body)):
        room -= 1
        if room < 0:
            raise WireError(_TOO_MANY)
        if tag == _RAW_INPUT:
            raw.append(view[first:last])
            if kept < end:
                pieces.append(body[kept:end])
            kept = last
        elif tag == _MODEL_NAME:
            name = text(body, first, last)
        elif tag == _PARAMETERS:
            room = _scan_parameter(body, first, last, parameters, room)
        elif tag == _ID:
            identity = text(body, first, last)
        elif tag == _MODEL_VERSION:
            version = text(body, first, last)
        end = last
    if kept < end:
        pieces.append(body[kept:end])
    head = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    return InferRequestHead(name, version, identity, parameters, head, raw)


def scan_tensor_parameters(head: bytes) -> list[tuple[str, dict[str, Parameter]]]:
    """The name and the parameters of each input and requested output, in order.

    Contents are not looked into. Raises `WireError` when the message is malformed as far as it is
    read, or when that is more than `MAX_FIELDS` fields.
    """
    tensors: list[tuple[str, dict[str, Parameter]]] = []
    room = MAX_FIELDS
    for tag, first, last in fields(head, 0, len(head)):
        room -= 1
        if room < 0:
            raise WireError(_TOO_MANY)
        if tag in (_INPUT, _OUTPUT):
            name = ""
            parameters: dict[str, Parameter] = {}
            entry = _INPUT_PARAMETERS if tag == _INPUT else _OUTPUT_PARAMETERS
            for part, start, stop in fields(head, first, last):
                room -= 1
                if room < 0:
                    raise WireError(_TOO_MANY)
                if part == _TENSOR_NAME:
                    name = text(head, start, stop)
                elif part == entry:
                    room = _scan_parameter(head, start, stop, parameters, room)
            tensors.append((name, parameters))
    return tensors


def scan_tensor_names(body: bytes) -> tuple[list[str], list[str]]:
    """The names of a request's inputs, and of the outputs that it asks for.

    Raises `WireError` as `scan_tensor_parameters` does.
    """
    inputs: list[str] = []
    outputs: list[str] = []
    room = MAX_FIELDS
    for tag, first, last in fields(body, 0, len(body)):
        room -= 1
        if tag in (_INPUT, _OUTPUT):
            name = ""
            for part, start, stop in fields(body, first, last):
                room -= 1
                if part == _TENSOR_NAME:
                    name = text(body, start, stop)
                    break
                if room < 0:
                    break
            (inputs if tag == _INPUT else outputs).append(name)
        if room < 0:
            raise WireError(_TOO_MANY)
    return inputs, outputs


def _scan_parameter(
    body: bytes, first: int, last: int, parameters: dict[str, Parameter], room: int
) -> int:
    """Note one entry of the parameters; a later one of the same key counts alone.

    room: how many fields may be read. Returns how many may be after this.
    """
    key = ""
    value: Parameter | None = None
    for tag, start, stop in fields(body, first, last):
        room -= 1
        if room < 0:
            raise WireError(_TOO_MANY)
        if tag == _KEY:
            key = text(body, start, stop)
        elif tag == _VALUE:
            for choice, inner, inner_stop in fields(body, start, stop):
                room -= 1
                if room < 0:
                    raise WireError(_TOO_MANY)
                if choice == _BOOL:
                    value = inner != 0
                elif choice == _INT64:
                    value = inner - (1 << 64) if inner >> 63 else inner
                elif choice == _STRING:
                    value = text(body, inner, inner_stop)
                elif choice == _DOUBLE:
                    value = _DOUBLE_FORMAT.unpack_from(body, inner)[0]
                elif choice == _UINT64:
                    value = inner
    if value is None:
        parameters.pop(key, None)
    else:
        parameters[key] = value
    return room


def join_request(head: Buffer, raw: Sequence[Buffer]) -> bytes:
    """A ModelInferRequest of its two parts; each tensor is copied once."""
    return b"".join(_pieces(head, _RAW_INPUT, raw))


def response_pieces(head: Buffer, raw: Sequence[Buffer]) -> list[Buffer]:
    """A ModelInferResponse of its two parts, to be joined."""
    return _pieces(head, _RAW_OUTPUT, raw)


def stream_response(*pieces: Buffer) -> list[Buffer]:
    """A ModelStreamInferResponse with the ModelInferResponse of these pieces, to be joined."""
    size = sum(map(len, pieces))
    return [bytes((_INFER_RESPONSE,)) + encode_varint(size), *pieces]


def stream_content(message: bytes) -> tuple[str, memoryview]:
    """What a ModelStreamInferResponse has: an error message, and a ModelInferResponse's bytes.

    Either is empty where it is not there. Raises `WireError` for another message.
    """
    error, response = "", memoryview(b"")
    for tag, first, last in fields(message, 0, len(message)):
        if tag == _ERROR_MESSAGE:
            error = text(message, first, last)
        elif tag == _INFER_RESPONSE:
            response = memoryview(message)[first:last]
    return error, response


def _pieces(head: Buffer, tag: int, raw: Sequence[Buffer]) -> list[Buffer]:
    pieces: list[Buffer] = [head]
    for content in raw:
        pieces.append(bytes((tag,)) + encode_varint(len(content)))
        pieces.append(content)
    return pieces
