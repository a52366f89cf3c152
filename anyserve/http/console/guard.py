"""Who may see the console, beside what holds for the whole port.

Pure. Without keys the console is for browsers on this machine alone: on a port that others reach
there is none.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import attrs

from anyserve.http.access import is_loopback
from anyserve.http.request import HttpRequest, Refusal

MARK = "x-anyserve-console"
"""A header that the page's own script sends, and no form or image of another page can."""


@attrs.frozen
class Guard:
    """What is refused of requests for the console."""

    host: str
    """The address that the port is on."""
    has_keys: bool
    """Whether one must come along, for all but the page itself."""

    def page(self) -> Refusal | None:
        """Why the page is not given; None where it is. It has nothing in it that is secret."""
        if self.has_keys or is_loopback(self.host):
            return None
        return Refusal(403, f"the console is open on loopback; on {self.host} it needs a key")

    def script(self, request: HttpRequest) -> Refusal | None:
        """The same for what the page's script asks, whose key was looked at before."""
        origin = request.headers.get("origin")
        if origin is not None and _netloc(origin) != request.headers.get("host"):
            return Refusal(403, f"pages of {origin[:100]!r} may not ask here")
        if MARK not in request.headers:
            return Refusal(403, f"the header {MARK} is missing")
        return self.page()


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
