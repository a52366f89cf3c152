"""The head of a request, as far as it says how to go on; those that come often are kept read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TypeAlias
from urllib.parse import parse_qsl

import attrs

from anyserve.http.request import Refusal

RawHeaders: TypeAlias = tuple[tuple[bytes, bytes], ...]

MOST_HEADERS = 100
_MOST_FIELDS = 100
"""Of one query."""
_REMEMBERED = 128
"""Heads and targets that are kept; most requests of a client have the same."""


@attrs.frozen
class Head:
    """What the headers say."""

    headers: Mapping[str, str]
    """By lower-case names; of those that came several times, the values with commas between."""
    coding: str
    """The content encoding of the body."""
    continues: bool
    """Whether the client waits for a word before it sends the body."""


@attrs.frozen
class Target:
    """What the request line asks for."""

    path: str
    query: Mapping[str, str]


@lru_cache(_REMEMBERED)
def read_head(raw: RawHeaders, version: str) -> Head:
    """Read the headers but Content-Length, which llhttp has read; raises `Refusal`."""
    if version not in ("1.0", "1.1"):
        raise Refusal(505, "this server speaks HTTP/1.1 and HTTP/1.0")
    headers: dict[str, str] = {}
    for name, value in raw:
        key = name.lower().decode("latin-1")
        text = value.decode("latin-1").strip(" \t")
        if key not in headers:
            headers[key] = text
        elif key == "host":
            raise Refusal(400, "the request has two Host headers")
        else:
            headers[key] += f", {text}"
    modern = version == "1.1"
    if modern and "host" not in headers:
        raise Refusal(400, "the Host header is missing")
    transfer = headers.get("transfer-encoding")
    if transfer is not None and not modern:
        raise Refusal(400, "HTTP/1.0 has no Transfer-Encoding")
    if transfer is not None and transfer.lower() != "chunked":
        raise Refusal(501, "the only Transfer-Encoding is chunked")
    expected = headers.get("expect") if modern else None
    if expected is not None and expected.lower() != "100-continue":
        raise Refusal(417, "the only expectation is 100-continue")
    coding = headers.get("content-encoding", "").lower()
    return Head(MappingProxyType(headers), coding, expected is not None)


@lru_cache(_REMEMBERED)
def read_target(raw: bytes) -> Target:
    """Read a request target, in any of its forms; raises `Refusal`."""
    text = raw.decode("ascii", "replace").partition("#")[0]
    if text.startswith(("http://", "https://")):
        text = "/" + text.partition("://")[2].partition("/")[2]
    if not text.startswith("/") and text != "*":
        raise Refusal(400, "the request target is no path")
    path, _, query = text.partition("?")
    try:
        fields = parse_qsl(query, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise Refusal(400, f"the query has more than {_MOST_FIELDS} fields") from None
    return Target(path, MappingProxyType(dict(fields)))
