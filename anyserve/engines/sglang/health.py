"""Whether a server is up: asked every few seconds, and what follows when it isn't."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

from anyserve.engines.sglang.client import Client
from anyserve.engines.sglang.discovery import Served, discover
from anyserve.engines.sglang.protocol import Loads
from anyserve.engines.sglang.stream import TextStream
from anyserve.errors import AnyServeError, Unavailable, elsewhere

log = logging.getLogger("anyserve.engines.sglang")

INTERVAL = 2.0
"""Seconds between two questions."""
PROBE_TIME = 5.0
"""Seconds for an answer."""
MISSED = 2
"""Questions without an answer after which the server is taken to be gone. One that refuses the
connection is gone at once."""
STALL_TIME = 60.0
"""Seconds without a token after which a text that has begun is lost."""


@attrs.define(eq=False)
class Health:
    """What is known of one server, and the streams that end when it does."""

    client: Client
    served: Served
    others: int = 0
    """Requests that it had when it was asked last, and that can't have been ours: its figure may be
    a second old, so as many are taken off as were ours at once in the time since it was asked
    before."""
    _down: str | None = None
    """Why no request can be served, else None."""
    down_since: float | None = None
    """When it was found to be down; `trio.current_time`."""
    _missed: int = 0
    _streams: set[TextStream] = attrs.field(factory=set)
    _ours: int = 0
    """Requests that it has from here."""
    _most: int = 0
    """Most of them at once since it was asked for its load."""

    def check(self) -> None:
        """Raise `Unavailable` while the server is down; nothing was begun, so another may do."""
        if self._down is not None:
            raise elsewhere(Unavailable(self._down))

    @contextmanager
    def watching(self, stream: TextStream) -> Iterator[None]:
        """Have `stream` fail when the server is found to be down, for the time of the body."""
        self._streams.add(stream)
        try:
            with self.counting(1):
                yield
        finally:
            self._streams.discard(stream)

    @contextmanager
    def counting(self, requests: int) -> Iterator[None]:
        """Know of so many requests to the server that they are ours, for the time of the body."""
        self._ours += requests
        self._most = max(self._most, self._ours)
        try:
            yield
        finally:
            self._ours -= requests

    def fail(self, why: str) -> None:
        """Refuse requests with that reason, and end the streams."""
        if self._down is None:
            self.down_since = trio.current_time()
        self._down = why
        for stream in self._streams:
            stream.fail(why)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask until cancelled."""
        await self._probe()
        task_status.started()
        while True:
            await trio.sleep(INTERVAL)
            await self._probe()
            self._end_stalled(trio.current_time())

    async def _probe(self) -> None:
        try:
            await self.client.ping("/ready", within=PROBE_TIME)
            if self._down is not None:
                await self._check_same()
        except Unavailable as error:
            self._missed += 1
            if error.elsewhere or self._missed >= MISSED:
                self.lose(error.message)
            return
        except AnyServeError as error:
            self.lose(error.message)
            return
        self._missed = 0
        if self._down is not None:
            log.warning("SGLang at %s serves again", self.client.address)
            self._down = self.down_since = None
        self.others = await self._count_others()

    async def _count_others(self) -> int:
        try:
            loads = await self.client.get("/v1/loads?include=core", Loads, within=PROBE_TIME)
        except AnyServeError:
            return 0
        most, self._most = self._most, self._ours
        return max(0, sum(rank.requests for rank in loads.loads) - most)

    async def _check_same(self) -> None:
        """Raise `Unavailable` if the server has come back with another model."""
        served = await discover(self.client)
        if served != self.served:
            raise elsewhere(
                Unavailable(
                    f"SGLang at {self.client.address} has come back with {served.model!r} or other"
                    f" options than the {self.served.model!r} that is offered"
                )
            )

    def lose(self, why: str) -> None:
        """As `fail`, until the server answers again."""
        if self._down is None:
            log.warning("%s", why)
        self.fail(why)

    def _end_stalled(self, now: float) -> None:
        for stream in self._streams:
            if stream.begun and now - stream.last_heard > STALL_TIME:
                stream.fail(f"it has been silent for {STALL_TIME:g} s")
