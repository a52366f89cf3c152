"""The door that a Prometheus scrapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs
import trio
from prometheus_client import Metric, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from anyserve.http.exchange import Exchange
from anyserve.http.routes import Routes

_OPEN_METRICS = "application/openmetrics-text"


@attrs.frozen
class _Taken:
    """What was counted at one moment, and what the system says of the process."""

    families: Iterable[Metric]
    process: ProcessCollector
    platform: PlatformCollector

    def collect(self) -> Iterable[Metric]:
        yield from self.families
        yield from self.process.collect()
        yield from self.platform.collect()


class Metrics:
    """Answers `/metrics` in Prometheus' text, or OpenMetrics' where that is accepted."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        """collect: what is counted, all of it at one moment; called in Trio's thread."""
        self._collect = collect
        self._process = ProcessCollector(registry=None)
        self._platform = PlatformCollector(registry=None)
        self._one = trio.CapacityLimiter(1)

    def add_to(self, routes: Routes) -> None:
        """Serve it."""
        routes.add("GET", "/metrics", self.scrape)

    async def scrape(self, exchange: Exchange) -> None:
        """All metrics.

        The text is made in a thread, since with many capabilities it takes longer than a token may
        wait. Waits for the scrapes before it, each for a fraction of a second; cancelled while its
        own is made, it ends after that.
        """
        wants_open = _OPEN_METRICS in exchange.request.headers.get("accept", "")
        encode, content_type = choose_encoder(_OPEN_METRICS if wants_open else "")
        taken = _Taken(list(self._collect()), self._process, self._platform)
        text = await trio.to_thread.run_sync(encode, taken, limiter=self._one)
        exchange.respond(200, text, content_type)
