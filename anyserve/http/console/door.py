"""The routes of the console: a page, what feeds it, and a way to cancel what it shows."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import msgspec
import trio

from anyserve.errors import Cancelled, InvalidArgument
from anyserve.http.console.guard import Guard
from anyserve.http.console.snapshot import Snapshots
from anyserve.http.exchange import Exchange
from anyserve.http.heads import Fields
from anyserve.http.request import Refusal
from anyserve.http.routes import Handler, Routes

MOST_VIEWERS = 16
"""Pages that are fed at once."""
_STATIC = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
_FIELDS: Fields = (
    ("cache-control", "no-cache"),
    ("content-security-policy", _POLICY),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
)
_EVENT_FIELDS: Fields = (("cache-control", "no-store"), ("x-content-type-options", "nosniff"))

_log = logging.getLogger("anyserve.http")


class _Cancel(msgspec.Struct, forbid_unknown_fields=True):
    """What is posted to cancel a request."""

    number: int


class Console:
    """Shows who serves, and cancels requests."""

    def __init__(self, guard: Guard, snapshots: Snapshots) -> None:
        self._guard = guard
        self._snapshots = snapshots
        self._viewers = 0

    def add_to(self, routes: Routes) -> None:
        """Serve `/console` and what is under it."""
        page, is_open = self._file(_STATIC / "index.html"), self._guard.has_keys
        routes.add("GET", "/console", page, is_open=is_open)
        routes.add("GET", "/console/", page, is_open=is_open)
        for path in sorted(_STATIC.iterdir()):
            if path.suffix != ".html":
                routes.add("GET", f"/console/{path.name}", self._file(path), is_open=is_open)
        routes.add("GET", "/console/events", self.events)
        routes.add("POST", "/console/cancel", self.cancel)

    async def events(self, exchange: Exchange) -> None:
        """A snapshot each second, until the client goes; one alone where the server drains."""
        if _refused(exchange, self._guard.script(exchange.request)):
            return
        if self._viewers >= MOST_VIEWERS:
            exchange.refuse(503, f"{MOST_VIEWERS} others are looking already")
            return
        viewer = _Viewer(exchange)
        self._viewers += 1
        try:
            while True:
                viewer.show(self._snapshots.event())
                if self._snapshots.last:
                    exchange.end()
                    return
                await trio.sleep_until(math.floor(trio.current_time()) + 1)
        finally:
            self._viewers -= 1
            if not self._viewers:
                self._snapshots.forget()

    def cancel(self, exchange: Exchange) -> None:
        """End a request that is shown, by its number; its client hears `CANCELLED`."""
        if _refused(exchange, self._guard.script(exchange.request)):
            return
        try:
            asked = msgspec.json.decode(exchange.request.body, type=_Cancel)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"the body is no request's number: {error}") from None
        if self._snapshots.cancel(asked.number, Cancelled("cancelled at the console")):
            _log.info("%s has cancelled a request at the console", exchange.peer)
            exchange.respond(204, b"")
        else:
            exchange.refuse(404, "the request has ended")

    def _file(self, path: Path) -> Handler:
        data, kind = path.read_bytes(), _TYPES[path.suffix]

        def give(exchange: Exchange) -> None:
            if not _refused(exchange, self._guard.page()):
                exchange.respond(200, data, kind, _FIELDS)

        return give


class _Viewer:
    """One page that is fed; one that reads slowly misses snapshots."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._held = False
        exchange.on_hold, exchange.on_resume = self._hold, self._resume
        exchange.start(200, "text/event-stream", _EVENT_FIELDS)

    def show(self, event: bytes) -> None:
        """Send a snapshot, where there is room for it."""
        if not self._held:
            self._exchange.send(event)

    def _hold(self) -> None:
        self._held = True

    def _resume(self) -> None:
        self._held = False


def _refused(exchange: Exchange, refusal: Refusal | None) -> bool:
    """Whether there is a refusal, which is then the answer."""
    if refusal is not None:
        exchange.refuse(refusal.status, refusal.message)
    return refusal is not None
