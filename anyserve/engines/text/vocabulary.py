"""Which bytes a token stands for, to find tokens of whose ids the native side says nothing.

Of a character that takes several tokens it tells the last one's id, and how many there were.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from anyserve.engines.text.gguf import Tokenizer
from anyserve.engines.token_bytes import plain, spelled_in_letters


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
        read = spelled_in_letters if tokenizer.model == "gpt2" else plain
        texts = [read(token.decode(errors="replace")) for token in tokenizer.tokens]
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
