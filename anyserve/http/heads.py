"""The heads of answers, as bytes; those that come often are kept."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TypeAlias

Fields: TypeAlias = tuple[tuple[str, str], ...]

_REMEMBERED = 256
_REASONS = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}
_WITHOUT_BODY = frozenset({204, 304})

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def answer_head(
    status: int, content_type: str, fields: Fields, length: int | None, keeps: bool, modern: bool
) -> bytes:
    """The status line and the headers of an answer.

    length: of its body; None where it comes in pieces. keeps: whether the connection goes on.
    modern: whether the client speaks HTTP/1.1. Raises `ValueError` for a header that would be two.
    """
    fixed = _fixed(status, content_type, fields, length is None, keeps, modern)
    dated = fixed + _date(int(time.time()))
    if length is None or status in _WITHOUT_BODY:
        return dated + b"\r\n"
    return dated + b"content-length: %d\r\n\r\n" % length


@lru_cache(_REMEMBERED)
def _fixed(
    status: int, content_type: str, fields: Fields, pieces: bool, keeps: bool, modern: bool
) -> bytes:
    """What is the same for each such answer."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, '')}"]
    if status not in _WITHOUT_BODY:
        lines.append(f"content-type: {content_type}")
        if pieces and modern:
            lines.append("transfer-encoding: chunked")
    lines.extend(f"{name}: {value}" for name, value in fields)
    if not keeps:
        lines.append("connection: close")
    elif not modern:
        lines.append("connection: keep-alive")
    for line in lines:
        if "\r" in line or "\n" in line:
            raise ValueError(f"a line end in {line!r}")
    return ("\r\n".join(lines) + "\r\n").encode("latin-1", "replace")


@lru_cache(2)
def _date(second: int) -> bytes:
    return f"date: {formatdate(second, usegmt=True)}\r\n".encode()
