"""What is served under which path, for whom, and what errors look like there."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import TypeAlias
from urllib.parse import unquote

import attrs

from anyserve.http.access import Access
from anyserve.http.exchange import Exchange

Handler: TypeAlias = Callable[[Exchange], Awaitable[None] | None]
"""Takes a request, in Trio's thread, and never waits; what it returns is run as a task.

A task's scope ends with the client. What it raises is the answer, where none has begun: an
`AnyServeError` with its HTTP status.
"""
ErrorBody: TypeAlias = Callable[[int, str], bytes]
"""A JSON body that says an HTTP status and a message."""

_REMEMBERED = 256


@attrs.frozen
class Route:
    """One path, which may have parameters."""

    words: tuple[str, ...]
    """`{name}` is one word of the path, whatever it is, and `{name*}` all that follow."""
    handlers: Mapping[str, Handler]
    """By method."""
    is_open: bool
    """Whether anybody may ask, without a key."""


class Routes:
    """The `Site` of a server."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._routes: list[Route] = []
        self._errors: list[tuple[str, ErrorBody]] = []
        self._find = lru_cache(_REMEMBERED)(self._search)

    def add(self, method: str, path: str, handler: Handler, *, is_open: bool = False) -> None:
        """Serve `path`, in which `{name}` stands for a word and, at its end, `{name*}` for several.

        is_open: whether anybody may ask, without a key. What was added first counts first.
        """
        words = tuple(path.split("/"))
        for index, route in enumerate(self._routes):
            if route.words == words:
                handlers = {**route.handlers, method: handler}
                self._routes[index] = attrs.evolve(route, handlers=handlers)
                break
        else:
            self._routes.append(Route(words, {method: handler}, is_open))
        self._find.cache_clear()

    def add_errors(self, prefix: str, body: ErrorBody) -> None:
        """Have errors of the paths that begin with `prefix` look like that."""
        self._errors.append((prefix, body))

    def handle(self, exchange: Exchange) -> Awaitable[None] | None:
        """See `Site`."""
        request = exchange.request
        access = self._access
        exchange.fields = access.fields(request)
        if access.is_preflight(request):
            exchange.respond(204, b"", headers=access.preflight(request))
            return None
        route, parameters = self._find(request.path)
        if route is None or not route.is_open:
            refusal = access.refusal(request)
            if refusal is not None:
                exchange.refuse(refusal.status, refusal.message, access.challenge(refusal))
                return None
        if route is None:
            exchange.refuse(404, f"there is nothing at {request.path[:200]}")
            return None
        handler = route.handlers.get(request.method)
        if handler is None and request.method == "HEAD":
            handler = route.handlers.get("GET")
        if handler is None:
            allowed = ", ".join([*route.handlers, *(["HEAD"] if "GET" in route.handlers else [])])
            if request.method == "OPTIONS":
                exchange.respond(204, b"", headers=(("allow", f"{allowed}, OPTIONS"),))
            else:
                message = f"{request.method} is not for {request.path[:200]}: it takes {allowed}"
                exchange.refuse(405, message, (("allow", allowed),))
            return None
        request.parameters = parameters
        return handler(exchange)

    def error_body(self, path: str, status: int, message: str) -> bytes:
        """See `Site`."""
        for prefix, body in self._errors:
            if path.startswith(prefix):
                return body(status, message)
        return json.dumps({"error": message}).encode()

    def _search(self, path: str) -> tuple[Route | None, Mapping[str, str]]:
        words = path.split("/")
        for route in self._routes:
            parameters = _matched(route.words, words)
            if parameters is not None:
                return route, parameters
        return None, {}


def _matched(template: tuple[str, ...], words: list[str]) -> Mapping[str, str] | None:
    """The parameters of a path that fits a template; None where it does not."""
    several = template[-1].endswith("*}")
    if len(words) < len(template) or (len(words) > len(template) and not several):
        return None
    parameters: dict[str, str] = {}
    for index, expected in enumerate(template):
        if expected.endswith("*}"):
            parameters[expected[1:-2]] = unquote("/".join(words[index:]))
        elif expected.startswith("{"):
            parameters[expected[1:-1]] = unquote(words[index])
        elif expected != words[index]:
            return None
    return parameters
