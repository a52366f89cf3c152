"""Calls of tools in a text, as most models write them.

`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: the Hermes function-calling format,
which chat templates with tools tell their models.
"""

from __future__ import annotations

import attrs
import msgspec

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@attrs.frozen
class ToolCall:
    """A function that the model wants called."""

    name: str
    arguments: str
    """JSON of an object."""


class _Call(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


@attrs.define
class ToolParser:
    """Tells the calls in one text from the rest of it, piece by piece."""

    calls: int = 0
    """Found so far."""
    _held: str = ""
    """What may be a call, or only stand between calls."""
    _after_call: bool = False

    def feed(self, text: str) -> list[str | ToolCall]:
        """The text and the calls that are certain with this piece, in order."""
        self._held += text
        found: list[str | ToolCall] = []
        while True:
            before, tag, after = self._held.partition(_OPEN)
            if not tag:
                certain = len(self._held) - _beginning(self._held)
                if self._say(found, self._held[:certain]):
                    self._held = self._held[certain:]
                return found
            self._say(found, before)
            inside, end, rest = after.partition(_CLOSE)
            if not end:
                self._held = tag + after
                return found
            self._take(found, inside, tag + inside + end)
            self._held = rest

    def end(self) -> list[str | ToolCall]:
        """What was held back when the text has ended: a call without its end, or text."""
        held, self._held = self._held, ""
        found: list[str | ToolCall] = []
        if held.startswith(_OPEN):
            self._take(found, held.removeprefix(_OPEN), held)
        else:
            self._say(found, held)
        return found

    def _say(self, found: list[str | ToolCall], text: str) -> bool:
        """Give text, but what stands between calls alone, which models put there; whether it is."""
        if self._after_call and (not text or text.isspace()):
            return False
        if text:
            found.append(text)
            self._after_call = False
        return True

    def _take(self, found: list[str | ToolCall], inside: str, whole: str) -> None:
        """Give a call, or, where it is none, the text that it is."""
        call = _call(inside)
        if call is None:
            self._say(found, whole)
        else:
            self.calls += 1
            self._after_call = True
            found.append(call)


def _call(text: str) -> ToolCall | None:
    try:
        call = msgspec.json.decode(text.strip().encode(), type=_Call)
        arguments = bytes(call.arguments)
        if arguments.startswith(b'"'):  # some write the JSON into a string
            arguments = msgspec.json.decode(arguments, type=str).encode()
        msgspec.json.decode(arguments, type=dict)
        return ToolCall(call.name, arguments.decode())
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _beginning(text: str) -> int:
    """How many characters at the end of `text` may be the beginning of a call."""
    for size in range(min(len(_OPEN) - 1, len(text)), 0, -1):
        if text.endswith(_OPEN[:size]):
            return size
    return 0
