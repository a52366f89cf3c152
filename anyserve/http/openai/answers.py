"""The responses of a capability that gives text, read as far as these doors need."""

from __future__ import annotations

import attrs
from anyserve_protos.infer_wire import RAW_OUTPUT_TAG
from anyserve_protos.wire import Buffer, WireError, fields, read_varint, text

from anyserve.errors import Internal

_OUTPUT, _NAME = 0x2A, 0x0A
_RAW = RAW_OUTPUT_TAG[0]
_NO_LOGPROBS = b"[]"


@attrs.define
class Piece:
    """What one response brings."""

    text: str
    finish_reason: str = ""
    """Empty before the last piece of a text."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    """Of the text so far."""
    cached_tokens: int | None = None
    index: int = 0
    """Which of the texts it belongs to."""
    logprobs: bytes = b""
    """JSON: a list in the form of OpenAI's chats; empty where they were not asked for."""


class Reader:
    """Reads the responses of one request: what they have in common is looked at once."""

    def __init__(self) -> None:
        self._head = b"\0"
        """The last response without its raw contents."""
        self._names: tuple[str, ...] = ()
        """Its outputs."""

    def outputs(self, message: Buffer) -> dict[str, bytes]:
        """The raw contents of the outputs by name; raises `Internal` for no such response."""
        data = bytes(message)
        try:
            if not data.startswith(self._head):
                data = self._learned(data)
            contents = _contents(data, len(self._head))
        except WireError as error:
            raise Internal(f"the answer is no ModelInferResponse: {error}") from None
        if len(contents) != len(self._names):
            raise Internal(
                f"the answer has {len(self._names)} outputs, and contents of {len(contents)}"
            )
        return dict(zip(self._names, contents, strict=True))

    def read(self, message: Buffer) -> Piece | None:
        """The piece of text in a response; None where it brings none. Raises `Internal`."""
        outputs = self.outputs(message)
        if "text_output" not in outputs:
            return None
        try:
            piece = Piece(
                _text(outputs["text_output"]).decode(),
                _text(outputs.get("finish_reason", b"")).decode(),
                _number(outputs.get("num_input_tokens", b"")),
                _number(outputs.get("num_output_tokens", b"")),
            )
        except UnicodeDecodeError:
            raise Internal("the text of an answer is not UTF-8") from None
        if len(outputs) > 4:
            piece.index = _number(outputs.get("index", b""))
            logprobs = _text(outputs.get("logprobs", b""))
            piece.logprobs = logprobs if logprobs != _NO_LOGPROBS else b""
            if "num_cached_tokens" in outputs:
                piece.cached_tokens = _number(outputs["num_cached_tokens"])
        return piece

    def _learned(self, data: bytes) -> bytes:
        """Read a head; the message with its raw contents last."""
        names: list[str] = []
        head: list[bytes] = []
        contents: list[bytes] = []
        end = 0
        for tag, first, last in fields(data, 0, len(data)):
            if tag == _RAW:
                contents.append(data[end:last])
            else:
                head.append(data[end:last])
                if tag == _OUTPUT:
                    names.append(_name(data, first, last))
            end = last
        self._head, self._names = b"".join(head), tuple(names)
        return b"".join([self._head, *contents])


def _contents(data: bytes, position: int) -> list[bytes]:
    """The raw contents that follow one another from `position` to the end."""
    contents = []
    while position < len(data):
        if data[position] != _RAW:
            raise WireError("raw contents are the last fields")
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


def _text(content: bytes) -> bytes:
    """The first element of a BYTES tensor; empty where there is none."""
    return content[4 : 4 + int.from_bytes(content[:4], "little")]


def _number(content: bytes) -> int:
    """The first element of an INT32 or UINT32 tensor; 0 where there is none."""
    return int.from_bytes(content[:4], "little")
