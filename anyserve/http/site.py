"""All that one HTTP port serves, put together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import trio
from prometheus_client import Metric

from anyserve.http.access import Access, is_loopback
from anyserve.http.backend import Backend
from anyserve.http.console.door import Console
from anyserve.http.console.guard import Guard
from anyserve.http.console.inside import Inside
from anyserve.http.console.snapshot import Snapshots
from anyserve.http.exchange import Exchange
from anyserve.http.kserve.door import KServe
from anyserve.http.metrics.door import Metrics
from anyserve.http.openai.door import OpenAIDoor
from anyserve.http.parser import HttpLimits
from anyserve.http.routes import Routes
from anyserve.http.server import HttpServer
from anyserve.http.settings import HttpConfig
from anyserve.transport.address import TcpAddress


def http_server(
    config: HttpConfig,
    backend: Backend,
    collect: Callable[[], Iterable[Metric]],
    inside: Inside,
) -> HttpServer:
    """The server of `config`, whose doors ask `backend`.

    collect: gives what `/metrics` shows. inside: what the console shows.
    """
    is_local = not config.keys and is_loopback(config.host)
    routes = Routes(Access(config.keys, config.origins, is_local))
    _add_health(routes, backend)
    KServe(backend).add_to(routes)
    OpenAIDoor(backend).add_to(routes)
    Metrics(collect).add_to(routes)
    snapshots = Snapshots(inside, backend, trio.current_time)
    Console(Guard(config.host, bool(config.keys)), snapshots).add_to(routes)
    limits = HttpLimits(body=config.max_body)
    return HttpServer(routes, TcpAddress(config.host, config.port), limits)


def _add_health(routes: Routes, backend: Backend) -> None:
    """`/health`: it lives. `/ready`: it takes requests. Whoever supervises it needs no key."""

    def health(exchange: Exchange) -> None:
        exchange.respond(200, _status("live"))

    def ready(exchange: Exchange) -> None:
        is_ready = backend.ready()
        exchange.respond(200 if is_ready else 503, _status("ready" if is_ready else "not ready"))

    routes.add("GET", "/health", health, is_open=True)
    routes.add("GET", "/ready", ready, is_open=True)


def _status(word: str) -> bytes:
    return json.dumps({"status": word}).encode()
