"""Which bytes a token stands for, to find tokens of whose ids the native side says nothing.

Of a character that takes several tokens it tells the last one's id, and how many there were.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import attrs

from anyserve.engines.text.gguf import Tokenizer


@attrs.frozen(eq=False)
class Vocabulary:
    """The tokens of a model by their bytes."""

    texts: Sequence[bytes]
    """The bytes of each id."""
    ids: dict[bytes, int]
    """The first id of the bytes."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """The vocabulary in a model's metadata; takes some 0.1 s for 100,000 tokens."""
        read = _spelled_in_letters if tokenizer.model == "gpt2" else _plain
        texts = [read(token) for token in tokenizer.tokens]
        ids: dict[bytes, int] = {}
        for number, text in enumerate(texts):
            ids.setdefault(text, number)
        return cls(texts, ids)

    def before(self, last: int, count: int, text: bytes) -> tuple[int, ...] | None:
        """The `count` tokens that, with the token `last` behind them, are `text`.

        None where there are none. Where there are several ways, the first token is as long as can
        be, and so on: what tokenizers make of text, nearly always.
        """
        ending = self.texts[last] if last < len(self.texts) else b""
        if not ending or not text.endswith(ending):
            return None
        return self._split(text[: -len(ending)], count)

    def _split(self, text: bytes, count: int) -> tuple[int, ...] | None:
        if not count:
            return None if text else ()
        for length in range(len(text) - count + 1, 0, -1):
            first = self.ids.get(text[:length])
            if first is not None:
                rest = self._split(text[length:], count - 1)
                if rest is not None:
                    return (first, *rest)
        return None


def _letters() -> dict[int, int]:
    """Which byte a letter stands for in vocabularies of the kind `gpt2`: printable ones for
    themselves, those from 256 up for the other bytes in turn."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {256 + i: byte for i, byte in enumerate(others)}


_LETTERS = _letters()


def _spelled_in_letters(token: bytes) -> bytes:
    letters = token.decode(errors="replace")
    try:
        return bytes(_LETTERS[ord(letter)] for letter in letters)
    except KeyError:  # a special token, which is written as it is
        return token


_BYTE = re.compile(rb"<0x([0-9A-F]{2})>")


def _plain(token: bytes) -> bytes:
    match = _BYTE.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace("▁".encode(), b" ")
