"""ModelInferResponses, whose outputs are read by name and not decoded."""

from __future__ import annotations

from .infer_wire import RAW_OUTPUT_TAG
from .wire import Buffer, WireError, fields, read_varint, text

__all__ = ["ResponseReader"]

_OUTPUT, _NAME = 0x2A, 0x0A
_RAW = RAW_OUTPUT_TAG[0]
_NONE = b"\0"
"""What no message begins with."""


class ResponseReader:
    """Reads responses one by one: what they have in common is looked at once."""

    def __init__(self) -> None:
        self._head = _NONE
        """What stands before the raw contents of the last response."""
        self._tail = b""
        """What stands behind them."""
        self._names: tuple[str, ...] = ()
        """Its outputs."""

    @property
    def head(self) -> bytes:
        """What stands before the raw contents of the response that was read last."""
        return self._head

    def outputs(self, message: Buffer) -> dict[str, bytes]:
        """The raw contents of the outputs by name; raises `WireError` for no such response."""
        data = message if type(message) is bytes else bytes(message)
        contents = None
        if data.startswith(self._head) and data.endswith(self._tail):
            contents = _contents(data, len(self._head), len(data) - len(self._tail))
        if contents is None:
            contents = self._learn(data)
        if len(contents) != len(self._names):
            raise WireError(f"it has {len(self._names)} outputs, and contents of {len(contents)}")
        return dict(zip(self._names, contents, strict=True))

    def _learn(self, data: bytes) -> list[bytes]:
        """Read a head that is another; the raw contents of its message."""
        names: list[str] = []
        contents: list[bytes] = []
        head = tail = end = 0
        apart = False
        for tag, first, last in fields(data, 0, len(data)):
            if tag == _RAW:
                apart = apart or (bool(contents) and tail != end)
                contents.append(data[first:last])
                tail = last
            elif tag == _OUTPUT:
                names.append(_name(data, first, last))
            end = last
            if not contents:
                head = last
        self._head = _NONE if apart else data[:head]
        self._tail, self._names = data[max(head, tail) :], tuple(names)
        return contents


def _contents(data: bytes, position: int, stop: int) -> list[bytes] | None:
    """The raw contents that follow one another in `data[position:stop]`; None where more does."""
    contents = []
    while position < stop:
        if data[position] != _RAW:
            return None
        first = position + 2
        if first > stop or (size := data[position + 1]) > 0x7F:
            size, first = read_varint(data, position + 1, len(data))
        position = first + size
        contents.append(data[first:position])
    return contents if position == stop else None


def _name(data: bytes, first: int, last: int) -> str:
    for tag, start, stop in fields(data, first, last):
        if tag == _NAME:
            return text(data, start, stop)
    return ""
