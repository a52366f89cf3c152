"""ModelInferResponses of one request, whose outputs are read by name and not decoded."""

from __future__ import annotations

from .infer_wire import RAW_OUTPUT_TAG
from .wire import Buffer, WireError, fields, read_varint, text

__all__ = ["ResponseReader"]

_OUTPUT, _NAME = 0x2A, 0x0A
_RAW = RAW_OUTPUT_TAG[0]


class ResponseReader:
    """Reads responses one by one: what they have in common is looked at once."""

    def __init__(self) -> None:
        self._head = b"\0"
        """The last response without its raw contents."""
        self._names: tuple[str, ...] = ()
        """Its outputs."""

    def outputs(self, message: Buffer) -> dict[str, bytes]:
        """The raw contents of the outputs by name; raises `WireError` for no such response."""
        data = bytes(message)
        contents = None
        if data.startswith(self._head):
            contents = _contents(data, len(self._head))
        if contents is None:
            contents = self._learn(data)
        if len(contents) != len(self._names):
            raise WireError(f"it has {len(self._names)} outputs, and contents of {len(contents)}")
        return dict(zip(self._names, contents, strict=True))

    def _learn(self, data: bytes) -> list[bytes]:
        """Read a head that is another; the raw contents of its message."""
        names: list[str] = []
        head: list[bytes] = []
        contents: list[bytes] = []
        end = 0
        for tag, first, last in fields(data, 0, len(data)):
            if tag == _RAW:
                contents.append(data[first:last])
            else:
                head.append(data[end:last])
                if tag == _OUTPUT:
                    names.append(_name(data, first, last))
            end = last
        self._head, self._names = b"".join(head), tuple(names)
        return contents


def _contents(data: bytes, position: int) -> list[bytes] | None:
    """The raw contents that follow one another from `position` to the end; None where more does."""
    contents = []
    while position < len(data):
        if data[position] != _RAW:
            return None
        size, first = read_varint(data, position + 1, len(data))
        position = first + size
        if position > len(data):
            raise WireError("a field reaches past the end")
        contents.append(data[first:position])
    return contents


def _name(data: bytes, first: int, last: int) -> str:
    for tag, start, stop in fields(data, first, last):
        if tag == _NAME:
            return text(data, start, stop)
    return ""
