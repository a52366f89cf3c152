"""Who may ask: keys, the pages of other sites that may, and by which names.

Pure: what is decided of a request stands in its headers.

A site can lead its own name to this machine after its page was loaded (DNS rebinding), so that a
browser here takes our answers for the site's own. What it can't do is ask by an address or by
`localhost`; so a port that is for this machine alone answers to nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

import attrs

from anyserve.http.heads import Fields
from anyserve.http.request import HttpRequest, Refusal

ANY_ORIGIN = "*"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_PREFLIGHT_SECONDS = 600


def _digest(key: str) -> bytes:
    """What keys are compared by, so that not even their length shows in the time it takes."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


@attrs.frozen
class Access:
    """Keys and origins that are let in."""

    keys: tuple[str, ...] = attrs.field(default=(), repr=False)
    """One of them must come along, as `Authorization: Bearer KEY`; none: everybody may ask."""
    origins: tuple[str, ...] = ()
    """Sites whose pages may ask (`https://host:port`), or `*`; none: no other site's."""
    is_local: bool = False
    """Whether it is for this machine alone, and so asked by no name that could be another's."""
    _digests: tuple[bytes, ...] = attrs.field(init=False, repr=False)

    @_digests.default
    def _digests_of_keys(self) -> tuple[bytes, ...]:
        return tuple(_digest(key) for key in self.keys)

    def refusal(self, request: HttpRequest) -> Refusal | None:
        """Why the request is not let in; None where it is."""
        host = request.headers.get("host")
        # Without the header, which only HTTP/1.0 may lack, it is no browser that asks.
        if self.is_local and host is not None and not _is_local(host):
            return Refusal(403, f"without a key this is at localhost, not at {host[:100]!r}")
        origin = request.headers.get("origin")
        if origin is not None and request.method not in _SAFE and not self._lets(origin, request):
            # A page anywhere may have a browser on this network post to us, and needs no answer.
            return Refusal(403, f"pages of {origin[:100]!r} may not ask here")
        if not self.keys:
            return None
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            return Refusal(401, "a key is missing: send it as 'Authorization: Bearer KEY'")
        digest = _digest(key.strip())
        if True not in {hmac.compare_digest(digest, known) for known in self._digests}:
            return Refusal(401, "the key is not known")
        return None

    def challenge(self, refusal: Refusal) -> Fields:
        """Headers that go with a refusal."""
        return (("www-authenticate", "Bearer"),) if refusal.status == 401 else ()

    def fields(self, request: HttpRequest) -> Fields:
        """Headers that let the page which asks read the answer."""
        if not self.origins:
            return ()
        if ANY_ORIGIN in self.origins:
            return (("access-control-allow-origin", ANY_ORIGIN),)
        origin = request.headers.get("origin")
        if origin not in self.origins or origin is None:
            return (("vary", "origin"),)
        return (("access-control-allow-origin", origin), ("vary", "origin"))

    def is_preflight(self, request: HttpRequest) -> bool:
        """Whether a browser asks what a page may ask."""
        return (
            request.method == "OPTIONS"
            and bool(self.origins)
            and "access-control-request-method" in request.headers
        )

    def preflight(self, request: HttpRequest) -> Fields:
        """The headers of the answer to that."""
        asked = request.headers.get("access-control-request-headers", "")
        return (
            ("access-control-allow-methods", "GET, POST, OPTIONS"),
            ("access-control-allow-headers", asked or "authorization, content-type"),
            ("access-control-max-age", str(_PREFLIGHT_SECONDS)),
        )

    def _lets(self, origin: str, request: HttpRequest) -> bool:
        if ANY_ORIGIN in self.origins or origin in self.origins:
            return True
        return urlsplit(origin).netloc == request.headers.get("host")


def is_loopback(name: str) -> bool:
    """Whether a host name or an address is this machine's, whatever a name server says."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        name = name.removesuffix(".")
        return name == "localhost" or name.endswith(".localhost")


@lru_cache(maxsize=16)  # clients keep to one, and reading it costs as much as all else here
def _is_local(host: str) -> bool:
    """Whether a Host header names this machine."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
