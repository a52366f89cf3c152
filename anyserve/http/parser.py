"""The bytes of one client, parsed: whole requests come out, or why the client is refused.

There are no sockets here and no clock: llhttp reads HTTP (`httptools`, strict), and here stand the
bounds of what it reads. It is strict where two readings are possible, since that is how requests
are smuggled: Content-Length beside Transfer-Encoding, folded lines, bare line feeds are refused.
"""

from __future__ import annotations

import enum
import math
from typing import Any, TypeAlias

import attrs
import httptools

from anyserve.http.head import MOST_HEADERS, Head, Target, read_head, read_target
from anyserve.http.request import HttpRequest, Refusal, decoded, too_large

_KIB = 1024
_CONTENT_LENGTH = b"content-length"
_UPGRADE = b"upgrade"
_BODY_PACE = 16 * _KIB
"""Bytes a second that a body must come with, once its first seconds are over."""


@attrs.frozen
class HttpLimits:
    """Bounds of what clients may send."""

    body: int = 32 * _KIB * _KIB
    """Bytes, as it comes and when it is decompressed."""
    head: int = 64 * _KIB
    """Bytes of a request's head."""
    target: int = 8 * _KIB
    """Bytes of a URL."""
    idle_time: float = 75.0
    """Seconds that a connection may stand without a request."""
    head_time: float = 10.0
    """Seconds from the first byte of a head to its last."""
    body_time: float = 20.0
    """Seconds for a body, and more as it comes."""
    connections: int = 1024
    """That are open at once."""


