"""Who may see the console, beside what holds for the whole port.

Pure. Without keys the console is for browsers on this machine alone. A page of another site could
still have one ask for it: by its own name, which its owner has lead here after the page was
loaded, and so with an origin that fits (DNS rebinding). What it can't do is ask by an address, or
by `localhost`.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

import attrs

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

    def page(self, request: HttpRequest) -> Refusal | None:
        """Why the page is not given; None where it is. It has nothing in it that is secret."""
        if self.has_keys:
            return None
        if not is_loopback(self.host):
            return Refusal(403, f"the console is open on loopback; on {self.host} it needs a key")
        host = request.headers.get("host", "")
        if not is_loopback(_name(host)):
            return Refusal(403, f"without a key the console is at localhost, not at {host[:100]!r}")
        return None

    def script(self, request: HttpRequest) -> Refusal | None:
        """The same for what the page's script asks, whose key was looked at before."""
        origin = request.headers.get("origin")
        if origin is not None and _netloc(origin) != request.headers.get("host"):
            return Refusal(403, f"pages of {origin[:100]!r} may not ask here")
        if MARK not in request.headers:
            return Refusal(403, f"the header {MARK} is missing")
        return self.page(request)


def is_loopback(name: str) -> bool:
    """Whether a host name or an address is this machine's, whatever a name server says."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
