"""The responses of a capability that gives text, read as far as these doors need."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from anyserve_protos.response_outputs import ResponseReader
from anyserve_protos.wire import Buffer, WireError

from anyserve.errors import Internal

_NO_LOGPROBS = b"[]"
_USUAL = ("text_output", "finish_reason", "num_input_tokens", "num_output_tokens")
"""The outputs of most responses, and the first ones of all that engines give."""
_TOKEN_IDS = "token_ids"
_LENGTH = _NUMBER = 4
"""Bytes of an element's length, and of a number."""
_MOST = 0x7F
"""Bytes of a text, with its length, whose size takes one byte."""
_NONE = b"\0"
"""What no message begins with."""


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
    """Reads the responses of one request.

    In the midst of a text a response differs from the one before it by its text, its count of
    tokens and their ids, which are not for these doors; that all else is the same is seen at once,
    and saves reading it.
    """

    def __init__(self, responses: ResponseReader) -> None:
        """responses: that of all requests, whose responses are alike."""
        self._responses = responses
        self._before = _NONE
        """What stands before the length of the text."""
        self._between = b""
        """What stands between the text and the count of tokens."""
        self._ids = 0
        """Bytes of the token ids; 0 where there are none."""
        self._before_ids = b""
        """What stands between the count of tokens and their ids, where there are some."""
        self._behind = b""
        """What stands behind these."""
        self._last: Piece
        """What all that says."""

    def outputs(self, message: Buffer) -> dict[str, bytes]:
        """The raw contents of the outputs by name; raises `Internal` for no such response."""
        try:
            return self._responses.outputs(message)
        except WireError as error:
            raise Internal(f"the answer is no ModelInferResponse: {error}") from None

    def read(self, message: Buffer) -> Piece | None:
        """The piece of text in a response; None where it brings none. Raises `Internal`."""
        data = message if type(message) is bytes else bytes(message)
        try:
            return self._read_alike(data) or self._read(data)
        except UnicodeDecodeError:
            raise Internal("the text of an answer is not UTF-8") from None

    def _read_alike(self, data: bytes) -> Piece | None:
        """The piece in a response like the last one; None for another."""
        before, between, behind = self._before, self._between, self._behind
        before_ids = self._before_ids
        ids = len(data) - len(behind) - self._ids
        first, count = len(before) + 1, ids - len(before_ids) - _NUMBER
        stop = count - len(between)
        if (
            stop < first + _LENGTH
            or not data.startswith(before)
            or data[first - 1] != stop - first  # no size of several bytes begins with itself
            or int.from_bytes(data[first : first + _LENGTH], "little") != stop - first - _LENGTH
            or data[stop:count] != between
            or data[count + _NUMBER : ids] != before_ids
            or not data.endswith(behind)
        ):
            return None
        last = self._last
        return Piece(
            data[first + _LENGTH : stop].decode(),
            "",
            last.prompt_tokens,
            int.from_bytes(data[count : count + _NUMBER], "little"),
            last.cached_tokens,
            last.index,
            last.logprobs,
        )

    def _read(self, data: bytes) -> Piece | None:
        outputs = self.outputs(data)
        if "text_output" not in outputs:
            return None
        piece = Piece(
            _text(outputs["text_output"]).decode(),
            _text(outputs.get("finish_reason", b"")).decode(),
            _number(outputs.get("num_input_tokens", b"")),
            _number(outputs.get("num_output_tokens", b"")),
        )
        if len(outputs) > len(_USUAL):
            piece.index = _number(outputs.get("index", b""))
            logprobs = _text(outputs.get("logprobs", b""))
            piece.logprobs = logprobs if logprobs != _NO_LOGPROBS else b""
            if "num_cached_tokens" in outputs:
                piece.cached_tokens = _number(outputs["num_cached_tokens"])
        if not piece.finish_reason:
            self._remember(data, outputs, piece)
        return piece

    def _remember(self, data: bytes, outputs: Mapping[str, bytes], piece: Piece) -> None:
        """What responses like this one have in common, where it has the usual form."""
        size, *sizes = [len(content) for content in list(outputs.values())[: len(_USUAL)]]
        place = len(self._responses.head)
        usual = tuple(outputs)[: len(_USUAL)] == _USUAL and sizes == [_NUMBER] * len(sizes)
        if usual and size <= _MOST and data.startswith(self._responses.head):
            stop = place + 2 + size
            count = stop + 3 * 2 + 2 * _NUMBER  # a tag and a length before each
            self._before, self._between = data[: place + 1], data[stop:count]
            behind = count + _NUMBER
            ids = _place(outputs, _TOKEN_IDS, behind) or behind
            self._ids = len(outputs[_TOKEN_IDS]) if ids > behind else 0
            self._before_ids = data[behind:ids]
            self._behind, self._last = data[ids + self._ids :], piece


def _place(outputs: Mapping[str, bytes], name: str, behind: int) -> int:
    """Where the contents of an output begin; 0 where that is not simple.

    behind: where those of the usual ones end.
    """
    for other, content in list(outputs.items())[len(_USUAL) :]:
        if len(content) > _MOST:
            break
        behind += 2  # a tag and a length
        if other == name:
            return behind
        behind += len(content)
    return 0


def _text(content: bytes) -> bytes:
    """The first element of a BYTES tensor; empty where there is none."""
    return content[_LENGTH : _LENGTH + int.from_bytes(content[:_LENGTH], "little")]


def _number(content: bytes) -> int:
    """The first element of an INT32 or UINT32 tensor; 0 where there is none."""
    return int.from_bytes(content[:_NUMBER], "little")