class Phase(enum.Enum):
    """What the client is about to send."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    DONE = enum.auto()
    """Nothing: it was refused, or has sent its last request."""


class Continue(enum.Enum):
    """The client waits for a word that it may send the body."""

    CONTINUE = enum.auto()


@attrs.frozen
class Refused:
    """The client is answered with that, and is not read any more."""

    status: int
    message: str
    path: str = ""
    """What it asked for, where that is known."""


Event: TypeAlias = HttpRequest | Continue | Refused


class Parser:
    """What one client sends, from its first byte to its last.

    However the bytes are cut, they make the same events; but for a head of about the largest size,
    which may be refused where it is cut and not where it is whole.
    """

    # The methods `on_…` are llhttp's to call.

    def __init__(self, limits: HttpLimits, now: float) -> None:
        """now: in seconds, on the clock that `feed` is told too."""
        self.phase = Phase.IDLE
        self._limits = limits
        self._since = now
        self._now = now
        self._events: list[Event] = []
        self._llhttp: Any = httptools.HttpRequestParser(self)
        self._begin()

    @property
    def deadline(self) -> float:
        """When the client must have sent more; `inf` where nothing is expected of it."""
        match self.phase:
            case Phase.IDLE:
                return self._since + self._limits.idle_time
            case Phase.HEAD:
                return self._since + self._limits.head_time
            case Phase.BODY:
                return self._since + self._limits.body_time + len(self._body) / _BODY_PACE
            case Phase.DONE:
                return math.inf

    def feed(self, data: bytes | memoryview, now: float) -> list[Event]:
        """Read what has come at `now`; nothing after a `Refused` or a last request."""
        if self.phase is Phase.DONE:
            return []
        self._now = now
        before = self.phase, self._headers, len(self._body)
        try:
            self._read(data)
        except httptools.HttpParserError as error:
            self._refuse(Refusal(400, f"this is no HTTP request: {error}"))
        else:
            self._watch_growth(before, len(data))
        return self._take_events()

    def idle(self, now: float) -> None:
        """An answer has gone out: the time for what comes next begins."""
        self._since = now

    def expire(self) -> list[Event]:
        """The deadline has passed: what the client is told, if anything."""
        if self.phase in (Phase.HEAD, Phase.BODY):
            what = "head" if self.phase is Phase.HEAD else "body"
            self._refuse(Refusal(408, f"the {what} of the request comes too slowly"))
        self.phase = Phase.DONE
        return self._take_events()

    def close(self) -> None:
        """Read nothing any more, and leave nothing that waits for the garbage collector."""
        self.phase = Phase.DONE
        self._llhttp = None

    def on_message_begin(self) -> None:
        if self.phase is Phase.IDLE:
            self.phase = Phase.HEAD
            self._since = self._now

    def on_url(self, part: bytes) -> None:
        self._url += part
        if len(self._url) > self._limits.target:
            self._refuse(Refusal(414, f"the URL is longer than {self._limits.target} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.phase is not Phase.HEAD or self._llhttp.should_upgrade():
            return
        try:
            self._check_size()
            self._read_head()
        except Refusal as refusal:
            self._refuse(refusal)
        else:
            self.phase = Phase.BODY
            self._header_count = len(self._headers)
            self._since = self._now

    def on_body(self, part: bytes) -> None:
        if self.phase is not Phase.BODY:
            return
        if len(self._body) + len(part) > self._limits.body:
            self._refuse(too_large(self._limits.body))
        elif not self._body:
            self._body = part
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body.extend(part)

    def on_message_complete(self) -> None:
        if self.phase is not Phase.BODY:
            return
        persistent = bool(self._llhttp.should_keep_alive())
        head, target = self._head, self._target
        try:
            if len(self._headers) > self._header_count:  # with what follows the last chunk
                self._check_size()
            body = decoded(bytes(self._body), head.coding, self._limits.body)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        self._events.append(
            HttpRequest(
                self._method,
                target.path,
                target.query,
                head.headers,
                body,
                persistent,
                self._version == "1.1",
            )
        )
        self._begin()
        self._since = self._now
        self.phase = Phase.IDLE if persistent else Phase.DONE

    _head: Head
    _target: Target
    _version: str
    _method: str
    _header_count: int
    """Of the head, without those after a last chunk."""
    _body: bytes | bytearray

    def _begin(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._grown = 0
        """Bytes that came and have got the message no further."""
        self._path = ""
        self._body = b""

    def _read(self, data: bytes | memoryview) -> None:
        while data and self.phase is not Phase.DONE:
            try:
                self._llhttp.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._ignore_upgrade()
            else:
                return

    def _ignore_upgrade(self) -> None:
        """Read a request that offers another protocol, as curl and Java do, as if it did not.

        llhttp stops after its head, and takes what follows for that protocol.
        """
        method, url = self._llhttp.get_method(), self._url
        if method == b"CONNECT":
            self._refuse(Refusal(400, "this is no proxy"))
            return
        fields = [b"%b: %b\r\n" % field for field in self._headers if field[0].lower() != _UPGRADE]
        version = self._llhttp.get_http_version().encode()
        self._llhttp = httptools.HttpRequestParser(self)
        self._begin()
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, url, version, b"".join(fields))
        self._llhttp.feed_data(head)

    def _read_head(self) -> None:
        """Read what says how the body comes; raises `Refusal`."""
        llhttp, raw = self._llhttp, self._headers
        self._target = read_target(self._url)
        self._path = self._target.path
        self._version = llhttp.get_http_version()
        self._method = llhttp.get_method().decode("ascii")
        lengths = [field for field in raw if field[0].lower() == _CONTENT_LENGTH]
        for _, length in lengths:
            if int(length) > self._limits.body:
                raise too_large(self._limits.body)
        self._head = read_head(
            tuple([field for field in raw if field not in lengths]), self._version
        )
        if self._head.continues:
            self._events.append(Continue.CONTINUE)

    def _check_size(self) -> None:
        """Raise `Refusal` for a head, or what follows a last chunk, that is too large."""
        headers = self._headers
        if len(headers) > MOST_HEADERS:
            raise Refusal(431, f"the request has more than {MOST_HEADERS} headers")
        size = len(self._url) + sum([len(name) + len(value) + 4 for name, value in headers])
        if max(size, self._grown) > self._limits.head:
            raise Refusal(431, f"the head is larger than {self._limits.head} bytes")

    def _watch_growth(self, before: tuple[Phase, object, int], size: int) -> None:
        """Refuse what grows without end: a head, a line before a chunk, what follows the last."""
        phase, headers, body = before
        if self._headers is not headers or self.phase is not phase or len(self._body) != body:
            self._grown = 0
        elif phase is not Phase.IDLE:
            self._grown += size
        if self._grown > self._limits.head or len(self._headers) > MOST_HEADERS:
            try:
                self._check_size()
            except Refusal as refusal:
                self._refuse(refusal)

    def _refuse(self, refusal: Refusal) -> None:
        if self.phase is not Phase.DONE:
            self.phase = Phase.DONE
            self._events.append(Refused(refusal.status, refusal.message, self._path))

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events
