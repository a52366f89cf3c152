"""The responses of a capability that gives text, read as far as these doors need."""

from __future__ import annotations

import attrs
from anyserve_protos.response_outputs import ResponseReader
from anyserve_protos.wire import Buffer, WireError

from anyserve.errors import Internal

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
    """Reads the responses of one request."""

    def __init__(self) -> None:
        self._reader = ResponseReader()

    def outputs(self, message: Buffer) -> dict[str, bytes]:
        """The raw contents of the outputs by name; raises `Internal` for no such response."""
        try:
            return self._reader.outputs(message)
        except WireError as error:
            raise Internal(f"the answer is no ModelInferResponse: {error}") from None

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


def _text(content: bytes) -> bytes:
    """The first element of a BYTES tensor; empty where there is none."""
    return content[4 : 4 + int.from_bytes(content[:4], "little")]


def _number(content: bytes) -> int:
    """The first element of an INT32 or UINT32 tensor; 0 where there is none."""
    return int.from_bytes(content[:4], "little")
