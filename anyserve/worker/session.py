"""The worker's side of the link: calls in, responses out, until the replica closes it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import trio
from anyserve_actors import tracing
from anyserve_protos.infer_wire import join_response

from anyserve.app import Handler
from anyserve.errors import AnyServeError, Cancelled
from anyserve.link import frames
from anyserve.link.channel import FrameChannel, LinkClosed
from anyserve.link.frames import Buffer, Frame, Kind, Part, RequestBody
from anyserve.messages import Context
from anyserve.messages import Sequence as SequenceInfo
from anyserve.objects.arena import Arena, ArenaFull
from anyserve.objects.leases import Block, LeaseSet
from anyserve.objects.mapping import Reader
from anyserve.objects.region_files import RegionFiles
from anyserve.objects.regions import RegionRef
from anyserve.worker.runner import Ending, HandlerRunner, Incoming
from anyserve.worker.shared import ClientRegions

log = logging.getLogger("anyserve.worker")


@attrs.define(eq=False)
class _Running:
    """A call in progress."""

    runner: HandlerRunner
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    credit: int = frames.INITIAL_CREDIT
    more_credit: trio.Event | None = None
    """Set when there is some, where the handler waits for it."""


class Session:
    """Serves the handlers of an app that has loaded, over a link whose handshake is done."""

    def __init__(
        self, name: str, channel: FrameChannel, handlers: Sequence[Handler], arena: Arena
    ) -> None:
        self._name = name
        self._channel = channel
        self._runners = [HandlerRunner(handler) for handler in handlers]
        self._arena = arena
        self._reader = Reader()
        self._files = RegionFiles()
        self._running: dict[int, _Running] = {}
        self._replies = LeaseSet()

    @property
    def running(self) -> list[str]:
        """The capabilities of the calls in progress."""
        return [running.runner.name for running in self._running.values()]

    async def run(self) -> None:
        """Serve until the replica closes the link; what still runs then is cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                while batch := await self._channel.receive():
                    for frame in batch:
                        if frame.kind == Kind.REQUEST:
                            self._start(frame, nursery)
                        else:
                            self._control(frame)
                nursery.cancel_scope.cancel()
        finally:
            self._reader.close()
            self._files.close()

    async def _write(self) -> None:
        with suppress(LinkClosed):  # the reader sees the end of file and ends the session
            await self._channel.run_writer()

    def _start(self, frame: Frame, nursery: trio.Nursery) -> None:
        body = frames.decode_request(frame)
        running = _Running(self._runners[body.offer])
        self._running[frame.call] = running
        nursery.start_soon(
            self._call, frame.call, body, running, name=f"call {running.runner.name}"
        )

    def _control(self, frame: Frame) -> None:
        if frame.kind == Kind.CREDIT:
            running = self._running.get(frame.call)
            if running is not None:
                running.credit += frames.decode_credit(frame)
                if running.more_credit is not None:
                    running.more_credit.set()
        elif frame.kind == Kind.CANCEL:
            running = self._running.get(frame.call)
            if running is not None:
                running.scope.cancel()
        elif frame.kind == Kind.RELEASE:
            self._replies.release(frames.decode_release(frame))
        elif frame.kind == Kind.PING:
            self._channel.send(frames.encode(Kind.PONG))
        elif frame.kind == Kind.TRACE:
            self._trace(frames.decode_json(frame))

    def _trace(self, command: Mapping[str, Any]) -> None:
        if command["on"] and not tracing.active():
            tracing.start(self._name)
        elif not command["on"] and tracing.active():
            # A worker that started in between has nothing to give.
            self._channel.send(frames.encode(Kind.TRACED, 0, tracing.stop().to_bytes()))

    async def _call(self, call: int, body: RequestBody, running: _Running) -> None:
        """Run one request to its end, which is always told to the replica."""
        ending = Ending(error=Cancelled("the worker is stopping"))
        try:
            incoming = self._incoming(body, running.scope)
            ending = await running.runner.run(incoming, partial(self._emit, call, running))
        except AnyServeError as error:
            ending = Ending(error=error)
        finally:
            del self._running[call]
            # With nothing else to be run there is nothing to wait for.
            self._channel.send(self._encode_ending(call, ending), at_once=not self._running)

    def _incoming(self, body: RequestBody, scope: trio.CancelScope) -> Incoming:
        # Inline parts are copied, which aligns them; blocks are aligned and stay where they are.
        head, *raw = (
            self._reader.view(part) if isinstance(part, Block) else bytes(part)
            for part in body.parts
        )
        sequence = body.extra.get("sequence")
        context = Context(
            request_id=body.request_id,
            deadline=trio.current_time() + body.budget,
            metadata=body.extra.get("metadata", {}),
            sequence=SequenceInfo(**sequence) if sequence else None,
            cancel_scope=scope,
        )
        regions = {
            name: RegionRef(**value) for name, value in body.extra.get("regions", {}).items()
        }
        return Incoming(head, raw, context, ClientRegions(regions, self._files))

    async def _emit(self, call: int, running: _Running, head: bytes, raw: Sequence[Buffer]) -> None:
        """Send one response; waits while the replica has not taken those before it."""
        while running.credit == 0:
            running.more_credit = trio.Event()
            await running.more_credit.wait()
        running.credit -= 1
        self._channel.send(self._encode_response(call, head, raw))

    def _encode_ending(self, call: int, ending: Ending) -> Sequence[Buffer]:
        if ending.error is not None:
            return (frames.encode_error(call, ending.error),)
        if ending.last is None:
            return (frames.encode_end(call, ending.batch),)
        return self._encode_response(call, *ending.last, batch=ending.batch)

    def _encode_response(
        self, call: int, head: bytes, raw: Sequence[Buffer], batch: int | None = None
    ) -> Sequence[Buffer]:
        """Frames of one response; with `batch`, of the end of the call too."""
        if any(len(buffer) >= frames.LEASE_THRESHOLD for buffer in raw):
            lent = frames.encode_parts(call, [head, *map(self._place, raw)])
            return lent if batch is None else (*lent, frames.encode_end(call, batch))
        # Copied: the handler may use its arrays again.
        message = join_response(head, raw)
        if batch is None:
            return (frames.encode_response(call, message),)
        return (frames.encode_answer(call, batch, message),)

    def _place(self, buffer: Buffer) -> Part:
        """Large tensors into shared memory, small ones copied: the handler may reuse its array."""
        view = memoryview(buffer)
        if view.nbytes >= frames.LEASE_THRESHOLD:
            try:
                return self._replies.add(self._arena.put([view]))
            except ArenaFull:
                log.warning("shared memory is full: a tensor of %d bytes goes inline", view.nbytes)
        return bytes(view)
