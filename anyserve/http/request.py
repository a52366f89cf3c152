"""One HTTP request, whole, and what is refused instead."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import attrs

_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_CODINGS = frozenset({"gzip", "x-gzip", "deflate"})


@attrs.frozen
class Refusal(Exception):
    """What is refused before anybody handles it."""

    status: int
    """Of HTTP."""
    message: str


@attrs.define
class HttpRequest:
    """A request whose body is here."""

    method: str
    path: str
    """As it came, without the query; still percent-encoded."""
    query: Mapping[str, str] = attrs.field(factory=dict)
    headers: Mapping[str, str] = attrs.field(factory=dict)
    """By lower-case names, without Content-Length; of those that came several times, the values
    with commas between."""
    body: bytes = b""
    """Without its content encoding."""
    persistent: bool = True
    """Whether the client wants the connection kept."""
    chunks: bool = True
    """Whether it understands an answer in chunks, as HTTP/1.1 does."""
    parameters: Mapping[str, str] = attrs.field(factory=dict)
    """Those of the route that it took."""


def decoded(body: bytes, coding: str, limit: int) -> bytes:
    """A body without its content encoding; raises `Refusal`.

    limit: bytes of the result, which a small body could exceed a thousandfold.
    """
    if coding in ("", "identity"):
        return body
    if coding not in _CODINGS:
        raise Refusal(415, f"content-encoding {coding[:40]!r} is none of gzip, deflate, identity")
    try:
        return _inflated(body, limit)
    except zlib.error:
        raise Refusal(400, f"the body is not {coding}") from None


def _inflated(body: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj(_GZIP_OR_ZLIB)
    data = stream.decompress(body, limit + 1)
    if len(data) > limit:
        raise too_large(limit)
    if not stream.eof or stream.unused_data:
        raise zlib.error("cut short, or more than one")
    return data


def too_large(limit: int) -> Refusal:
    """What a larger body is answered with."""
    return Refusal(413, f"the body is larger than {limit} bytes")
