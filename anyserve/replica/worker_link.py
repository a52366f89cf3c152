"""The worker link: the actor that starts one worker, keeps its connection, and ends with it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import attrs
import trio
from anyserve_actors import Actor, Context, Detail

from anyserve.app import Condition
from anyserve.burst import burst
from anyserve.link import frames
from anyserve.link.channel import FrameChannel, LinkClosed
from anyserve.link.frames import Kind
from anyserve.logs import OneLine
from anyserve.objects.arena import Arena
from anyserve.objects.segments import new_prefix, unlink_all
from anyserve.offers import Offer
from anyserve.replica.connection import Connection
from anyserve.replica.group import Group
from anyserve.replica.process import WorkerProcess, start_worker

PING_INTERVAL = 1.0
"""Seconds between heartbeats."""
_TRACE_TIMEOUT = 5.0
"""Seconds that a worker has to hand over what it recorded."""


class WorkerFailed(OneLine):
    """A worker that could not start, or has ended; the message is one line for people."""


@attrs.frozen
class Patience:
    """How long a worker may misbehave before it is replaced; seconds."""

    unresponsive: float = 10.0
    """Without an answer to a heartbeat: a handler blocks its event loop."""
    cancelled: float = 5.0
    """That a handler goes on after its request was cancelled."""
    retiring: float = 30.0
    """That the other requests of a worker that is to be replaced have to end."""


class WorkerLink(Actor[None]):
    """Runs one worker of a group, from its start to its end.

    Ready when the app has loaded. Its end is always a failure, for the supervisor to act on: the
    worker could not load, died, or was given up for a handler that hangs.
    """

    def __init__(self, name: str, group: Group, arena: Arena, patience: Patience) -> None:
        self._name = name
        self._group = group
        self._arena = arena
        self._patience = patience
        self._process: WorkerProcess | None = None
        self._connection: Connection | None = None
        self._heard = 0.0
        self._verdict: str | None = None
        self._recorded_sender, self._recorded = trio.open_memory_channel[bytes](1)

    def details(self) -> Mapping[str, Detail]:
        return {
            "pid": None if self._process is None else self._process.pid,
            "app": self._group.spec.target,
            "running": 0 if self._connection is None else len(self._connection.running),
        }

    async def run(self, context: Context[None]) -> None:
        """Start the worker and serve with it; raises `WorkerFailed` when it is no more."""
        prefix = new_prefix()
        try:
            async with start_worker(self._group.spec.python) as process:
                self._process = process
                await self._serve(process, prefix, context)
        except OSError as error:
            reason = f"worker {self._name} can't be started: {error}"
            self._group.on_failed(reason)
            raise WorkerFailed(reason) from error
        finally:
            self._process = None
            unlink_all(prefix)

    def kill(self) -> None:
        """End the worker at once, with whatever it runs."""
        if self._process is not None:
            self._process.kill()

    async def _serve(self, process: WorkerProcess, prefix: str, context: Context[None]) -> None:
        try:
            offers = await self._handshake(process.channel, prefix)
        except (LinkClosed, WorkerFailed) as error:
            reason = str(error)
            if isinstance(error, LinkClosed):
                reason = f"{await self._ending(process)} before it was ready"
            self._group.on_failed(reason)
            raise WorkerFailed(reason) from None
        connection = self._connection = Connection(
            self._name, process.channel, offers, self._arena, self._group.dispatcher
        )
        self._group.on_ready(connection, offers)
        names = ", ".join(str(offer.capability) for offer in offers)
        context.log.info("ready in process %d: %s", process.pid, names)
        context.started()
        reason = f"worker {self._name} is stopping"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_write, process.channel)
                nursery.start_soon(self._watch, process, connection, context)
                await self._read(process.channel, connection)
                nursery.cancel_scope.cancel()
            reason = self._verdict or await self._ending(process)
        finally:
            self._connection = None
            self._group.on_down(connection, reason)
        raise WorkerFailed(reason)

    async def _handshake(self, channel: FrameChannel, prefix: str) -> list[Offer]:
        """Have the worker import its app, then load it once something of it is wanted.

        Waits for both for as long as they take: whoever stops this actor bounds it. Raises
        `WorkerFailed` with the worker's own words, and `LinkClosed` when it dies.
        """
        spec = self._group.spec
        setup = {
            "name": f"worker {self._name}",
            "app": spec.target,
            "options": dict(spec.options),
            "log_format": spec.log_format,
            "log_level": spec.log_level,
            "segment_prefix": prefix,
        }
        channel.send(frames.encode_json(Kind.SETUP, setup))
        await channel.flush()
        self._group.on_declared(_offers(await _expect(channel, Kind.DECLARED)))
        await self._group.wanted_event.wait()
        channel.send(frames.encode_json(Kind.LOAD, None))
        await channel.flush()
        return _offers(await _expect(channel, Kind.READY))

    async def _read(self, channel: FrameChannel, connection: Connection) -> None:
        while batch := await channel.receive():
            self._heard = trio.current_time()
            with burst:
                for frame in batch:
                    if frame.kind == Kind.TRACED:
                        with suppress(trio.WouldBlock):  # nobody waits for those before it
                            self._recorded_sender.send_nowait(bytes(frame.body))
                    elif frame.kind == Kind.CONDITION:
                        told = frames.decode_json(frame)
                        name = told.pop("name")
                        self._group.on_condition(connection, name, Condition(**told))
                    else:
                        connection.on_frame(frame)

    async def _watch(
        self, process: WorkerProcess, connection: Connection, context: Context[None]
    ) -> None:
        """Send heartbeats, and kill a worker whose handler hangs; the reader sees its end."""
        self._heard = trio.current_time()
        retire_by: float | None = None
        while self._verdict is None:
            process.channel.send(frames.encode(Kind.PING))
            sent = trio.current_time()
            await trio.sleep(PING_INTERVAL)
            now = trio.current_time()
            if now - sent > 2 * PING_INTERVAL:
                continue  # this process itself stood still: answers may wait to be read
            overdue = connection.overdue(now - self._patience.cancelled)
            if now - self._heard > self._patience.unresponsive:
                self._verdict = (
                    f"worker {self._name} did not answer for {now - self._heard:.0f} s while it"
                    f" ran {_listed(connection.running)}"
                )
            elif overdue and retire_by is None:
                retire_by = now + self._patience.retiring
                reason = (
                    f"worker {self._name} is being replaced: the handler of {_listed(overdue)}"
                    f" goes on {self._patience.cancelled:g} s after its request was cancelled"
                )
                context.log.error("%s", reason)
                self._group.on_retiring(connection, reason)
            elif retire_by is not None and (
                now > retire_by or len(overdue) == len(connection.running)
            ):
                self._verdict = (
                    f"worker {self._name} was replaced: a handler ignored its cancellation"
                )
        context.log.error("%s: killing it", self._verdict)
        process.kill()

    def start_tracing(self) -> None:
        """Have the worker record, where there is one."""
        self._trace(True)

    def stop_tracing(self) -> None:
        """Have it record no more, and send what it has: `recording` waits for that."""
        self._recorded_sender, self._recorded = trio.open_memory_channel[bytes](1)
        self._trace(False)

    def _trace(self, on: bool) -> None:
        if self._process is not None and self._connection is not None:
            self._process.channel.send(frames.encode_json(Kind.TRACE, {"on": on}))

    async def recording(self) -> bytes | None:
        """What the worker recorded; None when it has nothing to give within some seconds."""
        with trio.move_on_after(_TRACE_TIMEOUT if self._connection is not None else 0):
            return await self._recorded.receive()
        return None

    async def _ending(self, process: WorkerProcess) -> str:
        """How the worker ended, as far as can be seen within a heartbeat."""
        with trio.move_on_after(PING_INTERVAL):
            return f"worker {self._name} {await process.wait()}"
        return f"worker {self._name} closed its link"


async def _write(channel: FrameChannel) -> None:
    try:
        await channel.run_writer()
    except LinkClosed:
        return  # the reader sees the end of file


async def _expect(channel: FrameChannel, kind: Kind) -> Any:
    for frame in await channel.receive():
        if frame.kind == Kind.FAILED:
            raise WorkerFailed(bytes(frame.body).decode(errors="replace"))
        if frame.kind == kind:
            return frames.decode_json(frame)
    raise LinkClosed("the worker is gone")


def _offers(values: list[dict[str, Any]]) -> list[Offer]:
    return [Offer.from_json(value) for value in values]


def _listed(capabilities: list[str]) -> str:
    return ", ".join(repr(name) for name in sorted(set(capabilities))) or "nothing"
