"""A server that the worker starts, watches, starts again when it dies, and ends with itself."""

from __future__ import annotations

import logging
import random
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio
from anyserve_actors import Backoff

from anyserve.engines.errors import CannotLoad
from anyserve.engines.sglang.client import Client
from anyserve.engines.sglang.engine import SglangEngine
from anyserve.engines.sglang.process import ServerProcess, start_server
from anyserve.transport.address import TcpAddress

log = logging.getLogger("anyserve.engines.sglang")

_LOOPBACK = "127.0.0.1"
_BACKOFF = Backoff(initial=1.0, maximum=60.0)
_STEADY = 60.0
"""Seconds up, after which restarts are not in a row any more."""
_LOOK = 5.0
"""Seconds between two looks at a server that may hang."""
_MILESTONES = {
    "Load weight begin": "loading the weights",
    "Load weight end": "the weights are loaded",
    "KV Cache is allocated": "the cache is allocated",
    "Capture cuda graph begin": "capturing CUDA graphs",
    "Uvicorn running": "warming up",
    "ready to roll": "ready",
}
"""What is told of a server that starts, by words that SGLang says."""


@attrs.frozen
class OwnedSettings:
    """A server as it is started."""

    model: str
    """A folder with a Hugging Face model, or a name on its hub."""
    python: str = sys.executable
    """The interpreter of an environment with SGLang."""
    args: Sequence[str] = ()
    """More options of SGLang's server."""
    load_time: float = 600.0
    """Seconds until it has to be ready; one that answers nothing for so long is killed."""

    def command(self, port: int) -> list[str]:
        """What starts the server on `port` of the loopback address."""
        return [
            *(self.python, "-m", "sglang.launch_server"),
            *("--model-path", self.model, "--host", _LOOPBACK, "--port", str(port)),
            "--incremental-streaming-output",
            *self.args,
        ]


@asynccontextmanager
async def open_owned(
    settings: OwnedSettings, tokenizer: Path | None = None, *, bootstrap_host: str | None = None
) -> AsyncIterator[SglangEngine]:
    """Start a server, and have an engine on it for the time of the body.

    tokenizer, bootstrap_host: as for `SglangEngine.attached`.

    Waits for it to load, `load_time` at most, and at the end for its whole process tree to be
    gone, some seconds. A server that ends meanwhile is started again. Raises `CannotLoad` where it
    ends before it is ready; errors come in an exception group.
    """
    server = OwnedServer(settings, TcpAddress(_LOOPBACK, free_port()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run, name="SGLang's server")
        client = Client(server.address)
        async with SglangEngine.attached(
            client, tokenizer, within=settings.load_time, bootstrap_host=bootstrap_host
        ) as engine:
            server.engine = engine
            try:
                yield engine
            finally:
                nursery.cancel_scope.cancel()


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind((_LOOPBACK, 0))
        port: int = sock.getsockname()[1]
        return port


@attrs.define(eq=False)
class OwnedServer:
    """The server, from one start to the next."""

    settings: OwnedSettings
    address: TcpAddress
    engine: SglangEngine | None = None
    """Once it has been ready."""
    process: ServerProcess | None = None

    async def run(self) -> None:
        """Run it, again when it ends, until cancelled.

        Raises `CannotLoad` if it ends before it has ever been ready.
        """
        streak = 0
        while True:
            began = trio.current_time()
            why = await self._run_once()
            if self.engine is None:
                raise CannotLoad(f"SGLang ends while it loads: {why}")
            streak = 0 if trio.current_time() - began > _STEADY else streak + 1
            delay = _BACKOFF.delay(streak, random.random())
            log.error("SGLang has ended and is started again in %.0f s: %s", delay, why)
            self.engine.monitor.lose("SGLang has ended and is being started again")
            await trio.sleep(delay)

    async def _run_once(self) -> str:
        """Run it to its end; how and why that was."""
        command = self.settings.command(self.address.port)
        async with start_server(command) as process, trio.open_nursery() as nursery:
            self.process = process
            log.info("SGLang is started on %s, guarded by process %d", self.address, process.pid)
            nursery.start_soon(self._end_when_hung, process)
            while (lines := await process.read()) is not None:
                for line in lines:
                    _tell(line)
            nursery.cancel_scope.cancel()
        return f"{await process.wait()}; {process.reason()}"

    async def _end_when_hung(self, process: ServerProcess) -> None:
        """End a server that is up and has not been ready for too long."""
        began = trio.current_time()
        while True:
            await trio.sleep(_LOOK)
            if self.engine is None:
                continue
            since = max(self.engine.monitor.down_since or trio.current_time(), began)
            if trio.current_time() - since > self.settings.load_time:
                log.error("SGLang answers nothing, and is ended")
                process.stop()
                return


def _tell(line: str) -> None:
    log.debug("SGLang: %s", line)
    for words, told in _MILESTONES.items():
        if words in line:
            log.info("SGLang: %s", told)
