"""Whether a server is up: asked every few seconds, and what follows when it isn't."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import attrs
import trio

from anyserve.engines.interface import EngineLoad
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
    load: EngineLoad = attrs.field(factory=lambda: EngineLoad(0, 0, 0))
    _down: str | None = None
    """Why no request can be served, else None."""
    down_since: float | None = None
    """When it was found to be down; `trio.current_time`."""
    _missed: int = 0
    _streams: set[TextStream] = attrs.field(factory=set)

    def check(self) -> None:
        """Raise `Unavailable` while the server is down; nothing was begun, so another may do."""
        if self._down is not None:
            raise elsewhere(Unavailable(self._down))

    @contextmanager
    def watching(self, stream: TextStream) -> Iterator[None]:
        """Have `stream` fail when the server is found to be down, for the time of the body."""
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)

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
        with suppress(AnyServeError):
            loads = await self.client.get("/v1/loads?include=core", Loads, within=PROBE_TIME)
            self.load = _load(loads, self.served.slots)

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


def _load(loads: Loads, slots: int) -> EngineLoad:
    running = sum(rank.num_running_reqs for rank in loads.loads)
    return EngineLoad(
        running=running,
        waiting=sum(rank.num_waiting_reqs for rank in loads.loads),
        free_slots=max(0, slots - running),
        tokens_per_second=sum(rank.gen_throughput for rank in loads.loads),
    )
