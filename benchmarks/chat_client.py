"""Chats asked for one at a time: whether they are answered as they should, and how soon."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Iterator

from benchmarks import chats
from benchmarks.errors import CannotMeasure

_TIMEOUT = 20.0
_END = b"\r\n0\r\n\r\n"
"""The end of a body in chunks."""
_TOKEN = re.compile(rb'"content":"[^"]')
"""In the events of a stream: those before the first token have no content, or none in it."""
_JSON = {"content-type": "application/json"}


def answer_size(address: str, tokens: int, *, stream: bool) -> int:
    """Ask once and see that the text is whole; the size of the answer's body in bytes."""
    body = ask(address, chats.body(tokens, stream=stream))
    if _text(body, stream=stream) != chats.text(tokens):
        raise CannotMeasure(f"{address} says something else: {body[:200]!r}")
    return len(body)


def ask(address: str, request: bytes) -> bytes:
    """The body of the answer to a chat; raises `CannotMeasure` where it is an error."""
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT)
    try:
        connection.request("POST", chats.PATH, request, _JSON)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise CannotMeasure(f"{address}: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise CannotMeasure(f"{address} answers {answer.status}: {body[:200]!r}")
    return body


def first_token_times(address: str, body: bytes, calls: int) -> Iterator[float]:
    """Seconds to the first token of a streamed chat, which is asked for on one connection."""
    host, _, port = address.rpartition(":")
    head = (
        f"POST {chats.PATH} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    with socket.create_connection((host, int(port)), timeout=_TIMEOUT) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(calls):
            began, answer = time.monotonic(), b""
            sock.sendall(request)
            while not _TOKEN.search(answer):
                answer += _some(sock)
            yield time.monotonic() - began
            while not answer.endswith(_END):
                answer += _some(sock)


def _some(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise CannotMeasure(f"{sock.getpeername()} has closed the connection in an answer")
    return data


def _text(body: bytes, *, stream: bool) -> str:
    if not stream:
        text: str = json.loads(body)["choices"][0]["message"]["content"]
        return text
    events = [line.removeprefix(b"data: ") for line in body.splitlines() if line]
    if events.pop() != b"[DONE]":
        return ""
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    return "".join(delta.get("content") or "" for delta in deltas)
