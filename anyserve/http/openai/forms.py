"""How chats and completions are written: whole answers, and the chunks of a stream.

What the chunks of one stream have in common is written once; a piece of text costs little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import attrs
import msgspec

from anyserve.http.openai.answers import Piece
from anyserve.http.openai.tools import ToolCall, ToolParser

_encode = msgspec.json.encode


@attrs.define
class Choice:
    """One text of an answer."""

    text: list[str] = attrs.field(factory=list)
    finish_reason: str = ""
    logprobs: list[Any] = attrs.field(factory=list)
    """In the form of chats."""


class Form(Protocol):
    """One kind of answer."""

    def whole(self, choices: Sequence[Choice], usage: Mapping[str, Any]) -> bytes:
        """The whole answer."""
        ...

    def chunks(self, piece: Piece) -> bytes:
        """The events of a stream that bring a piece."""
        ...

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        """The event that brings the token counts."""
        ...


@attrs.frozen
class Identity:
    """What an answer says of itself."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str


class ChatForm:
    """`chat.completion` and `chat.completion.chunk`."""

    def __init__(self, identity: Identity, *, tools: bool, usage: bool) -> None:
        """tools: whether calls are looked for. usage: whether a stream tells its token counts."""
        self._identity = identity
        self._usage = usage
        self._parsers: dict[int, ToolParser] | None = {} if tools else None
        self._begun: set[int] = set()

    def whole(self, choices: Sequence[Choice], usage: Mapping[str, Any]) -> bytes:
        """See `Form`."""
        written = [self._choice(index, choice) for index, choice in enumerate(choices)]
        return _answer(self._identity, "chat.completion", written, usage)

    def chunks(self, piece: Piece) -> bytes:
        """See `Form`."""
        events = b""
        if piece.index not in self._begun:
            self._begun.add(piece.index)
            events = self._chunk(piece.index, b'{"role":"assistant","content":""}')
        logprobs = b'{"content":' + piece.logprobs + b"}" if piece.logprobs else b"null"
        if self._parsers is not None:
            return events + self._with_calls(piece, logprobs)
        if piece.text or piece.logprobs:
            delta = b'{"content":' + _encode(piece.text) + b"}"
            events += self._chunk(piece.index, delta, logprobs)
        if piece.finish_reason:
            events += self._chunk(piece.index, b"{}", b"null", _encode(piece.finish_reason))
        return events

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        """See `Form`."""
        return _usage(self._identity, "chat.completion.chunk", usage)

    def _chunk(
        self, index: int, delta: bytes, logprobs: bytes = b"null", reason: bytes = b"null"
    ) -> bytes:
        before, after = self._around
        return b'%b{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}%b' % (
            before,
            index,
            delta,
            logprobs,
            reason,
            after,
        )

    @cached_property
    def _around(self) -> tuple[bytes, bytes]:
        return _event(self._identity, "chat.completion.chunk", self._usage)

    def _with_calls(self, piece: Piece, logprobs: bytes) -> bytes:
        assert self._parsers is not None
        parser = self._parsers.setdefault(piece.index, ToolParser())
        found_before = parser.calls
        found = parser.feed(piece.text)
        if piece.finish_reason:
            found += parser.end()
        events = b""
        number = found_before
        for item in found:
            if isinstance(item, ToolCall):
                call = {"index": number, **_call(self._identity, piece.index, number, item)}
                delta = _encode({"tool_calls": [call]})
                number += 1
            else:
                delta = _encode({"content": item})
            events += self._chunk(piece.index, delta, logprobs)
            logprobs = b"null"
        if piece.finish_reason:
            reason = _reason(piece.finish_reason, parser.calls)
            events += self._chunk(piece.index, b"{}", logprobs, _encode(reason))
        return events

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(choice.text)}
        calls = 0
        if self._parsers is not None:
            parser = ToolParser()
            found = parser.feed(message["content"]) + parser.end()
            calls = parser.calls
            message["content"] = "".join([item for item in found if isinstance(item, str)]) or None
            if calls:
                message["tool_calls"] = [
                    _call(self._identity, index, number, item)
                    for number, item in enumerate(
                        item for item in found if isinstance(item, ToolCall)
                    )
                ]
        return {
            "index": index,
            "message": message,
            "logprobs": {"content": choice.logprobs} if choice.logprobs else None,
            "finish_reason": _reason(choice.finish_reason, calls),
        }


class CompletionForm:
    """`text_completion`, whole and in chunks."""

    def __init__(self, identity: Identity, *, echoes: Sequence[str], usage: bool) -> None:
        """echoes: what stands before each text of a stream. usage: as in a chat."""
        self._identity = identity
        self._usage = usage
        self._echoes = dict(enumerate(echoes))
        self._offsets: dict[int, int] = {}

    def whole(self, choices: Sequence[Choice], usage: Mapping[str, Any]) -> bytes:
        """See `Form`."""
        written = [
            {
                "index": index,
                "text": self._echoes.get(index, "") + "".join(choice.text),
                "logprobs": self._logprobs(index, choice.logprobs) if choice.logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return _answer(self._identity, "text_completion", written, usage)

    def chunks(self, piece: Piece) -> bytes:
        """See `Form`."""
        text = self._echoes.pop(piece.index, "") + piece.text
        logprobs = b"null"
        if piece.logprobs:
            logprobs = _encode(self._logprobs(piece.index, msgspec.json.decode(piece.logprobs)))
        before, after = self._around
        return b'%b{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}%b' % (
            before,
            piece.index,
            _encode(text),
            logprobs,
            _encode(piece.finish_reason or None),
            after,
        )

    @cached_property
    def _around(self) -> tuple[bytes, bytes]:
        return _event(self._identity, "text_completion", self._usage)

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        """See `Form`."""
        return _usage(self._identity, "text_completion", usage)

    def _logprobs(self, index: int, tokens: Sequence[Any]) -> dict[str, Any]:
        """The form of completions, from that of chats."""
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token["token"])
        return {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [
                {other["token"]: other["logprob"] for other in token["top_logprobs"]}
                for token in tokens
            ],
            "text_offset": offsets,
        }


def _event(identity: Identity, kind: str, usage: bool) -> tuple[bytes, bytes]:
    """What stands before and after the choice in each event of a stream."""
    known = _encode(
        {"id": identity.id, "object": kind, "created": identity.created, "model": identity.model}
    )
    before = b"data: " + known[:-1] + b',"choices":['
    return before, (b'],"usage":null}\n\n' if usage else b"]}\n\n")


def _usage(identity: Identity, kind: str, usage: Mapping[str, Any]) -> bytes:
    return b"data: " + _answer(identity, kind, [], usage) + b"\n\n"


def _answer(
    identity: Identity, kind: str, choices: Sequence[Any], usage: Mapping[str, Any]
) -> bytes:
    return _encode(
        {
            "id": identity.id,
            "object": kind,
            "created": identity.created,
            "model": identity.model,
            "choices": choices,
            "usage": usage,
        }
    )


def _call(identity: Identity, index: int, number: int, call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"call_{identity.id.rpartition('-')[2]}_{index}_{number}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _reason(reason: str, calls: int) -> str:
    return "tool_calls" if calls and reason == "stop" else reason
