"""How vocabularies write the bytes of a token: as letters, or as they are."""

from __future__ import annotations

import re


def _letters() -> dict[int, int]:
    """Which byte a letter stands for in vocabularies of the kind `gpt2`: printable ones for
    themselves, those from 256 up for the other bytes in turn."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {256 + i: byte for i, byte in enumerate(others)}


_LETTERS = _letters()
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def spelled_in_letters(token: str) -> bytes:
    """The bytes of a token in a vocabulary that writes each byte as a letter."""
    try:
        return bytes([_LETTERS[ord(letter)] for letter in token])
    except KeyError:  # a special token, which is written as it is
        return token.encode(errors="surrogatepass")


def plain(token: str) -> bytes:
    """The bytes of a token in a vocabulary that writes text as it is, and lone bytes in hex."""
    match = _BYTE.fullmatch(token)
    if match:
        return bytes([int(match[1], 16)])
    return token.replace("▁", " ").encode(errors="surrogatepass")
