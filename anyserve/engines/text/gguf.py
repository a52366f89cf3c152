"""What a GGUF file says of its tokenizer: the chat template, the special tokens, the vocabulary.

A reader of our own: the `gguf` package maps the whole file and brings three dependencies, for the
few values that are needed here.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import attrs

_NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""Formats of `struct` by GGUF's number of the type."""
_STRING, _ARRAY = 8, 9
_PREFIX = b"tokenizer."
_MOST_KEYS = 65_536


@attrs.frozen
class Tokenizer:
    """The metadata of a tokenizer that is needed outside the native side."""

    model: str
    """Its kind: `gpt2` writes bytes as letters, others write them as they are."""
    tokens: list[bytes]
    """The text of each id, as the file writes it."""
    bos: str
    """The text of the token that texts begin with; empty where there is none."""
    eos: str
    template: str | None
    """The chat template, in Jinja."""


def read_tokenizer(path: Path) -> Tokenizer:
    """Read the metadata of the model in `path`; takes up to a tenth of a second for 150,000 tokens.

    Raises `OSError`, and `ValueError` for a file that is damaged.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            values = _Reader(data).metadata()
        except (struct.error, KeyError, UnicodeDecodeError) as error:
            raise ValueError(f"damaged metadata: {error}") from None
    tokens = values.get("ggml.tokens", [])

    def special(name: str) -> str:
        number = values.get(f"ggml.{name}_token_id")
        known = isinstance(number, int) and number < len(tokens)
        return tokens[number].decode(errors="replace") if known else ""

    template = values.get("chat_template")
    return Tokenizer(
        model=values.get("ggml.model", b"").decode(),
        tokens=tokens,
        bos=special("bos"),
        eos=special("eos"),
        template=None if template is None else template.decode(),
    )


class _Reader:
    """Reads the head of a file from its start."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 4  # behind the magic word

    def metadata(self) -> dict[str, Any]:
        """The values under `tokenizer.`, without that; strings as bytes."""
        version, _tensors, keys = self._take("IQQ")
        if version not in (2, 3) or keys > _MOST_KEYS:
            raise ValueError(f"version {version} with {keys} keys is not known")
        values = {}
        for _ in range(keys):
            key = self._string()
            [kind] = self._take("I")
            value = self._value(kind)
            if key.startswith(_PREFIX):
                values[key[len(_PREFIX) :].decode()] = value
        return values

    def _take(self, formats: str) -> tuple[Any, ...]:
        form = f"<{formats}"
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def _string(self) -> bytes:
        [length] = self._take("Q")
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise ValueError("a string goes beyond the file")
        return self._data[start : self._at]

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            [value] = self._take(_NUMBERS[kind])
            return value
        kind, length = self._take("IQ")
        if kind == _STRING:
            return [self._string() for _ in range(length)]
        # Numbers of tokens, such as their scores: nobody asks for them.
        self._at += length * struct.calcsize(f"<{_NUMBERS[kind]}")
        return None
