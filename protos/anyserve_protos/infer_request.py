"""A ModelInferRequest without its raw contents, read for whoever runs it.

Written for its fields, so that a worker needs neither betterproto2 nor the generated classes: they
would be a tenth of its memory. The rules are those of `codec.decode`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from . import scalars
from .infer_wire import Parameter
from .wire import LENGTH, Buffer, WireError, fields, text

MAX_FIELDS = 1 << 18
"""Fields of a request and of the messages in it, together; packed numbers are one. Each costs up
to a microsecond, in which an event loop does nothing else."""

# Tags: a field's number and wire type.
_MODEL_NAME, _MODEL_VERSION, _ID, _PARAMETERS = 0x0A, 0x12, 0x1A, 0x22
_INPUTS, _OUTPUTS = 0x2A, 0x32
_NAME, _DATATYPE, _INPUT_PARAMETERS, _CONTENTS = 0x0A, 0x12, 0x22, 0x2A
_SHAPE, _PACKED_SHAPE = 0x18, 0x1A
_OUTPUT_PARAMETERS = 0x12
_KEY, _VALUE = 0x0A, 0x12

_CHOICES = {
    0x08: scalars.BOOL.read,
    0x10: scalars.INT64.read,
    0x1A: scalars.STRING.read,
    0x21: scalars.DOUBLE.read,
    0x28: scalars.UINT64.read,
}
"""The members of InferParameter, by tag."""

_ELEMENTS = {
    "bool_contents": (1, scalars.BOOL),
    "int_contents": (2, scalars.INT32),
    "int64_contents": (3, scalars.INT64),
    "uint_contents": (4, scalars.UINT32),
    "uint64_contents": (5, scalars.UINT64),
    "fp32_contents": (6, scalars.FLOAT),
    "fp64_contents": (7, scalars.DOUBLE),
    "bytes_contents": (8, scalars.BYTES),
}
"""The fields of InferTensorContents."""
_Read: TypeAlias = Callable[[bytes, int, int], Any]
_ONE: dict[int, tuple[str, _Read]] = {
    number << 3 | scalar.wire_type: (name, scalar.read)
    for name, (number, scalar) in _ELEMENTS.items()
}
_PACKED: dict[int, tuple[str, _Read]] = {
    number << 3 | LENGTH: (name, scalar.unpack)
    for name, (number, scalar) in _ELEMENTS.items()
    if scalar.unpack is not None
}


@attrs.frozen
class InputTensor:
    """One input."""

    name: str = ""
    datatype: str = ""
    shape: Sequence[int] = ()
    parameters: Mapping[str, Parameter] = attrs.field(factory=dict)
    """Those that have a value."""
    contents: Mapping[str, Sequence[Any]] = attrs.field(factory=dict)
    """Elements that are typed, by the name of their field in InferTensorContents."""


@attrs.frozen
class RequestedOutput:
    """One output that the request asks for."""

    name: str = ""
    parameters: Mapping[str, Parameter] = attrs.field(factory=dict)


@attrs.frozen
class InferRequest:
    """A request but for what routed it and its raw contents."""

    id: str = ""
    parameters: Mapping[str, Parameter] = attrs.field(factory=dict)
    inputs: Sequence[InputTensor] = ()
    outputs: Sequence[RequestedOutput] = ()


def decode_request(head: Buffer) -> InferRequest:
    """The request of which `head` is all but the raw contents.

    Takes time in proportion to its packed numbers and to its fields, of which there are at most
    `MAX_FIELDS`. Raises `WireError` for more, and when `head` is no ModelInferRequest.
    """
    return _Reader(bytes(head)).request()


class _Reader:
    """Reads one request; the methods take the first position of a message and the one behind it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._room = MAX_FIELDS

    def request(self) -> InferRequest:
        data = self._data
        identity = ""
        parameters: dict[str, Parameter] = {}
        inputs: list[InputTensor] = []
        outputs: list[RequestedOutput] = []
        for tag, first, last in self._fields(0, len(data)):
            if tag == _INPUTS:
                inputs.append(self._input(first, last))
            elif tag == _OUTPUTS:
                outputs.append(self._output(first, last))
            elif tag == _PARAMETERS:
                self._parameter(first, last, parameters)
            elif tag == _ID:
                identity = text(data, first, last)
            elif tag in (_MODEL_NAME, _MODEL_VERSION):
                text(data, first, last)  # whoever routed it has it; here it only has to be text
        return InferRequest(identity, parameters, inputs, outputs)

    def _input(self, first: int, last: int) -> InputTensor:
        data = self._data
        name = datatype = ""
        shape: list[int] = []
        parameters: dict[str, Parameter] = {}
        contents: dict[str, list[Any]] = {}
        for tag, start, stop in self._fields(first, last):
            if tag == _NAME:
                name = text(data, start, stop)
            elif tag == _DATATYPE:
                datatype = text(data, start, stop)
            elif tag == _PACKED_SHAPE:
                shape += _unpack_shape(data, start, stop)
            elif tag == _SHAPE:
                shape.append(scalars.INT64.read(data, start, stop))
            elif tag == _INPUT_PARAMETERS:
                self._parameter(start, stop, parameters)
            elif tag == _CONTENTS:
                self._contents(start, stop, contents)
        return InputTensor(name, datatype, shape, parameters, contents)

    def _output(self, first: int, last: int) -> RequestedOutput:
        name = ""
        parameters: dict[str, Parameter] = {}
        for tag, start, stop in self._fields(first, last):
            if tag == _NAME:
                name = text(self._data, start, stop)
            elif tag == _OUTPUT_PARAMETERS:
                self._parameter(start, stop, parameters)
        return RequestedOutput(name, parameters)

    def _parameter(self, first: int, last: int, parameters: dict[str, Parameter]) -> None:
        """Note one entry of the parameters; a later one of the same key counts alone."""
        key = ""
        value: Parameter | None = None
        for tag, start, stop in self._fields(first, last):
            if tag == _KEY:
                key = text(self._data, start, stop)
            elif tag == _VALUE:
                for choice, inner, inner_stop in self._fields(start, stop):
                    read = _CHOICES.get(choice)
                    if read is not None:
                        value = read(self._data, inner, inner_stop)
        if value is None:
            parameters.pop(key, None)
        else:
            parameters[key] = value

    def _contents(self, first: int, last: int, contents: dict[str, list[Any]]) -> None:
        """Add the elements of an InferTensorContents to those that came before."""
        for tag, start, stop in self._fields(first, last):
            if tag in _ONE:
                name, read = _ONE[tag]
                contents.setdefault(name, []).append(read(self._data, start, stop))
            elif tag in _PACKED:
                name, unpack = _PACKED[tag]
                elements = unpack(self._data, start, stop)
                if elements:
                    contents.setdefault(name, []).extend(elements)

    def _fields(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        for field in fields(self._data, first, last):
            self._room -= 1
            if self._room < 0:
                raise WireError(f"the message has more than {MAX_FIELDS} fields")
            yield field


def _unpack_shape(data: bytes, first: int, last: int) -> list[int]:
    assert scalars.INT64.unpack is not None
    dimensions: list[int] = scalars.INT64.unpack(data, first, last)
    return dimensions
